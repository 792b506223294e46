"""What rows of files that need not fit into memory can be asked for, whatever the kind of file."""

import abc
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfstruct.data.storage import gfile
from tfstruct.files import shaped
from tfstruct.registry import did_you_mean

Rows = np.ndarray | list[bytes]  # [n, *event_shape], or encoded images


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

    def blocks(self, size: int) -> Iterator[Rows]:
        """Yields all rows, up to so many at a time, as `read` returns them."""
        for start in range(0, self.num_rows, size):
            yield self.read(start, min(start + size, self.num_rows))

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
        return [self.path, self.key, *version_of(self.path)]

    def shaped(self, values: np.ndarray, rows: str) -> np.ndarray:
        """Brings rows into the event shape; raises ValueError, which says of which rows, where that cannot be."""
        try:
            return shaped(values, self.event_shape)
        except ValueError as error:
            where = f"{rows}: {self.key!r}" if self.key else rows
            raise ValueError(f"{where}: {error}") from None


def version_of(path: str) -> tuple[int, int]:
    """Returns size and time of a file."""
    found = gfile.stat(path)
    return found.length, found.mtime_nsec


def choose(path: str, key: str, names: Sequence[str], kind: str) -> str:
    """Returns the name of an array, feature or column, the only one if there is no key.

    Raises:
        ValueError: no such name, or several and no key.
    """
    if not key and len(names) == 1:
        return names[0]
    if not key:
        raise ValueError(f"{path} holds the {kind}s {', '.join(names) or '(none)'}; choose one with --key")
    if key not in names:
        raise ValueError(f"{path} holds no {kind} {key!r}{did_you_mean(key, names)}")
    return key
