"""Rows of files, read a few at a time: the same from every format, and damage is told by the file's name."""

import io
import tracemalloc
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tests.trainers import tiny
from tfstruct.data import sources

NUM, SHAPE = 23, (3, 4)


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(5).integers(0, 256, [NUM, *SHAPE]).astype(np.uint8)


def encoded(rows):
    return [tf.io.encode_png(row[..., None]).numpy() for row in rows]


def example(**features):
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def numbers(row):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=row.reshape(-1)))


def written(*values):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def write_records(path, records, kind=""):
    with tf.io.TFRecordWriter(str(path), kind) as writer:
        for record in records:
            writer.write(record)


def of_parquet(path, columns):
    pq.write_table(pa.table(columns), path, row_group_size=7)


def fixed_lists(rows):
    """Rows as lists of a fixed size, one level for each axis."""
    values = pa.array(rows.reshape(-1))
    for size in reversed(rows.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, size)
    return values


FORMATS = {
    "rows.npy": lambda path, rows: np.save(path, rows),
    "rows.npz": lambda path, rows: np.savez(path, rows),
    "several.npz": lambda path, rows: np.savez(path, label=np.arange(NUM), x=rows),
    "packed.npz": lambda path, rows: np.savez_compressed(path, rows.astype(np.float32)),
    "rows.tfrecord": lambda path, rows: write_records(path, [example(x=numbers(row)) for row in rows]),
    "rows.tfrecord.gz": lambda path, rows: write_records(path, [example(x=numbers(row)) for row in rows], "GZIP"),
    "bytes.tfrecord-00000-of-00001": lambda path, rows: write_records(
        path, [example(x=written(row.tobytes()), label=written(b"?")) for row in rows]
    ),
    "flat.parquet": lambda path, rows: of_parquet(path, {"x": list(rows.reshape(NUM, -1)), "label": np.arange(NUM)}),
    "nested.parquet": lambda path, rows: of_parquet(path, {"x": [row.tolist() for row in rows]}),
    "fixed.parquet": lambda path, rows: of_parquet(path, {"x": fixed_lists(rows.reshape(NUM, -1))}),
    "nested_fixed.parquet": lambda path, rows: of_parquet(path, {"x": fixed_lists(rows)}),
    "table.parquet": lambda path, rows: of_parquet(path, {f"x{i}": rows.reshape(NUM, -1)[:, i] for i in range(12)}),
}
WITH_KEY = {"several.npz", "bytes.tfrecord-00000-of-00001", "flat.parquet"}
IMAGE_FORMATS = {
    "images.tfrecord": lambda path, rows: write_records(path, [example(x=written(file)) for file in encoded(rows)]),
    "images.parquet": lambda path, rows: of_parquet(path, {"x": encoded(rows)}),
    "structs.parquet": lambda path, rows: of_parquet(path, {"x": [{"bytes": f, "path": ""} for f in encoded(rows)]}),
}


def find(path, key=None):
    (source,) = sources.find([str(path)], key, SHAPE)
    return source


@pytest.mark.parametrize("name", FORMATS)
def test_any_rows_are_read_of_any_format(name, rows, tmp_path):
    FORMATS[name](tmp_path / name, rows)
    source = find(tmp_path / name, "x" if name in WITH_KEY else None)
    assert source.num_rows == NUM
    for start, stop in ((0, NUM), (0, 1), (6, 15), (NUM - 1, NUM)):
        found = source.read(start, stop)
        assert found.shape == (stop - start, *SHAPE)
        np.testing.assert_array_equal(found, rows[start:stop])


@pytest.mark.parametrize("names", ["", ",".join("abcdefghijkl")])
def test_tables_of_text_are_read(names, rows, tmp_path):
    np.savetxt(tmp_path / "rows.csv", rows.reshape(NUM, -1) / 4, "%.2f", ",", header=names, comments="")
    source = find(tmp_path / "rows.csv")
    assert source.num_rows == NUM
    for start, stop in ((0, NUM), (6, 15), (NUM - 1, NUM)):
        np.testing.assert_array_equal(source.read(start, stop), rows[start:stop] / 4)


@pytest.mark.parametrize("name", IMAGE_FORMATS)
def test_encoded_images_are_read_as_they_are(name, rows, tmp_path):
    IMAGE_FORMATS[name](tmp_path / name, rows)
    source = find(tmp_path / name)
    assert source.read(5, 16) == encoded(rows[5:16])


