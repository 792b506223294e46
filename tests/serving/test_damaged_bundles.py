"""A bundle of which a file is cut, changed, missing or added is refused, and the message names the file."""

import os
import time

import numpy as np
import pytest

import tfstruct
from tests.trainers import tiny
from tfstruct import files
from tfstruct.serving import verification
from tfstruct.serving.contents import DamagedBundleError, verify_files


def test_an_undamaged_copy_verifies(copy):
    verification.verify(copy)


def damaged(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        return bytes(content[:-1])
    content[len(content) // 2] ^= 1
    return bytes(content)


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_file_that_is_cut_or_has_one_flipped_bit_is_detected_and_named(copy, how):
    names = [name for name in tiny.files_of(copy) if name != "SHA256SUMS"]
    assert len(names) >= 5
    for name in names:
        path = copy / name
        before = path.read_bytes()
        if not before:
            continue
        path.write_bytes(damaged(path, how))
        with pytest.raises(DamagedBundleError, match="does not have the checksum") as error:
            verification.verify(copy)
        assert name in str(error.value)
        path.write_bytes(before)
    verify_files(copy)


def test_a_missing_file_is_detected_and_named(copy):
    for name in [name for name in tiny.files_of(copy) if name != "SHA256SUMS"]:
        (copy / name).rename(copy.parent / "aside")
        with pytest.raises(DamagedBundleError, match="is missing") as error:
            verification.verify(copy)
        assert name in str(error.value)
        (copy.parent / "aside").rename(copy / name)
    (copy / "SHA256SUMS").unlink()
    with pytest.raises(DamagedBundleError, match="has no SHA256SUMS"):
        verification.verify(copy)


@pytest.mark.parametrize("name", ["extra.txt", "variables/extra", "assets/deep/er.bin", "variables/SHA256SUMS"])
def test_an_added_file_is_detected_and_named(copy, name):
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / name).write_bytes(b"x")
    with pytest.raises(DamagedBundleError, match="not listed") as error:
        verification.verify(copy)
    assert name in str(error.value)


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_damaged_checksums_are_detected(copy, how):
    path = copy / "SHA256SUMS"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if how == "truncated" else damaged(path, how))
    with pytest.raises(DamagedBundleError):
        verification.verify(copy)


def test_every_flipped_bit_of_the_checksums_is_detected(copy):
    path = copy / "SHA256SUMS"
    content = path.read_bytes()
    for place in range(0, len(content)):
        for bit in (0, 2, 5, 7) if place % 7 else range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(DamagedBundleError):
                verify_files(copy)
    path.write_bytes(content)
    verify_files(copy)


@pytest.mark.parametrize(
    "name", ["SHA256SUMS", "card.json", "golden.npz", "saved_model.pb", "assets.extra/tf_serving_warmup_requests"]
)
def test_files_that_would_fill_the_memory_are_refused_before_they_are_read(copy, name):
    os.truncate(copy / name, 3 * 2**30)  # of zeros that take no place
    started = time.monotonic()
    with pytest.raises(DamagedBundleError, match=f"{name} has 3,221,225,472 bytes, expected at most"):
        verify_files(copy)
    assert time.monotonic() - started < 1.0


def test_golden_values_that_would_fill_the_memory_are_refused_before_they_are_read(copy):
    np.savez_compressed(copy / "golden.npz", x=np.zeros(2**28 + 1, np.uint8), seed=np.zeros(1, np.int64))
    files.write_checksums(copy)
    assert (copy / "golden.npz").stat().st_size < 2**20
    with pytest.raises(DamagedBundleError, match=r"golden.* not what an export writes: .x. has 268,435,457 bytes"):
        verification.verify(copy)


def test_a_bundle_of_other_weights_does_not_give_its_golden_values(trained, copy):
    golden = dict(np.load(copy / "golden.npz"))
    golden["log_prob/log_prob"] = golden["log_prob/log_prob"] + np.float32(0.01)
    np.savez(copy / "golden.npz", **golden)
    files.write_checksums(copy)
    verify_files(copy)
    with pytest.raises(DamagedBundleError, match="signature log_prob does not give its golden log_prob"):
        verification.verify(copy)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"{", b"\xff", b"3"])
def test_a_card_that_is_no_card_is_damaged_whatever_its_checksum(copy, content):
    (copy / "card.json").write_bytes(content)
    files.write_checksums(copy)
    for check in (tfstruct.load, verification.verify):
        with pytest.raises(DamagedBundleError, match=r"card.json"):
            check(copy)


# Bug seen: TensorFlow's own error, of 40 lines.
@pytest.mark.parametrize("name", ["variables/variables.index", "variables/variables.data-00000-of-00001"])
def test_variables_that_are_damaged_are_damage_whatever_their_checksum(copy, name):
    path = copy / name
    path.write_bytes(damaged(path, "flipped") if name.endswith("index") else path.read_bytes()[:-8])
    files.write_checksums(copy)
    for check in (tfstruct.load, verification.verify):
        with pytest.raises(DamagedBundleError, match="copy cannot be loaded: "):
            check(copy)


@pytest.mark.parametrize("name", ["card.json", "saved_model.pb", "golden.npz"])
def test_a_pipe_that_is_on_no_list_is_not_waited_for(copy, name):
    (copy / name).unlink()
    os.mkfifo(copy / name)
    files.write_checksums(copy)
    for check in (tfstruct.load, verification.verify):
        with pytest.raises(DamagedBundleError, match=f"{name} is no file"):
            check(copy)


# Bug seen: the process ended by a segmentation fault.
@pytest.mark.parametrize("length", [2**62, 2**40, 1_000_000])
def test_a_warmup_record_that_says_that_it_is_huge_is_damaged(copy, length):
    path = copy / "assets.extra/tf_serving_warmup_requests"
    path.write_bytes(tiny.record_header(length) + b"abc")
    files.write_checksums(copy)
    with pytest.raises(DamagedBundleError, match="record 0 ends behind the file"):
        verification.verify(copy)


@pytest.mark.parametrize(
    "values",
    [{"x": np.float32(1.0)}, {"x": np.zeros([0, 4], np.float32)}, {"x": np.zeros([2, 5], np.float32)},
     {"seed": np.zeros([3])}, {"log_prob/log_prob": np.array(["a"] * 3)}],
)  # fmt: skip
def test_golden_values_of_other_shapes_or_types_are_damage(copy, values):
    golden = dict(np.load(copy / "golden.npz"))
    np.savez(copy / "golden.npz", **(golden | values))
    files.write_checksums(copy)
    with pytest.raises(DamagedBundleError, match="golden"):
        verification.verify(copy)
