import errno
import fcntl
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest

from tfstruct import files
from tfstruct.training import checkpoint
from tfstruct.training.checkpoint import (
    Checkpoints,
    DamagedCheckpointError,
    WorkdirBusyError,
    WorkdirLock,
)

# A child needs checkpoint.py alone; importing the package would import TensorFlow, seconds each time.
LOAD = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("checkpoint", {checkpoint.__file__!r})
checkpoint = importlib.util.module_from_spec(spec)
sys.modules["checkpoint"] = checkpoint
spec.loader.exec_module(checkpoint)
"""


def child(body, *arguments):
    command = [sys.executable, "-c", LOAD + body, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def some_arrays():
    generator = np.random.default_rng(17)
    return {
        "layer/kernel": generator.normal(size=[3, 4]).astype(np.float32),
        "fortran": np.asfortranarray(generator.normal(size=[3, 4])),
        "strided": generator.normal(size=[4, 4])[::2, ::-1],
        "big_endian": np.arange(3, dtype=">i4"),
        "scalar": np.float64(0.1) * np.ones([]),
        "step": np.int64(-7) * np.ones([], np.int64),
        "empty": np.zeros([0, 5], np.float16),
        "flags": np.array([True, False]),
        "words": np.array([2**32 - 1, 0], np.uint32),
        "complex": np.array([1 + 2j], np.complex64),
        "file": np.arange(3, dtype=np.uint8),  # the name of an argument of numpy.savez
        "half": np.array([1.5, -0.0, np.nan], ml_dtypes.bfloat16),
        "eighth": np.array(0.5, ml_dtypes.float8_e4m3fn),
        "not_a_number": np.array([0x7FC00123, 0xFF800000], np.uint32).view(np.float32),  # NaN with a payload
        "names, ümlaut": np.array(["a", "bc"]),
    }


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def test_round_trip_is_bit_for_bit(tmp_path):
    metadata = {"system": "graph_vae", "seconds": 0.1, "nested": {"list": [1, None, "ü"]}}
    path = Checkpoints(tmp_path / "new").save(12345, some_arrays(), metadata)
    assert path == tmp_path / "new" / "step_000012345.npz"
    found = Checkpoints(tmp_path / "new").latest()
    assert (found.step, found.metadata, found.path) == (12345, metadata, path)
    assert_same(found.arrays, some_arrays())
    found.arrays["layer/kernel"][0, 0] = 1.0  # arrays are ours to change


def test_numpy_alone_reads_the_file_without_pickle(tmp_path):
    path = Checkpoints(tmp_path).save(1, {"layer/kernel": np.eye(2)}, {"a": 1})
    with np.load(path, allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["layer/kernel"], np.eye(2))
        assert json.loads(archive["checkpoint.json"])["metadata"] == {"a": 1}


def test_same_content_gives_same_bytes(tmp_path):
    first = Checkpoints(tmp_path / "a").save(1, some_arrays(), {"b": 2}).read_bytes()
    assert first == Checkpoints(tmp_path / "b").save(1, some_arrays(), {"b": 2}).read_bytes()


def test_empty_folder_has_no_latest(tmp_path):
    assert Checkpoints(tmp_path / "missing").latest() is None
    assert Checkpoints(tmp_path).steps() == []


def test_keeps_the_newest_and_ignores_strangers(tmp_path):
    checkpoints = Checkpoints(tmp_path, max_to_keep=2)
    (tmp_path / "step_7.npz").write_bytes(b"not ours")
    for step in (0, 10, 20, 1_000_000_000):
        checkpoints.save(step, {}, {})
    assert checkpoints.steps() == [20, 1_000_000_000]
    assert checkpoints.latest().step == 1_000_000_000
    assert (tmp_path / "step_7.npz").exists()


def two_checkpoints(folder):
    checkpoints = Checkpoints(folder)
    checkpoints.save(10, {"weights": np.full([5], 1.0)}, {"step": 10})
    checkpoints.save(20, {"weights": np.full([5], 2.0), "more": np.arange(7)}, {"step": 20})
    return checkpoints, folder / "step_000000020.npz"


def assert_falls_back(checkpoints, path):
    with pytest.warns(RuntimeWarning, match=path.name):
        found = checkpoints.latest()
    assert found.step == 10
    np.testing.assert_array_equal(found.arrays["weights"], np.full([5], 1.0))


def test_every_truncation_is_detected(tmp_path):
    checkpoints, path = two_checkpoints(tmp_path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedCheckpointError):
            checkpoints.load(20)
    for damaged in (b"", whole[:-1], whole + b"\0", bytes(len(whole))):
        path.write_bytes(damaged)
        assert_falls_back(checkpoints, path)
    path.write_bytes(whole)
    assert checkpoints.latest().step == 20


def test_every_changed_byte_is_detected(tmp_path):
    checkpoints, path = two_checkpoints(tmp_path)
    whole = path.read_bytes()
    for position in range(len(whole)):  # all of them: 100 random ones would be the larger program
        for change in (0x01, 0x20, 0xFF):  # 0x20 turns the letters of the digest into capitals
            damaged = bytearray(whole)
            damaged[position] ^= change
            path.write_bytes(damaged)
            with pytest.raises(DamagedCheckpointError):
                checkpoints.load(20)
    assert_falls_back(checkpoints, path)


def pack_anew(path):
    """Compresses what is in a checkpoint, with the right digest."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = b"0" * 64
        for name, content in contents.items():
            archive.writestr(name, content)
    content = path.read_bytes()[:-64]
    path.write_bytes(content + hashlib.sha256(content).hexdigest().encode())