def test_images_of_a_folder_stand_in_the_order_of_their_paths(rows, tmp_path):
    files = encoded(rows[:4])
    for name, file in zip(("b.png", "a/z.PNG", "c/a.png", "notes.txt"), files, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(file)
    source = find(tmp_path)
    assert source.num_rows == 3
    assert source.names(0, 3) == [str(tmp_path / name) for name in ("a/z.PNG", "b.png", "c/a.png")]
    assert source.read(1, 3) == [files[0], files[2]]
    assert find(tmp_path / "*.png").read(0, 1) == [files[0]]
    with pytest.raises(ValueError, match="stands for images and other files"):
        find(tmp_path / "*.*")


def test_files_of_a_pattern_follow_each_other(rows, tmp_path):
    for index in (2, 0, 1):
        np.save(tmp_path / f"{index}.npy", rows[index * 5 : index * 5 + 5])
    found = sources.find([str(tmp_path / "[12].npy"), str(tmp_path / "0.npy")], None, SHAPE)
    assert [source.path[-5:] for source in found] == ["1.npy", "2.npy", "0.npy"]


@pytest.mark.parametrize("name", ["rows.npy", "packed.npz", "rows.tfrecord", "nested.parquet"])
def test_files_of_other_file_systems_are_read(name, rows, tmp_path):
    """`ram://` is one that TensorFlow has of its own; gs:// goes the same way."""
    FORMATS[name](tmp_path / name, rows)
    tf.io.gfile.copy(str(tmp_path / name), f"ram://{name}", overwrite=True)
    source = find(f"ram://{name}")
    assert source.num_rows == NUM
    np.testing.assert_array_equal(source.read(6, 15), rows[6:15])


def test_a_large_file_is_not_read_to_read_a_few_rows(tmp_path):
    """Of 3 GB, of which the disk holds none but the last row."""
    mapped = np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.float64, (32_000_000, *SHAPE))
    mapped[-1] = 7.0
    del mapped
    tracemalloc.start()
    try:
        source = find(tmp_path / "large.npy")
        found = source.read(source.num_rows - 1000, source.num_rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found[-1].min() == 7.0
    assert found[:-1].max() == 0.0
    assert peak < 4 * found.nbytes + 2e6


def damaged_zip(path, rows):
    np.savez_compressed(path, rows)
    with zipfile.ZipFile(path) as archive:
        start = archive.infolist()[0].header_offset + 120
    content = bytearray(path.read_bytes())
    content[start : start + 20] = bytes(20)
    path.write_bytes(content)


def cut(name, length):
    def write(path, rows):
        FORMATS[name](path, rows)
        path.write_bytes(path.read_bytes()[:length])

    return write


def forged_header(shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


BAD = {
    ("cut.npy", "ends before row 6 of 23"): cut("rows.npy", 200),
    ("head.npy", "no readable .npy or .npz file"): cut("rows.npy", 30),
    ("damaged.npz", "no readable|is damaged"): damaged_zip,
    ("text.npz", "no readable .npz file"): lambda path, rows: path.write_text("PK nothing"),
    ("objects.npy", "elements of type object"): lambda path, rows: np.save(path, np.array([{}]), allow_pickle=True),
    ("fortran.npy", "Fortran order"): lambda path, rows: np.save(path, np.asfortranarray(rows)),
    ("wide.npy", r"shape \[N, 3, 4\] with N >= 1, found \[23, 4, 3\]"): lambda path, rows: np.save(
        path, rows.reshape(NUM, 4, 3)
    ),
    ("none.npy", r"found \[0, 3, 4\]"): lambda path, rows: np.save(path, rows[:0]),
    ("several.npz", "arrays label, x; choose one with --key"): FORMATS["several.npz"],
    ("cut.tfrecord", "damaged, or no TFRecord file"): cut("rows.tfrecord", 500),
    ("text.tfrecord", "damaged, or no TFRecord file"): lambda path, rows: path.write_text("nothing of the kind here"),
    ("plain.tfrecord", "no tf.train.Example"): lambda path, rows: write_records(path, [b"\xff\xff\xff"]),
    ("empty.tfrecord", "has no rows"): lambda path, rows: write_records(path, []),
    ("short.tfrecord", "row 1 has 11 values, expected 12"): lambda path, rows: write_records(
        path, [example(x=numbers(rows[0])), example(x=numbers(rows[1].reshape(-1)[1:]))]
    ),
    ("missing.tfrecord", "row 1 has 0 values of 'x'"): lambda path, rows: write_records(
        path, [example(x=numbers(rows[0])), example(y=numbers(rows[1]))]
    ),
    ("strings.tfrecord", "row 0 has 5 bytes, which are no PNG"): lambda path, rows: write_records(
        path, [example(x=written(b"hello"))]
    ),
    ("text.parquet", "no readable parquet file"): lambda path, rows: path.write_text("PAR1 nothing PAR1"),
    ("lists.parquet", "lists of 11, 12 values"): lambda path, rows: of_parquet(
        path, {"x": [rows[0].reshape(-1), rows[1].reshape(-1)[1:]]}
    ),
    ("forged.tfrecord", "record 0 ends behind the file"): lambda path, rows: path.write_bytes(
        tiny.record_header(2**62) + b"abc"
    ),
    ("forged.npy", "ends before row 0 of 1000000000000"): lambda path, rows: path.write_bytes(
        forged_header((10**12, *SHAPE))
    ),
    ("turned.parquet", r"does not fit rows of shape .4, 3.; the same number of values in another order"): (
        lambda path, rows: of_parquet(path, {"x": [row.T.tolist() for row in rows]})
    ),
    ("turned_fixed.parquet", r"does not fit rows of shape .4, 3.; the same number of values in another order"): (
        lambda path, rows: of_parquet(path, {"x": fixed_lists(rows.swapaxes(1, 2))})
    ),
    ("holes.parquet", "'x' has lists with missing values"): lambda path, rows: of_parquet(
        path, {"x": [[[1] * 4, None, [0] * 4]] * 3}
    ),
    ("null.parquet", "row 2 has no value in the column 'x'"): lambda path, rows: of_parquet(
        path, {"x": [rows[0].reshape(-1), rows[1].reshape(-1), None]}
    ),
    ("words.parquet", "numbers, lists or images is expected, found string"): lambda path, rows: of_parquet(
        path, {"x": ["a", "b"]}
    ),
    ("narrow.parquet", "event_shape .3, 4. does not fit"): lambda path, rows: of_parquet(path, {"x": [1, 2]}),
    ("rows.txt", "ends with none of .npy"): lambda path, rows: path.write_text("1,2"),
    ("narrow.csv", "narrow.csv has 2 columns, expected one a value of"): lambda path, rows: path.write_text("1,2\n3,4"),
    ("empty.csv", "no readable CSV file of numbers"): lambda path, rows: path.write_text(""),
}


@pytest.mark.parametrize(("name", "message"), BAD)
def test_what_cannot_be_read_is_told_with_the_name_of_the_file(name, message, rows, tmp_path):
    BAD[name, message](tmp_path / name, rows)
    with pytest.raises(ValueError, match=message) as raised:
        find(tmp_path / name).read(0, min(NUM, find(tmp_path / name).num_rows))
    assert name in str(raised.value)
    if "row " in message and name not in ("cut.npy", "forged.npy"):  # the same row, whichever is read first
        source = find(tmp_path / name)
        row = int(message.partition("row ")[2].partition(" ")[0])
        with pytest.raises(ValueError, match=message):
            source.read(row, source.num_rows)


def test_a_broken_image_among_others_is_left_to_whoever_scores_it(rows, tmp_path):
    files = encoded(rows[:3])
    files[1] = b"broken"
    write_records(tmp_path / "images.tfrecord", [example(x=written(file)) for file in files])
    assert find(tmp_path / "images.tfrecord").read(0, 3) == files


def test_names_that_are_not_there_are_told_with_near_ones(rows, tmp_path):
    FORMATS["several.npz"](tmp_path / "several.npz", rows)
    with pytest.raises(ValueError, match=r"no array 'lable'.*label"):
        find(tmp_path / "several.npz", "lable")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        find(tmp_path / "absent.npy")
    with pytest.raises(ValueError, match=r"has no .png, .jpg, .jpeg files"):
        find(tmp_path)


# Bug seen: a read with one such row gave all of its rows as images.
def test_rows_of_bytes_that_begin_like_an_image_are_rows(rows, tmp_path):
    rows = rows.copy()
    rows[20, 0, :3] = 0xFF, 0xD8, 0xFF
    write_records(tmp_path / "rows.tfrecord", [example(x=written(row.tobytes())) for row in rows])
    np.testing.assert_array_equal(find(tmp_path / "rows.tfrecord").read(18, NUM), rows[18:])


def test_a_broken_image_alone_in_a_read_is_left_to_whoever_scores_it(rows, tmp_path):
    files = [*encoded(rows[:3]), b"broken"]
    write_records(tmp_path / "images.tfrecord", [example(x=written(file)) for file in files])
    assert find(tmp_path / "images.tfrecord").read(3, 4) == [b"broken"]
