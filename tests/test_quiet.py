"""What TensorFlow writes at its start is held back, and nothing else."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tfstruct import quiet

NOISE = b"I0000 00:00:1795399458.081701   28895 port.cc:153] oneDNN custom operations are on.\n"
NO_GPU = b"E0000 00:00:1795399467.191642   28897 cuda_platform.cc:52] failed call to cuInit: UNKNOWN ERROR (303)\n"
FAULT = b"E0000 00:00:1795399467.191642   28897 file.cc:52] a fault\n"


_FAKE = f"""
import os, sys, types
os.write(2, {NOISE!r} + {NO_GPU!r})
os.write(2, {FAULT!r})
if os.environ.get("FAIL"): raise ImportError("no such library")
if os.environ.get("WAIT"):
    import pathlib, time
    pathlib.Path(os.environ["WAIT"]).touch()
    time.sleep(60)
config = types.SimpleNamespace(list_physical_devices=lambda: [])
"""
_SCRIPT = "from tfstruct import quiet; quiet.import_tensorflow(); import os; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"


@pytest.mark.parametrize(
    ("changes", "level", "is_heard"),
    [({}, "2", False), ({"TF_CPP_MIN_LOG_LEVEL": "3"}, "3", False), ({"TF_CPP_MIN_LOG_LEVEL": "0"}, "0", True),
     ({"FAIL": "1"}, None, True)],
)  # fmt: skip
def test_noise_is_held_back_unless_wanted_or_the_import_fails(changes, level, is_heard, tmp_path):
    (tmp_path / "tensorflow.py").write_text(_FAKE)
    environment = {name: value for name, value in os.environ.items() if name != quiet.LOG_LEVEL}
    environment |= {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), **changes}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ("oneDNN" in done.stderr) == is_heard, done.stderr
    assert "a fault" in done.stderr
    assert (done.stdout.strip() or None) == level


def test_a_program_that_is_interrupted_while_tensorflow_is_imported_ends_with_one_line(tmp_path):
    (tmp_path / "tensorflow.py").write_text(_FAKE)
    process = subprocess.Popen(
        [sys.executable, "-m", "tfstruct.trainers.train", "--list_presets"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "WAIT": str(tmp_path / "begun")},
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores Ctrl-C, and so does all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "\ntrain.py: interrupted\n"


def write(*lines):
    for line in lines:
        os.write(2, line)


def test_only_noise_is_held_back(capfd, monkeypatch):
    monkeypatch.setattr(quiet.os.path, "exists", lambda path: False)
    with quiet.without_noise():
        write(NOISE, FAULT, NO_GPU, b"of another thread\n")
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == (FAULT + b"of another thread\n").decode()


def test_a_gpu_that_does_not_start_is_no_noise(monkeypatch):
    monkeypatch.setattr(quiet.os.path, "exists", lambda path: path == "/dev/nvidia0")
    assert not quiet.is_noise(NO_GPU)
    assert quiet.is_noise(NOISE)


def test_everything_is_shown_when_the_import_fails(capfd):
    @quiet.without_noise()
    def fail():
        write(NOISE)
        raise ImportError("no such library")

    with pytest.raises(ImportError, match="no such"):
        fail()
    assert capfd.readouterr().err == NOISE.decode()
