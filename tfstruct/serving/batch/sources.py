"""Rows of files that need not fit into memory: .npy, .npz, TFRecord, parquet, and folders of PNG and JPEG images."""

import abc
import contextlib
import dataclasses
import functools
import gzip
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from tfstruct.files import DAMAGE, count_records, read_array_header, shaped
from tfstruct.registry import did_you_mean
from tfstruct.serving.batch import storage
from tfstruct.serving.batch.storage import gfile
from tfstruct.serving.inputs import MAGIC

Rows = np.ndarray | list[bytes]  # [n, *event_shape], or encoded images

_IMAGES = (".png", ".jpg", ".jpeg")
_EXPECTED = ".npy, .npz, .tfrecord, .parquet, .png, .jpg or .jpeg, or a folder of images"


@dataclasses.dataclass(frozen=True)
class Source(abc.ABC):
    """Rows of a file, or of several.

    Attributes:
        path: the file, or what was asked for.
        key: the array, feature or column; empty where there is but one.
        event_shape: of a row. Rows of lists are brought into it; arrays must have it.
    """

    path: str
    key: str
    event_shape: tuple[int, ...]

    @property
    @abc.abstractmethod
    def num_rows(self) -> int:
        """How many rows there are."""

    @abc.abstractmethod
    def read(self, start: int, stop: int) -> Rows:
        """Returns rows start to stop.

        Raises:
            ValueError: a damaged file, or rows of other shapes; the message names the file.
        """

    def names(self, start: int, stop: int) -> list[str]:
        """Returns the file of each row."""
        return [self.path] * (stop - start)

    def paths(self) -> Sequence[str]:
        """Returns the files."""
        return [self.path]

    def place(self, row: int) -> str:
        """Returns where a row stands, for a message."""
        return f"{self.path}, row {row}"

    def version(self) -> list[Any]:
        """Returns what differs once the data change: path, key, and size and time of the file."""
        return [self.path, self.key, *_version(self.path)]

    def _shaped(self, values: np.ndarray, rows: str) -> np.ndarray:
        """Brings rows into the event shape."""
        try:
            return shaped(values, self.event_shape)
        except ValueError as error:
            where = f"{rows}: {self.key!r}" if self.key else rows
            raise ValueError(f"{where}: {error}") from None


def _version(path: str) -> tuple[int, int]:
    found = gfile.stat(path)
    return found.length, found.mtime_nsec


class ArrayFile(Source):
    """An array of a .npy or .npz file."""

    @functools.cached_property
    def _member(self) -> str:
        if not self.path.endswith(".npz"):
            return ""
        try:
            with storage.reading(self.path) as file, zipfile.ZipFile(file) as archive:
                arrays = [name.removesuffix(".npy") for name in archive.namelist()]
        except DAMAGE as error:
            raise ValueError(f"{self.path} is no readable .npz file: {error}") from None
        return _choose(self.path, self.key, arrays, "array")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, tuple[int, ...], np.dtype]]:
        """Opens the array behind its header."""
        member = self._member
        if self.key and not member:
            raise ValueError(f"{self.path} is one array, which has no --key={self.key}")
        with storage.reading(self.path) as file:
            stream: Any = file
            try:
                if member:
                    stream = zipfile.ZipFile(file).open(f"{member}.npy")
                shape, is_fortran, dtype = read_array_header(stream)
            except DAMAGE as error:
                raise ValueError(f"{self.path} is no readable .npy or .npz file of numbers: {error}") from None
            if dtype.kind not in "biuf":
                raise ValueError(f"{self.path} has elements of type {dtype}, expected numbers")
            if is_fortran and len(shape) > 1:
                raise ValueError(f"{self.path} is in Fortran order, which scatters each row; save it in C order")
            yield stream, shape, dtype

    @functools.cached_property
    def num_rows(self) -> int:
        with self._opened() as (stream, shape, dtype):
            if shape[1:] == self.event_shape and shape[0]:
                start, end = stream.tell(), stream.seek(0, os.SEEK_END)
                whole = (end - start) // (math.prod(shape[1:]) * dtype.itemsize)
                if whole < shape[0]:
                    raise ValueError(f"{self.path} ends before row {whole} of {shape[0]}")
                return shape[0]
        expected = ", ".join(map(str, ("N", *self.event_shape)))
        raise ValueError(f"{self.path}: observations must have shape [{expected}] with N >= 1, found {list(shape)}")

    def read(self, start: int, stop: int) -> np.ndarray:
        with self._opened() as (stream, shape, dtype):
            size = math.prod(shape[1:]) * dtype.itemsize
            try:
                stream.seek(start * size, os.SEEK_CUR)
                read = stream.read((stop - start) * size)
            except DAMAGE as error:
                raise ValueError(f"{self.path} is damaged: {error}") from None
        if len(read) < (stop - start) * size:
            raise ValueError(f"{self.path} ends before row {start + len(read) // size} of {shape[0]}")
        return np.frombuffer(read, dtype).reshape(-1, *shape[1:])


