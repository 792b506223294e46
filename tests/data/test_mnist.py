"""The embedded MNIST files."""

import importlib.resources
import lzma

import numpy as np
import pytest

from tfstruct.data import mnist


def test_images_and_labels_have_the_published_counts_and_sums():
    train, test = mnist.read("train"), mnist.read("test")
    assert train.shape == (60_000, 28, 28)
    assert test.shape == (10_000, 28, 28)
    # Sums over all pixels, known from the mean grey levels 33.318421 and 33.791225 of the two parts.
    assert round(train.sum(dtype=np.int64) / train.size, 6) == 33.318421
    assert round(test.sum(dtype=np.int64) / test.size, 6) == 33.791224
    counts = np.bincount(mnist.read("train", "labels"))
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.read("test", "labels")[:5].tolist() == [7, 2, 1, 0, 4]


def test_the_shared_arrays_cannot_be_written():
    assert not mnist.read("train").flags.writeable
    assert mnist.read("train") is mnist.read("train")


def test_the_embedded_files_stay_below_10_megabytes():
    folder = importlib.resources.files("tfstruct.data").joinpath("embedded")
    sizes = [len(entry.read_bytes()) for entry in folder.iterdir() if entry.name.endswith(".xz")]
    assert len(sizes) == 4
    assert sum(sizes) < 10_000_000


def test_an_unknown_part_names_the_four_files():
    with pytest.raises(ValueError, match="train images, train labels, test images, test labels; found validation"):
        mnist.read("validation")


def test_changed_content_is_refused_by_its_sha256():
    packed = lzma.compress(b"other bytes")
    with pytest.raises(ValueError, match="train.xz is damaged: its content has sha256 .* expected 00"):
        mnist.unpack(packed, "00", "train.xz")


def test_a_truncated_file_is_refused():
    with pytest.raises(ValueError, match=r"train.xz is damaged \("):
        mnist.unpack(lzma.compress(b"content")[:-9], "00", "train.xz")


def test_idx_headers_are_checked():
    content = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes(range(6))
    np.testing.assert_array_equal(mnist.parse_idx(content, "a"), [[0, 1, 2], [3, 4, 5]])
    with pytest.raises(ValueError, match=r"a declares the shape \(2, 3\) but holds 5 values"):
        mnist.parse_idx(content[:-1], "a")
    with pytest.raises(ValueError, match="not an idx file of unsigned bytes: it starts with 00000d02"):
        mnist.parse_idx(bytes([0, 0, 13, 2]) + content[4:], "a")
    with pytest.raises(ValueError, match="not an idx file"):
        mnist.parse_idx(content[:7], "a")
