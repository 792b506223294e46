"""Files and folders wherever TensorFlow's file layer reaches: local paths, and gs://bucket/path."""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from typing import BinaryIO, cast

import tensorflow as tf

from tfstruct import files

gfile = tf.io.gfile


def is_remote(path: str) -> bool:
    """Whether a path is of another file system than this machine's."""
    return "://" in path


class _Remote(io.RawIOBase):
    """A remote file with the methods of Python's files, which `GFile` has in part."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._file, self._size = gfile.GFile(path, "rb"), gfile.stat(path).length

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._file.tell(), os.SEEK_END: self._size}[whence]
        self._file.seek(start + offset)
        return start + offset

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        read = self._file.read(len(buffer))
        buffer[: len(read)] = read
        return len(read)


def reading(path: str) -> BinaryIO:
    """Opens a file of bytes, to be read from any place in it."""
    return cast(BinaryIO, io.BufferedReader(_Remote(path), 1 << 20)) if is_remote(path) else open(path, "rb")


@contextlib.contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """Opens what takes the place of a file when the block succeeds, whole or not at all."""
    if not is_remote(path):
        with files.replacing(path) as file:
            yield file
        return
    with tempfile.NamedTemporaryFile() as file:
        yield cast(BinaryIO, file)
        file.flush()
        gfile.copy(file.name, path, overwrite=True)