class RecordFile(Source):
    """A feature of the `tf.train.Example` messages of a TFRecord file.

    Bytes are PNG or JPEG images, or a row of unsigned bytes; numbers a row.
    """

    def _records(self, start: int, num: int) -> Iterator[bytes]:
        kind = "GZIP" if self.path.endswith(".gz") else ""
        records = tf.data.TFRecordDataset(self.path, kind, buffer_size=1 << 20)
        try:
            yield from records.skip(start).take(num).as_numpy_iterator()
        except tf.errors.DataLossError as error:
            raise ValueError(f"{self.path} is damaged, or no TFRecord file: {error.message}") from None

    @functools.cached_property
    def num_rows(self) -> int:
        with storage.reading(self.path) as file, gzip.open(file) if self.path.endswith(".gz") else file as stream:
            try:
                return count_records(stream)
            except (*DAMAGE, gzip.BadGzipFile) as error:
                raise ValueError(f"{self.path} is damaged, or no TFRecord file: {error}") from None

    @functools.cached_property
    def _feature(self) -> str:
        return _choose(self.path, self.key, sorted(_features(next(self._records(0, 1)), self.path)), "feature")

    def read(self, start: int, stop: int) -> Rows:
        values = []
        for row, record in enumerate(self._records(start, stop - start), start):
            features = _features(record, self.path)
            kind = features[self._feature].WhichOneof("kind") if self._feature in features else None
            found = getattr(features[self._feature], kind).value if kind else []
            if kind is None or (kind == "bytes_list" and len(found) != 1):
                raise ValueError(f"{self.place(row)} has {len(found)} values of {self._feature!r}")
            values.append(found[0] if kind == "bytes_list" else np.asarray(found))
        return self._decoded(values, start)

    @functools.cached_property
    def _is_encoded(self) -> bool:
        """Whether the file is one of images, by its first records: some may be broken, or look like one by chance."""
        first = [_features(record, self.path).get(self._feature) for record in self._records(0, 16)]
        values = [value for feature in first if feature is not None for value in feature.bytes_list.value]
        return any(value.startswith(MAGIC) for value in values)

    def _decoded(self, values: list[Any], start: int) -> Rows:
        if self._is_encoded and all(isinstance(value, bytes) for value in values):  # what is no image is broken
            return values
        rows = [np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value for value in values]
        size = math.prod(self.event_shape)
        for row, value in enumerate(rows, start):
            if value.size != size:
                kind = "bytes, which are no PNG or JPEG image" if isinstance(values[row - start], bytes) else "values"
                raise ValueError(f"{self.place(row)} has {value.size} {kind}, expected {size}: {self.event_shape}")
        return self._shaped(np.stack(rows), self.path)


def _features(record: bytes, path: str) -> dict[str, Any]:
    from google.protobuf.message import DecodeError

    try:
        return dict(tf.train.Example.FromString(record).features.feature)
    except DecodeError as error:
        raise ValueError(f"{path} holds records that are no tf.train.Example: {error}") from None


