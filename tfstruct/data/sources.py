"""Rows of files that need not fit into memory: .npy, .npz, TFRecord, parquet, CSV, folders of PNG and JPEG images."""

import contextlib
import dataclasses
import functools
import gzip
import itertools
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfstruct.data import storage
from tfstruct.data.column_files import CsvFile, ParquetFile
from tfstruct.data.source import Rows, Source, choose, version_of
from tfstruct.data.storage import gfile
from tfstruct.files import DAMAGE, IMAGE_MAGIC, count_records, read_array_header

__all__ = ["ArrayFile", "CsvFile", "ImageFiles", "ParquetFile", "RecordFile", "Rows", "Source", "find"]
_IMAGES = (".png", ".jpg", ".jpeg")
_EXPECTED = ".npy, .npz, .tfrecord, .parquet, .csv, .png, .jpg or .jpeg, or a folder of images"


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
        return choose(self.path, self.key, arrays, "array")

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
            return self._next(stream, shape, dtype, start, stop, skipped=start)

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        with self._opened() as (stream, shape, dtype):  # in one pass: what is packed is unpacked from its beginning
            for start in range(0, shape[0], size):
                yield self._next(stream, shape, dtype, start, min(start + size, shape[0]))

    def _next(
        self, stream: Any, shape: tuple[int, ...], dtype: np.dtype, start: int, stop: int, *, skipped: int = 0
    ) -> np.ndarray:
        """Reads rows start to stop behind so many that are skipped."""
        size = math.prod(shape[1:]) * dtype.itemsize
        try:
            stream.seek(skipped * size, os.SEEK_CUR)
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
        return choose(self.path, self.key, sorted(_features(next(self._records(0, 1)), self.path)), "feature")

    def read(self, start: int, stop: int) -> Rows:
        return self._values(self._records(start, stop - start), start)

    def blocks(self, size: int) -> Iterator[Rows]:
        records = self._records(0, -1)  # in one pass
        for start in range(0, self.num_rows, size):
            yield self._values(itertools.islice(records, size), start)

    def _values(self, records: Iterator[bytes], start: int) -> Rows:
        values = []
        for row, record in enumerate(records, start):
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
        return any(value.startswith(IMAGE_MAGIC) for value in values)

    def _decoded(self, values: list[Any], start: int) -> Rows:
        if self._is_encoded and all(isinstance(value, bytes) for value in values):  # what is no image is broken
            return values
        rows = [np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value for value in values]
        size = math.prod(self.event_shape)
        for row, value in enumerate(rows, start):
            if value.size != size:
                kind = "bytes, which are no PNG or JPEG image" if isinstance(values[row - start], bytes) else "values"
                raise ValueError(f"{self.place(row)} has {value.size} {kind}, expected {size}: {self.event_shape}")
        return self.shaped(np.stack(rows), self.path)


def _features(record: bytes, path: str) -> dict[str, Any]:
    from google.protobuf.message import DecodeError

    try:
        return dict(tf.train.Example.FromString(record).features.feature)
    except DecodeError as error:
        raise ValueError(f"{path} holds records that are no tf.train.Example: {error}") from None


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
        return [self.path, [[file, *version_of(file)] for file in self.files]]


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
    if name.endswith(".csv"):
        return CsvFile
    if ".tfrecord" in name:  # also data.tfrecord-00000-of-00010
        return RecordFile
    raise ValueError(f"{path} ends with none of {_EXPECTED}")
