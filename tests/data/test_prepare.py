"""Files of every kind become one of their rows in random order, and nothing else."""

import numpy as np
import pytest
import tensorflow as tf

from tests.data.test_sources import FORMATS, IMAGE_FORMATS, NUM, SHAPE, WITH_KEY, encoded
from tests.trainers import tiny
from tfstruct import random
from tfstruct.data import prepare, sources, storage
from tfstruct.training.data import load_data


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(5).integers(0, 256, [NUM, *SHAPE]).astype(np.uint8)


@pytest.fixture
def few_at_a_time(monkeypatch):
    """Blocks of five rows."""
    monkeypatch.setattr(prepare, "BLOCK_BYTES", 5 * 4 * 12)


def prepared(tmp_path, *paths, key=None, event_shape=SHAPE, **options):
    found = sources.find([str(path) for path in paths], key, event_shape)
    return np.load(prepare.prepare(found, tmp_path / "prepared.npy", **options), mmap_mode="r")


def test_rows_stand_where_the_permutation_puts_them(rows, tmp_path, few_at_a_time):
    np.save(tmp_path / "a.npy", rows[:9])
    np.save(tmp_path / "b.npy", rows[9:])
    found = prepared(tmp_path, tmp_path / "a.npy", tmp_path / "b.npy", seed=3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[random.shuffled(3, 0, np.arange(NUM), NUM)], rows)
    assert not np.array_equal(found, rows)


@pytest.mark.parametrize("name", [*FORMATS, *IMAGE_FORMATS, "rows.csv", "nameless.csv"])
def test_every_format_gives_the_same_file(name, rows, tmp_path, few_at_a_time):
    formats = FORMATS | IMAGE_FORMATS
    flat = rows.reshape(NUM, -1)
    formats["rows.csv"] = lambda path, _: np.savetxt(
        path, flat, "%d", ",", header=",".join("abcdefghijkl"), comments=""
    )
    formats["nameless.csv"] = lambda path, _: np.savetxt(path, flat, "%.1f", ",")
    formats[name](tmp_path / name, rows)
    found = prepared(tmp_path, tmp_path / name, key="x" if name in WITH_KEY else None)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[random.shuffled(0, 0, np.arange(NUM), NUM)], rows)


def test_images_of_a_folder_are_resized_by_area_averages(rows, tmp_path):
    for number, row in enumerate(rows[:6]):
        large = np.kron(row, np.ones([2, 2], np.uint8))
        (tmp_path / f"{number}.png").write_bytes(encoded(large[None])[0])
    found = prepared(tmp_path, tmp_path)
    np.testing.assert_array_equal(found[random.shuffled(0, 0, np.arange(6), 6)], rows[:6])
    with pytest.raises(ValueError, match="event shape of height, width"):
        prepare.prepare(sources.find([str(tmp_path / "*.png")], None, (12,)), tmp_path / "flat.npy")


def test_a_smaller_image_has_the_means_of_the_areas(tmp_path):
    large = np.random.default_rng(2).integers(0, 256, [12, 16]).astype(np.uint8)
    (tmp_path / "0.png").write_bytes(encoded(large[None])[0])
    means = large.reshape(3, 4, 4, 4).mean(axis=(1, 3))
    np.testing.assert_array_equal(prepared(tmp_path, tmp_path)[0], np.rint(means))


def test_a_missing_value_far_down_a_table_is_named_by_its_row(tmp_path):
    lines = ["1.25,2.5"] * 300_000  # several blocks of the reader
    lines[290_000] = "1.25,"
    (tmp_path / "rows.csv").write_text("\n".join(["a,b", *lines]))
    with pytest.raises(ValueError, match=r"row 290000 has no value in the column 'b'"):
        prepared(tmp_path, tmp_path / "rows.csv", event_shape=(2,))


def test_more_rows_than_can_be_put_in_order_are_refused(tmp_path):
    mapped = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.uint8, (2**32 + 1, 1))  # the disk holds none
    del mapped
    with pytest.raises(ValueError, match="at most 4,294,967,296 rows are put in order, found 4,294,967,297"):
        prepared(tmp_path, tmp_path / "rows.npy", event_shape=(1,))


def test_real_numbers_are_float32(tmp_path):
    values = np.random.default_rng(0).normal(size=[40, 3])
    np.save(tmp_path / "rows.npy", values)
    found = prepared(tmp_path, tmp_path / "rows.npy", event_shape=(3,))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[random.shuffled(0, 0, np.arange(40), 40)], values.astype(np.float32))