class ParquetFile(Source):
    """A column of a parquet file: numbers in lists, encoded images, or structs of these as `bytes`.

    Without a key a table of as many columns of numbers as an observation has values is one of observations.
    """

    @functools.cached_property
    def num_rows(self) -> int:
        with storage.reading(self.path) as file:
            return self._opened(file).metadata.num_rows

    def _opened(self, file: BinaryIO) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(file)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{self.path} is no readable parquet file: {error}") from None

    def _columns(self, schema: pa.Schema) -> list[str]:
        is_table = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in schema.types)
        if not self.key and is_table and len(schema.names) == math.prod(self.event_shape):
            return schema.names
        return [_choose(self.path, self.key, schema.names, "column")]

    def read(self, start: int, stop: int) -> Rows:
        with storage.reading(self.path) as file:
            opened = self._opened(file)
            columns, starts = self._columns(opened.schema_arrow), [0]
            for group in range(opened.num_row_groups):
                starts.append(starts[-1] + opened.metadata.row_group(group).num_rows)
            groups = [
                group for group in range(opened.num_row_groups) if starts[group] < stop and starts[group + 1] > start
            ]
            pieces, first = [], starts[groups[0]]
            try:
                for batch in opened.iter_batches(min(stop - start, 8192), row_groups=groups, columns=columns):
                    last = first + batch.num_rows
                    if first < stop and last > start:
                        pieces.append(batch[max(start - first, 0) : min(stop, last) - first])
                    first = last
                    if first >= stop:
                        break
            except (pa.ArrowInvalid, OSError) as error:
                raise ValueError(f"{self.path} is damaged: {error}") from None
        table = pa.Table.from_batches(pieces)
        for name in columns:
            if table[name].null_count:
                row = start + next(row for row, value in enumerate(table[name]) if not value.is_valid)
                raise ValueError(f"{self.place(row)} has no value in the column {name!r}")
        if len(columns) > 1:
            return self._shaped(np.stack([table[name].to_numpy() for name in columns], axis=1), self.path)
        return self._rows(table[columns[0]].combine_chunks(), columns[0], start)

    def _rows(self, values: Any, column: str, start: int) -> Rows:
        if pa.types.is_struct(values.type) and values.type.get_field_index("bytes") >= 0:
            values = values.field("bytes")
        if pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
            return values.to_pylist()
        sizes = [len(values)]  # of rows, then of the lists of each level, which say in which order the values stand
        while pa.types.is_nested(values.type) and not pa.types.is_struct(values.type) and not values.null_count:
            is_fixed = pa.types.is_fixed_size_list(values.type)
            lengths = {values.type.list_size} if is_fixed else set(np.diff(values.offsets).tolist())
            if len(lengths) != 1:
                found = ", ".join(map(str, sorted(lengths)[:3]))
                raise ValueError(f"{self.path}, rows from {start} on: {column!r} has lists of {found} values")
            sizes += lengths
            values = values.flatten()
        if values.null_count:
            raise ValueError(f"{self.path}, rows from {start} on: {column!r} has lists with missing values")
        if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
            raise ValueError(f"{self.path}: a column of numbers, lists or images is expected, found {values.type}")
        return self._shaped(values.to_numpy().reshape(sizes), self.path)


@dataclasses.dataclass(frozen=True)
class ImageFiles(Source):
    """PNG and JPEG files.

    Attributes:
        files: their paths.
    """

    files: tuple[str, ...] = ()

    @functools.cached_property
    def num_rows(self) -> int:
        return len(self.files)

    def read(self, start: int, stop: int) -> list[bytes]:
        def content(path: str) -> bytes:
            with storage.reading(path) as file:
                return file.read()

        return [content(path) for path in self.files[start:stop]]

    def names(self, start: int, stop: int) -> list[str]:
        return list(self.files[start:stop])

    def paths(self) -> Sequence[str]:
        return self.files

    def place(self, row: int) -> str:
        return self.files[row]

    def version(self) -> list[Any]:
        return [self.path, [[file, *_version(file)] for file in self.files]]


def _choose(path: str, key: str, names: Sequence[str], kind: str) -> str:
    if not key and len(names) == 1:
        return names[0]
    if not key:
        raise ValueError(f"{path} holds the {kind}s {', '.join(names) or '(none)'}; choose one with --key")
    if key not in names:
        raise ValueError(f"{path} holds no {kind} {key!r}{did_you_mean(key, names)}")
    return key


def find(patterns: Sequence[str], key: str | None, event_shape: tuple[int, ...]) -> list[Source]:
    """Returns the sources of files, folders of images, and patterns of these such as `data/*.parquet`, in their order.

    Args:
        patterns: paths; what a pattern stands for is sorted.
        key: array, feature or column; None where a file has but one.
        event_shape: of an observation.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a file of another kind, or one without such rows.
    """
    found: list[Source] = []
    for pattern in patterns:
        if gfile.isdir(pattern):
            inside = sorted(os.path.join(folder, name) for folder, _, names in gfile.walk(pattern) for name in names)
            images = tuple(path for path in inside if path.lower().endswith(_IMAGES))
            if not images:
                raise ValueError(f"{pattern} has no {', '.join(_IMAGES)} files; name data files by {pattern}/*.parquet")
            found.append(ImageFiles(pattern, "", event_shape, images))
            continue
        paths = [pattern] if gfile.exists(pattern) else sorted(gfile.glob(pattern))
        if not paths:
            raise FileNotFoundError(f"there is no file {pattern}")
        images = tuple(path for path in paths if path.lower().endswith(_IMAGES))
        if images and len(images) < len(paths):
            raise ValueError(f"{pattern} stands for images and other files; give them apart")
        found += (
            [ImageFiles(pattern, "", event_shape, images)]
            if images
            else [_kind(path)(path, key or "", event_shape) for path in paths]
        )
    for source in found:
        if not source.num_rows:
            raise ValueError(f"{source.path} has no rows")
    return found


def _kind(path: str) -> type[Source]:
    name = os.path.basename(path)
    if name.endswith((".npy", ".npz")):
        return ArrayFile
    if name.endswith(".parquet"):
        return ParquetFile
    if ".tfrecord" in name:  # also data.tfrecord-00000-of-00010
        return RecordFile
    raise ValueError(f"{path} ends with none of {_EXPECTED}")
