"""Tables of numbers and folders of images as data: what is read, and what is refused with which words."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow as tf

from tfstruct.data import load


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
    with pytest.raises(ValueError, match=r"one size .*000.png' has \(2, 2\), .*001.png' \(2, 3\)"):
        _load(tmp_path / "images")
    (tmp_path / "images/001.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="001.png' is not a PNG or JPEG image"):
        _load(tmp_path / "images")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty' holds no images"):
        _load(tmp_path / "empty")