def test_a_file_that_unpacks_to_more_than_it_has_is_damaged_before_memory_is_taken(tmp_path):
    """Its digest is right: whoever wrote it knows the format."""
    path = Checkpoints(tmp_path).save(7, {"weights": np.zeros([2_000_000], np.float32)}, {})
    pack_anew(path)
    with pytest.raises(DamagedCheckpointError, match="'weights' has 8,000,000 bytes, expected at most"):
        Checkpoints(tmp_path).load(7)


def test_a_document_that_unpacks_to_more_than_the_file_has_is_damaged_before_memory_is_taken(tmp_path):
    path = Checkpoints(tmp_path).save(7, {"weights": np.zeros([3], np.float32)}, {"note": " " * 1_000_000})
    pack_anew(path)
    with pytest.raises(DamagedCheckpointError, match="is larger than the file"):
        Checkpoints(tmp_path).load(7)


def test_renamed_checkpoint_is_not_taken_for_another_step(tmp_path):
    checkpoints, path = two_checkpoints(tmp_path)
    path.rename(tmp_path / "step_000000030.npz")
    with pytest.warns(RuntimeWarning, match="holds step 20"):
        assert checkpoints.latest().step == 10


def test_all_damaged_gives_none_and_names_each(tmp_path):
    checkpoints, path = two_checkpoints(tmp_path)
    for file in tmp_path.iterdir():
        file.write_bytes(b"x" * 500)
    with pytest.warns(RuntimeWarning) as caught:
        assert checkpoints.latest() is None
    assert [("000010" in str(w.message), "000020" in str(w.message)) for w in caught] == [
        (False, True),
        (True, False),
    ]


@pytest.mark.parametrize("max_to_keep", [1, 2])
def test_saving_after_a_fall_back_supersedes_the_damaged_file(tmp_path, max_to_keep):
    _, path = two_checkpoints(tmp_path)
    path.write_bytes(b"damaged")
    checkpoints = Checkpoints(tmp_path, max_to_keep=max_to_keep)
    checkpoints.save(15, {}, {})
    assert checkpoints.steps() == [10, 15][-max_to_keep:]
    assert checkpoints.latest().step == 15


def test_saving_before_a_valid_later_step_is_refused(tmp_path):
    checkpoints, path = two_checkpoints(tmp_path)
    with pytest.raises(ValueError, match="later step"):
        checkpoints.save(15, {}, {})
    assert checkpoints.steps() == [10, 20]


def test_other_format_is_an_error_not_a_fall_back(tmp_path, monkeypatch):
    checkpoints, _ = two_checkpoints(tmp_path)
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    with pytest.raises(ValueError, match="format 1") as caught:
        checkpoints.latest()
    assert not isinstance(caught.value, DamagedCheckpointError)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((1, {"a": np.array([object()])}, {}), TypeError, "'a' has dtype object"),
        ((1, {"a\0": np.zeros(1)}, {}), ValueError, "null"),
        ((1, {}, {"best": float("nan")}), ValueError, "JSON"),
        ((1, {}, {"best": np.zeros(1)}), TypeError, "JSON"),
        ((-1, {}, {}), ValueError, "negative"),
        ((1.5, {}, {}), TypeError, "integer"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_writing(tmp_path, arguments, error, match):
    with pytest.raises(error, match=match):
        Checkpoints(tmp_path).save(*arguments)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="max_to_keep"):
        Checkpoints(tmp_path, max_to_keep=0)


class FullDisk:
    """Stands in for a file system call that fails at its n-th call."""

    def __init__(self, function, number, after=0):
        self.function, self.number, self.after = function, number, after

    def __call__(self, *arguments, **keywords):
        self.after -= 1
        if self.after < 0:
            raise OSError(self.number, os.strerror(self.number))
        return self.function(*arguments, **keywords)