@pytest.mark.parametrize(("bad", "dtype", "match"), [
    (np.nan, None, r"rows\.npy, row 31 holds others than finite numbers"),
    (np.inf, "float32", r"row 31 holds others than finite numbers"),
    (1e39, "float32", r"row 31 holds others than finite numbers"),
    (0.5, "uint8", r"row 31 holds others than whole numbers in 0..255, as rows before it; --dtype=float32"),
    (-1.0, "uint8", r"row 31 holds others than whole numbers"),
    (256.0, None, r"row 31 holds others than whole numbers"),
])  # fmt: skip
def test_rows_that_cannot_be_held_are_named_and_nothing_is_written(tmp_path, few_at_a_time, bad, dtype, match):
    values = np.full([40, *SHAPE], 0.25 if dtype is None and bad != 256.0 else 7.0)
    values[31, 1, 2] = bad
    np.save(tmp_path / "rows.npy", values)
    with pytest.raises(ValueError, match=match):
        prepared(tmp_path, tmp_path / "rows.npy", dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.npy"]


def test_broken_images_and_missing_values_are_named(rows, tmp_path):
    (tmp_path / "images").mkdir()
    for number, content in enumerate([*encoded(rows[:2]), b"\x89PNG no image"]):
        (tmp_path / "images" / f"{number}.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"images/2\.png is not a PNG or JPEG image: (?!.*function_node)"):
        prepared(tmp_path, tmp_path / "images")
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n3,\n")
    with pytest.raises(ValueError, match=r"rows\.csv, row 1 has no value in the column 'b'"):
        prepared(tmp_path, tmp_path / "rows.csv", event_shape=(2,))
    (tmp_path / "text.csv").write_text("a,b\n1,2\n3,x\n")
    with pytest.raises(ValueError, match=r"text\.csv is no readable CSV file of numbers.*'x'"):
        prepared(tmp_path, tmp_path / "text.csv", event_shape=(2,))
    with pytest.raises(ValueError, match=r"rows\.csv has 2 columns, expected one a value of \(3,\)"):
        prepared(tmp_path, tmp_path / "rows.csv", event_shape=(3,))


def test_what_is_there_is_not_overwritten(rows, tmp_path):
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(FileExistsError, match="nothing was written"):
        prepare.prepare(sources.find([str(tmp_path / "rows.npy")], None, SHAPE), tmp_path / "rows.npy")
    with pytest.raises(ValueError, match=r"must end with \.npy, found 'rows\.npz'"):
        prepare.prepare(sources.find([str(tmp_path / "rows.npy")], None, SHAPE), tmp_path / "rows.npz")
    with pytest.raises(ValueError, match="must be a file of this machine, which training maps, found 'ram://rows.npy'"):
        prepare.prepare(sources.find([str(tmp_path / "rows.npy")], None, SHAPE), "ram://rows.npy")


def test_records_are_read_in_one_pass(rows, tmp_path, few_at_a_time, monkeypatch):
    FORMATS["rows.tfrecord"](tmp_path / "rows.tfrecord", rows)
    (source,), opened = sources.find([str(tmp_path / "rows.tfrecord")], None, SHAPE), []
    records = tf.data.TFRecordDataset
    monkeypatch.setattr(
        tf.data, "TFRecordDataset", lambda *args, **options: opened.append(1) or records(*args, **options)
    )
    np.testing.assert_array_equal(np.concatenate(list(source.blocks(4))), rows)
    assert len(opened) <= 3  # the rows, and the first ones to know the feature and what it holds


@pytest.mark.parametrize("name", ["rows.npy", "several.npz", "packed.npz", "nested.parquet", "table.parquet"])
def test_arrays_and_columns_are_read_in_one_pass(name, rows, tmp_path, monkeypatch):
    FORMATS[name](tmp_path / name, rows)
    (source,) = sources.find([str(tmp_path / name)], "x" if name in WITH_KEY else None, SHAPE)
    assert source.num_rows == NUM
    opened, reading = [], storage.reading
    monkeypatch.setattr(storage, "reading", lambda path: opened.append(path) or reading(path))
    np.testing.assert_array_equal(np.concatenate(list(source.blocks(4))), rows)
    assert len(opened) == 1


def test_the_program_prepares_what_training_takes(tmp_path):
    np.savetxt(tmp_path / "rows.csv", np.random.default_rng(0).integers(0, 2, [200, 4]), "%d", ",")
    paths = f"--input={tmp_path / 'rows.csv'}", f"--output={tmp_path / 'rows.npy'}"
    done = tiny.run_program("prepare", *paths, "--event_shape=4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("200 rows of [4], uint8, 0.0 MB: ")
    assert load_data(tiny.file_config(tmp_path / "rows.npy")).train.shape == (160, 4)
    done = tiny.run_program("prepare", *paths, "--event_shape=4")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "exists already; nothing was written" in done.stderr
    done = tiny.run_program("prepare", *paths, "--event_shape=2x2")
    assert "--event_shape is of sizes, such as 28,28, found '2x2'" in done.stderr
