"""User data in other files than NumPy's: tables of numbers (CSV, parquet) and folders of images, as arrays."""

import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import tensorflow as tf

from tfstruct.data import images
from tfstruct.data.column_files import are_numbers
from tfstruct.data.variants import SPLITS

TABLES = (".csv", ".parquet")
_IMAGES = (".png", ".jpg", ".jpeg")


def read_table(path: pathlib.Path) -> np.ndarray:
    """Reads a CSV file, whose first line names the columns unless it is one of numbers, or a parquet file.

    Returns:
        One row per line, one value per column in their order: float64 [n, columns], or int64 where all are integers.

    Raises:
        ValueError: a file that cannot be read, a column that does not hold numbers, or a missing value, by name.
    """
    try:
        table = _read_csv(path) if path.suffix == ".csv" else pyarrow.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as a table of numbers: {error}") from error
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if not len(column):
            raise ValueError(f"{str(path)!r} has columns and no rows")
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise ValueError(
                f"{str(path)!r}, column {name!r} holds {kind}; expected numbers: leave the column out"
                + _other_separator(name)
            )
        if column.null_count:
            first = column.is_null().to_pylist().index(True)
            raise ValueError(
                f"{str(path)!r}, column {name!r} has {column.null_count:,} missing values, first in row {first}; fill "
                "them or leave those rows out"
            )
        columns.append(column.to_numpy())
    if not columns:
        raise ValueError(f"{str(path)!r} has no columns; expected at least one, of numbers")
    rows = np.stack(columns, axis=1)
    return rows.astype(np.int64 if rows.dtype.kind in "biu" else np.float64)


def _other_separator(name: str) -> str:
    found = next((mark for mark in (";", "\t", "|") if mark in name), None)
    return "" if found is None else f", or separate columns by commas and not by {found!r}"


def _read_csv(path: pathlib.Path) -> pa.Table:
    table = pyarrow.csv.read_csv(path)
    if not are_numbers(table.column_names):
        return table
    return pyarrow.csv.read_csv(path, read_options=pyarrow.csv.ReadOptions(autogenerate_column_names=True))


def read_image_folder(folder: pathlib.Path, event_shape: Sequence[int] | None = None) -> dict[str, np.ndarray]:
    """Reads the PNG and JPEG images of a folder and its subfolders, in the order of their names.

    All are grey where the first one is, else all have colours; transparency is left out.

    Args:
        folder: the folder.
        event_shape: height and width to which images are resized by area averages, and perhaps channels; default the
            size that they have.

    Returns:
        The images of each of the subfolders `train`, `validation` and `test` where all of them are there, else all
        images with the key "": uint8 [n, h, w], or [n, h, w, 3] for images with colour.

    Raises:
        ValueError: no images, one that cannot be decoded, or images of different sizes without an event shape, by name.
    """
    is_split = all((folder / split).is_dir() for split in SPLITS)
    size = tuple(event_shape[:2]) if event_shape and len(event_shape) in (2, 3) else None
    return {split: _read_images(folder / split, size) for split in (SPLITS if is_split else ("",))}


def _read_images(folder: pathlib.Path, size: tuple[int, ...] | None) -> np.ndarray:
    read, first = [], None
    for path in _image_paths(folder):
        encoded = tf.io.read_file(str(path))
        try:
            if first is None:
                shape = images.decode(encoded).shape
                first = path, size or tuple(shape[:2]), 1 if shape[-1] < 3 else 3
            image = images.decode(encoded, first[2])
            if size is not None and tuple(image.shape[:2]) != size:
                image = images.decode_resized(encoded, size, first[2])
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(f"{str(path)!r} is not a PNG or JPEG image: {images.problem(error)}") from None
        if tuple(image.shape[:2]) != first[1]:
            raise ValueError(
                f"images must have one size; {str(first[0])!r} has {first[1]}, {str(path)!r} "
                f"{tuple(image.shape[:2])}. `--set data.event_shape=({first[1][0]},{first[1][1]})` resizes them"
            )
        read.append((image[..., 0] if first[2] == 1 else image).numpy().astype(np.uint8))
    if not read:
        raise ValueError(f"{str(folder)!r} holds no images; expected files that end with {', '.join(_IMAGES)}")
    return np.stack(read)


def _image_paths(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (pathlib.Path(parent) / name for name in sorted(names) if name.lower().endswith(_IMAGES))
