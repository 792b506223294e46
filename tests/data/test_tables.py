"""Tables of numbers and folders of images as data: what is read, and what is refused with which words."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow as tf

from tfstruct.data import load
from tfstruct.serving.images import ImageInput


def _load(path):
    return load("file", "none", data_file=path)


def _all(data):
    rows = np.concatenate([data.train, data.validation, data.test])
    return rows[np.lexsort(rows.reshape(len(rows), -1).T[::-1])]


def test_csv_and_parquet_give_the_rows_that_an_array_gives(tmp_path):
    rows = np.stack([np.linspace(-3.0, 5.0, 40), np.arange(40.0)], axis=1)
    np.save(tmp_path / "rows.npy", rows)
    (tmp_path / "rows.csv").write_text("a,b\n" + "".join(f"{one!r},{int(two)}\n" for one, two in rows.tolist()))
    pa.parquet.write_table(pa.table({"a": rows[:, 0], "b": rows[:, 1].astype(np.int64)}), tmp_path / "rows.parquet")
    expected = _load(tmp_path / "rows.npy")
    assert expected.support == "real"
    for name in ("rows.csv", "rows.parquet"):
        assert _load(tmp_path / name).checksum == expected.checksum


def test_columns_of_integers_and_booleans_stay_whole_numbers(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n" + "0,true\n1,false\n" * 10)
    data = _load(tmp_path / "rows.csv")
    assert (data.support, data.train.dtype) == ("binary", np.uint8)


@pytest.mark.parametrize(
    ("text", "words"),
    [("a,b\n1,x\n2,y\n3,z\n", "column 'b' holds string; expected numbers"),
     ("a,b\n1,1\n2,\n3,\n", "column 'b' has 2 missing values, first in row 1"),
     ("a;b\n1;x\n2;y\n", "leave the column out, or separate columns by commas and not by ';'"),
     ("a,b\n", "has columns and no rows"),
     ("a,b\n1,1\n2\n", "cannot be read as a table of numbers"), ("", "cannot be read as a table of numbers")],
)  # fmt: skip
def test_a_table_that_is_not_all_numbers_is_refused_by_column(text, words, tmp_path):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        _load(tmp_path / "rows.csv")


def _write_images(folder, images):
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        content = tf.io.encode_png(image if image.ndim == 3 else image[..., np.newaxis]).numpy()
        (folder / f"{number:03}.png").write_bytes(content)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 3)])
def test_a_folder_of_images_with_subfolders_is_one_data_set(shape, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, *shape), dtype=np.uint8)
    _write_images(tmp_path / "images/one", images[:8])
    _write_images(tmp_path / "images/two", images[8:])
    np.save(tmp_path / "rows.npy", images)
    data = _load(tmp_path / "images")
    assert data.support == "integers_0_255"
    assert data.checksum == _load(tmp_path / "rows.npy").checksum


def test_a_folder_of_splits_keeps_them(tmp_path):
    images = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
    for split, rows in (("train", images[:3]), ("validation", images[3:4]), ("test", images[4:])):
        _write_images(tmp_path / "images" / split, rows)
    data = _load(tmp_path / "images")
    np.testing.assert_array_equal(data.train, images[:3])
    np.testing.assert_array_equal(data.test, images[4:])


def test_images_that_do_not_go_together_are_named(tmp_path):
    _write_images(tmp_path / "images", [np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8)])
    with pytest.raises(
        ValueError, match=r"one size; .*000.png' has \(2, 2\), .*001.png' \(2, 3\).*event_shape=\(2,2\)"
    ):
        _load(tmp_path / "images")
    (tmp_path / "images/001.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="001.png' is not a PNG or JPEG image"):
        _load(tmp_path / "images")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty' holds no images"):
        _load(tmp_path / "empty")


def test_an_event_shape_resizes_images_as_a_served_model_does(tmp_path):
    rng = np.random.default_rng(0)
    _write_images(tmp_path / "images", [rng.integers(0, 256, shape, dtype=np.uint8) for shape in [(6, 9), (4, 4)] * 5])
    data = load("file", "none", data_file=tmp_path / "images", event_shape=(3, 3))
    assert (data.event_shape, data.train.dtype) == ((3, 3), np.uint8)
    files = [path.read_bytes() for path in sorted((tmp_path / "images").iterdir())]
    served = (
        ImageInput.of((3, 3), "integers_0_255", "none").decode(tf.constant(files), tf.zeros([10], tf.int64)).numpy()
    )
    rows = np.concatenate([data.train, data.validation, data.test])
    np.testing.assert_array_equal(np.sort(rows.reshape(10, -1), axis=0), np.sort(served.reshape(10, -1), axis=0))


def test_transparency_is_left_out_and_the_first_image_says_whether_there_are_colours(tmp_path):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (5, 2, 2, 4), dtype=np.uint8)
    _write_images(tmp_path / "images", [*colours, colours[0, ..., 0]])
    data = _load(tmp_path / "images")
    assert data.event_shape == (2, 2, 3)
    rows = np.concatenate([data.train, data.validation, data.test])
    assert any((row == colours[0, ..., :3]).all() for row in rows)
    assert any((row == colours[0, ..., :1]).all() for row in rows)


@pytest.mark.parametrize("rows", [np.arange(480).reshape(shape) % 256 for shape in ([10, 48], [10, 4, 4, 3])])
def test_colours_that_became_grey_are_read_again_by_the_shape_of_the_grey_rows(rows, tmp_path):
    np.save(tmp_path / "rows.npy", rows)
    first = load("file", "dynamic", data_file=tmp_path / "rows.npy", event_shape=(4, 4, 3))
    assert first.event_shape == (4, 4)
    again = load("file", "dynamic", data_file=tmp_path / "rows.npy", event_shape=first.event_shape)
    assert again.checksum == first.checksum
    with pytest.raises(ValueError, match=r"event_shape \(4, 4\) does not fit"):
        load("file", "levels", data_file=tmp_path / "rows.npy", event_shape=(4, 4))


def test_a_csv_file_without_names_loses_no_row(tmp_path):
    (tmp_path / "rows.csv").write_text("".join(f"{number},{number / 2}\n" for number in range(20)))
    data = _load(tmp_path / "rows.csv")
    rows = np.concatenate([data.train, data.validation, data.test])
    np.testing.assert_array_equal(np.sort(rows[:, 0]), np.arange(20.0))
