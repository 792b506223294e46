"""User files: what is taken, how it is split, and what is refused with which words."""

import zipfile

import numpy as np
import pytest

from tfstruct.data import DatasetNotFoundError, files, load
from tfstruct.files import shaped

ROWS = np.arange(40 * 6).reshape(40, 2, 3)


def _saved(folder, rows, name="rows.npy"):
    np.save(folder / name, rows)
    return folder / name


def _load(path, variant="none", **options):
    return load("file", variant, data_file=path, **options)


def test_one_array_is_split_80_10_10_by_the_same_permutation_every_time(tmp_path):
    path = _saved(tmp_path, ROWS)
    data = _load(path)
    assert [len(data.split(name)) for name in ("train", "validation", "test")] == [32, 4, 4]
    rows = np.concatenate([data.train, data.validation, data.test])
    np.testing.assert_array_equal(np.sort(rows[:, 0, 0]), ROWS[:, 0, 0])
    assert (rows[:, 0, 0] != ROWS[:, 0, 0]).any()
    assert data.checksum == _load(path).checksum
    assert data.event_shape == (2, 3)
    assert data.dims == 6


def test_a_large_file_is_mapped_and_split_into_contiguous_blocks_without_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "STREAMED_BYTES", 0)
    data = _load(_saved(tmp_path, ROWS.astype(np.uint8)))
    assert isinstance(data.train, np.memmap)
    assert isinstance(data.test, np.memmap)
    np.testing.assert_array_equal(np.concatenate([data.train, data.validation, data.test]), ROWS)
    assert "contiguous blocks" in data.description


def test_dynamic_rows_of_a_mapped_file_of_bytes_stay_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "STREAMED_BYTES", 0)
    data = _load(_saved(tmp_path, ROWS.astype(np.uint8)), "dynamic")
    assert isinstance(data.train, np.memmap)
    assert data.validation.max() == 1


def test_mapped_intensities_of_another_type_become_bytes_before_they_are_binarised(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "STREAMED_BYTES", 0)
    data = _load(_saved(tmp_path, ROWS.astype(np.float64)), "dynamic")
    assert data.train.dtype == np.uint8
    np.testing.assert_array_equal(data.train, ROWS[:32])


@pytest.mark.parametrize("key", ["validation", "valid"])
def test_named_splits_are_kept_and_other_keys_ignored(tmp_path, key):
    np.savez(tmp_path / "rows.npz", **{"train": ROWS[:30], key: ROWS[30:35], "test": ROWS[35:], "labels": [1]})
    data = _load(tmp_path / "rows.npz")
    np.testing.assert_array_equal(data.train, ROWS[:30])
    np.testing.assert_array_equal(data.validation, ROWS[30:35])
    np.testing.assert_array_equal(data.test, ROWS[35:])


def test_a_single_array_in_an_archive_is_split(tmp_path):
    np.savez_compressed(tmp_path / "rows.npz", x=ROWS)
    assert len(_load(tmp_path / "rows.npz").train) == 32


@pytest.mark.parametrize(
    ("rows", "support", "dtype", "offset"),
    [
        (ROWS % 2 == 0, "binary", np.uint8, 0.0),
        (ROWS % 2.0, "binary", np.uint8, 0.0),
        (ROWS.astype(np.int64), "integers_0_255", np.uint8, 0.0),
        (ROWS / 240.0, "unit_interval", np.float32, None),
        (ROWS - 5, "real", np.float32, None),
        ((ROWS / 7).astype(np.float16), "real", np.float32, None),
    ],
)
def test_values_decide_support_and_type(tmp_path, rows, support, dtype, offset):
    data = _load(_saved(tmp_path, rows))
    assert (data.support, data.train.dtype, data.bits_per_dim_offset) == (support, dtype, offset)
    assert data.train_transform == "cast"


def test_variants_apply_to_intensities(tmp_path):
    path = _saved(tmp_path, ROWS.astype(np.uint8))
    assert _load(path, "dynamic").train_transform == "binarize"
    assert _load(path, "dequantized").train_transform == "dequantize"
    assert _load(path, "static").support == "binary"
    assert _load(_saved(tmp_path, ROWS / 240.0, "unit.npy"), "dynamic").support == "binary"