@pytest.mark.parametrize(
    ("module", "name", "number", "after"),
    [
        (np.lib.format, "write_array", errno.ENOSPC, 0),
        (np.lib.format, "write_array", errno.ENOSPC, 1),
        (os, "fsync", errno.ENOSPC, 0),
        (os, "fsync", errno.EIO, 0),
        (os, "replace", errno.EACCES, 0),
        (files, "_create_temporary", errno.EROFS, 0),
        (pathlib.Path, "mkdir", errno.EACCES, 0),
    ],
)
def test_failed_write_names_the_path_and_leaves_the_previous(tmp_path, monkeypatch, module, name, number, after):
    checkpoints, _ = two_checkpoints(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(module, name, FullDisk(getattr(module, name), number, after))
        with pytest.raises(OSError, match=f"step_000000030.npz: {os.strerror(number)}") as caught:
            checkpoints.save(30, {"a": np.zeros(10), "b": np.zeros(10)}, {})
    assert caught.value.errno == number
    assert caught.value.filename == str(tmp_path / "step_000000030.npz")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    checkpoints.save(30, {}, {})  # training may go on
    assert checkpoints.steps() == [20, 30]


def test_really_full_disk(tmp_path):
    """A file-size limit makes the kernel refuse the write, as a full disk does, buffers and all."""
    body = """
import numpy, resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoints = checkpoint.Checkpoints(sys.argv[1])
checkpoints.save(1, {"a": numpy.ones(100)}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for size in (20_000, 12_480):  # the second fails only when the file is flushed
    try:
        checkpoints.save(2, {"a": numpy.ones(size)}, {})
    except OSError as error:
        print(error)
print(checkpoints.latest().step)
"""
    process = child(body, tmp_path)
    lines = process.communicate(timeout=60)[0].splitlines()
    assert len(lines) == 3
    assert all("step_000000002.npz: File too large" in line for line in lines[:2])
    assert lines[2] == "1"
    assert os.listdir(tmp_path) == ["step_000000001.npz"]


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_kill_at_random_moments_always_leaves_a_valid_checkpoint(kills, tmp_path):
    body = """
import itertools, numpy
checkpoints = checkpoint.Checkpoints(sys.argv[1])
found = checkpoints.latest()
for step in itertools.count(found.step + 1 if found else 1):
    checkpoints.save(step, {"weights": numpy.full([100_000], float(step))}, {"step": step})
    print(step, flush=True)
"""
    generator = random.Random(17)
    last, killed_while_writing = 0, 0
    for _ in range(kills):
        process = child(body, tmp_path)
        process.stdout.readline()
        time.sleep(generator.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        printed = [int(line) for line in process.communicate(timeout=60)[0].split()]
        killed_while_writing += any(path.suffix == ".tmp" for path in tmp_path.iterdir())
        with warnings.catch_warnings(action="error"):  # valid at once, without a fall back
            found = Checkpoints(tmp_path).latest()
        last = max([last, *printed])
        assert found.step >= last  # at most the save under way is lost
        np.testing.assert_array_equal(found.arrays["weights"], np.full([100_000], float(found.step)))
        last = found.step
    assert killed_while_writing > 0, "no kill hit a save: the test would not have seen a bug"
    Checkpoints(tmp_path).save(last + 1, {}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step_{last:09d}.npz",
        f"step_{last + 1:09d}.npz",
    ]


def test_second_trainer_is_refused_until_the_first_is_dead(tmp_path):
    body = """
with checkpoint.WorkdirLock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
    import time; time.sleep(60)
"""
    process = child(body, tmp_path / "run")
    try:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(WorkdirBusyError, match=rf"run is in use by process {process.pid} on host \S+ since 2"):
            WorkdirLock(tmp_path / "run").__enter__()
    finally:
        process.kill()
        process.communicate(timeout=60)
    with WorkdirLock(tmp_path / "run"):  # no hand cleaning after kill -9
        with pytest.raises(WorkdirBusyError, match=f"process {os.getpid()} "):
            WorkdirLock(tmp_path / "run").__enter__()
    with WorkdirLock(tmp_path / "run"):
        pass


def test_lock_on_a_file_system_without_locks_names_the_path(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", FullDisk(None, errno.ENOLCK))
    with pytest.raises(OSError, match="train.lock"):
        WorkdirLock(tmp_path).__enter__()
    Checkpoints(tmp_path).save(1, {}, {})  # saving does not depend on locks
    assert Checkpoints(tmp_path).latest().step == 1