@pytest.mark.parametrize(
    ("rows", "variant", "message"),
    [
        (ROWS - 5, "dynamic", "whose values have the support real: .* possible besides: no variant but none"),
        (ROWS % 2, "static", "whose values have the support binary: `--set data.variant=none`"),
        (
            ROWS / 240.0,
            "dequantized",
            "the support unit_interval: .* besides: dynamic, static, thresholded, grey",
        ),
    ],
)
def test_a_variant_without_meaning_is_refused(tmp_path, rows, variant, message):
    with pytest.raises(ValueError, match=message):
        _load(_saved(tmp_path, rows), variant)


def test_event_shape_is_given_before_colour_becomes_grey(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (20, 48), np.uint8)
    data = _load(_saved(tmp_path, rows), "grey", event_shape=[4, 4, 3])
    assert data.event_shape == (4, 4)
    with pytest.raises(ValueError, match=r"event_shape \(5, 5\) does not fit rows of shape \(48,\)"):
        _load(tmp_path / "rows.npy", event_shape=[5, 5])


@pytest.mark.parametrize(
    ("shape", "event_shape", "is_clear"),
    [
        ((4, 6), (24,), True),
        ((24,), (4, 6), True),
        ((4, 6), (4, 6, 1), True),
        ((4, 6, 1), (4, 6), True),
        ((1, 24), (24, 1), True),
        ((3, 4, 5), (4, 5, 3), False),  # channels first
        ((4, 6), (6, 4), False),
        ((1, 4, 6), (4, 6, 1), True),
        ((2, 2, 6), (4, 6), False),
    ],
)
def test_rows_take_another_shape_only_where_it_is_clear_which_value_goes_where(tmp_path, shape, event_shape, is_clear):
    rows = np.random.default_rng(0).integers(0, 2, (20, *shape), np.uint8)
    path = _saved(tmp_path, rows)
    if is_clear:
        np.testing.assert_array_equal(shaped(rows, event_shape), rows.reshape(20, *event_shape))
        assert _load(path, event_shape=event_shape).event_shape == event_shape
    else:
        with pytest.raises(ValueError, match=r"the same number of values in another order: bring them to"):
            _load(path, event_shape=event_shape)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.arange(20.0), r"has shape \(20,\); expected \[n, \*event\]"),
        (np.zeros((0, 4)), r"is empty: shape \(0, 4\)"),
        (np.zeros((4, 0)), r"is empty: shape \(4, 0\)"),
        (np.zeros((2, 4)), "has 2 rows; expected at least 3"),
        (np.zeros((20, 4), np.complex64), "elements of type complex64; expected booleans, integers or real"),
        (np.full((20, 4), "a"), "elements of type <U1"),
        (np.full((20, 4), None), "cannot be read as arrays of numbers: Object arrays cannot be loaded"),
    ],
)
def test_unusable_arrays_are_refused_with_what_was_found(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        _load(_saved(tmp_path, rows))


def test_missing_values_are_counted_and_the_first_row_named(tmp_path):
    rows = ROWS.astype(np.float32)
    rows[17, 0, 1], rows[23] = np.nan, np.inf
    with pytest.raises(ValueError, match="has 7 values that are NaN or infinite, first in row 17"):
        _load(_saved(tmp_path, rows))


def test_splits_of_different_events_are_refused(tmp_path):
    np.savez(tmp_path / "rows.npz", train=ROWS, validation=ROWS, test=ROWS[:, :1])
    with pytest.raises(ValueError, match=r"different event shapes: train \(2, 3\), .* test \(1, 3\)"):
        _load(tmp_path / "rows.npz")


def test_archives_without_the_three_splits_name_the_keys_found(tmp_path):
    np.savez(tmp_path / "rows.npz", train=ROWS, other=ROWS)
    with pytest.raises(ValueError, match="has the keys train, other; expected train, validation"):
        _load(tmp_path / "rows.npz")
    np.savez(tmp_path / "train.npz", train=ROWS)
    with pytest.raises(ValueError, match="has the keys train; expected"):
        _load(tmp_path / "train.npz")


def test_objects_in_an_archive_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.array([[{}]] * 20, dtype=object))
    with pytest.raises(ValueError, match="cannot be read as arrays of numbers: Object arrays"):
        _load(tmp_path / "rows.npz")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_files_that_are_something_else_are_refused(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(b"not an array at all")
    with pytest.raises(ValueError, match="cannot be read as arrays of numbers"):
        _load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read as arrays of numbers"):
        _load(path)


def test_a_suffix_that_does_not_fit_the_content_is_refused(tmp_path):
    np.savez(tmp_path / "rows.npz", x=ROWS)
    (tmp_path / "rows.npz").rename(tmp_path / "rows.npy")
    with pytest.raises(ValueError, match="holds NpzFile, which its suffix .npy does not announce"):
        _load(tmp_path / "rows.npy")
    _saved(tmp_path, ROWS).rename(tmp_path / "rows.npz")
    with pytest.raises(ValueError, match="holds ndarray, which its suffix .npz does not announce"):
        _load(tmp_path / "rows.npz")


def test_missing_files_and_other_suffixes_are_named(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="rows.npy' does not exist"):
        _load(tmp_path / "rows.npy")
    with pytest.raises(ValueError, match=".npy, .npz, .csv, .parquet or is a folder of images, found .*rows.txt"):
        _load(tmp_path / "rows.txt")


# What is larger than it seems -----------------------------------------------------------------------------------------


def _declare(path, shape):
    """Writes a .npz file of one array, of which the header says another shape than it has."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("rows.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
        member.write(bytes(240))


@pytest.mark.parametrize("shape", [(10**12, 6), (39, 6), (41, 6)])
def test_an_array_of_another_size_than_it_says_is_refused_before_memory_is_taken(tmp_path, shape):
    _declare(tmp_path / "rows.npz", shape)
    with pytest.raises(ValueError, match=rf"rows.npz.*'rows' says that it has {np.prod(shape):,} bytes, found 240"):
        _load(tmp_path / "rows.npz")
    _declare(tmp_path / "rows.npz", (40, 6))
    assert len(_load(tmp_path / "rows.npz").train) == 32


def test_an_array_that_would_not_fit_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "rows.npz", np.zeros([1000, 1000]))
    assert (tmp_path / "rows.npz").stat().st_size < 20_000
    monkeypatch.setattr(files, "LARGEST_BYTES", 7_999_999)
    with pytest.raises(ValueError, match="has 8,000,000 bytes, expected at most 7,999,999"):
        _load(tmp_path / "rows.npz")


@pytest.mark.parametrize("value", [1e39, -1e300])
def test_numbers_that_float32_does_not_have_are_refused(tmp_path, value):
    rows = ROWS + 0.5
    rows[20, 1, 1] = value
    with pytest.raises(ValueError, match="values beyond those of float32"):
        _load(_saved(tmp_path, rows))


# Bug seen: a mapped file was not looked at.
def test_numbers_that_float32_does_not_have_are_refused_in_a_mapped_file_too(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "STREAMED_BYTES", 0)
    rows = ROWS + 0.5
    rows[20, 1, 1] = 1e300
    with pytest.raises(ValueError, match="values beyond those of float32"):
        _load(_saved(tmp_path, rows))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_split_is_looked_at(tmp_path, split):
    splits = {name: ROWS + 0.5 for name in ("train", "validation", "test")}
    splits[split][3, 1, 1] = 1e39
    np.savez(tmp_path / "rows.npz", **splits)
    with pytest.raises(ValueError, match=f"{split}' has values beyond those of float32"):
        _load(tmp_path / "rows.npz")


def test_a_small_file_that_says_that_it_is_huge_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "rows.npy"
    with open(path, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**9, 8)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(ValueError, match="ends 32,000,000,000 bytes before the end of its array"):
        _load(path)
