"""Checkpoints that survive a crash at any instant, and the lock of a working folder.

A checkpoint is an ordinary `.npz` archive, uncompressed, so `numpy.load` opens it without this library, and
nothing in it is ever unpickled. Its last 64 bytes, which are the comment of the zip archive, are the SHA-256
of every byte before them. A reader therefore needs no argument about which bytes of a zip matter: a file in
which any byte was cut, changed or appended is not a checkpoint.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import operator
import os
import pathlib
import re
import socket
import types
import warnings
import zipfile
from typing import Any, BinaryIO

import filelock
import ml_dtypes
import numpy as np

from tfstruct.files import PathLike, replacing, require_size

FORMAT = 1
_DOCUMENT = "checkpoint.json"  # arrays end in .npy, so no array can take this name
_DIGEST_LENGTH = 64  # hexadecimal SHA-256
_BLOCK = 1 << 20
_CHECKPOINT_NAME = re.compile(r"step_(\d{9,})\.npz")


class DamagedCheckpointError(ValueError):
    """A checkpoint file whose bytes are not those that were written."""


class WorkdirBusyError(RuntimeError):
    """Another process trains in the same working folder."""


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """What one checkpoint file holds.

    Attributes:
        step: number of optimiser updates done when it was written.
        arrays: the saved arrays by name, in the order of saving, with the saved dtypes and shapes.
        metadata: the saved metadata as JSON gives it back (tuples come back as lists).
        path: the file it was read from.
    """

    step: int
    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]
    path: pathlib.Path


class Checkpoints:
    """The checkpoints of one training run: one file per checkpoint, `step_000012345.npz`, in one folder.

    Args:
        folder: where the files are; created by the first `save`.
        max_to_keep: number of newest checkpoints that `save` leaves, at least 1. With the default of 2 there
            is one to fall back to when the newest is damaged.

    Examples:
        >>> import tempfile
        >>> checkpoints = Checkpoints(tempfile.mkdtemp())
        >>> path = checkpoints.save(100, {"weights": np.zeros([2, 3], np.float32)}, {"system": "graph_vae"})
        >>> path.name
        'step_000000100.npz'
        >>> checkpoints.latest().arrays["weights"].shape
        (2, 3)
    """

    def __init__(self, folder: PathLike, *, max_to_keep: int = 2) -> None:
        if max_to_keep < 1:
            raise ValueError(f"max_to_keep must be at least 1, found {max_to_keep}")
        self.folder = pathlib.Path(folder)
        self.max_to_keep = max_to_keep

    def steps(self) -> list[int]:
        """Returns the steps of all files in the folder, ascending, damaged or not."""
        with contextlib.suppress(FileNotFoundError):
            matches = map(_CHECKPOINT_NAME.fullmatch, os.listdir(self.folder))
            return sorted(int(match[1]) for match in matches if match)
        return []

    def save(self, step: int, arrays: dict[str, np.ndarray], metadata: dict[str, Any]) -> pathlib.Path:
        """Writes one checkpoint and then removes the ones that are no longer needed.

        Args:
            step: number of optimiser updates done, not negative.
            arrays: arrays by name, of any shape and of any dtype but Python objects.
            metadata: JSON-able values with string keys, without NaN and infinities.

        Returns:
            The file.

        Raises:
            TypeError: an array of Python objects, or metadata JSON has no form for.
            ValueError: a negative step, NaN or an infinity in `metadata`, or a valid checkpoint of a later
                step in the folder, which `latest` would return in place of this one.
            OSError: the file cannot be written; the earlier checkpoints are untouched.
        """
        step = operator.index(step)
        if step < 0:
            raise ValueError(f"a step cannot be negative, found {step}")
        stored, dtypes = {}, {}
        for name, array in arrays.items():
            stored[name], dtypes[name] = _to_storable(name, np.asarray(array))
        document = {"format": FORMAT, "step": step, "dtypes": dtypes, "metadata": metadata}
        text = json.dumps(document, allow_nan=False).encode()
        superseded = self._damaged_after(step)
        path = self._path(step)
        with replacing(path) as file:
            _write_archive(file, text, stored)
        earlier = [other for other in self.steps() if other <= step]
        for other in superseded + earlier[: -self.max_to_keep]:
            self._path(other).unlink(missing_ok=True)
        return path

    def load(self, step: int) -> Checkpoint:
        """Reads and verifies the checkpoint of one step.

        Raises:
            FileNotFoundError: there is none.
            DamagedCheckpointError: the file is not what was written.
            ValueError: the file was written by another version of the format.
        """
        return _read_archive(self._path(step), step)

    def oldest(self) -> Checkpoint | None:
        """Reads the oldest valid checkpoint; otherwise as `latest`."""
        return self._first_valid(newest=False)

    def latest(self) -> Checkpoint | None:
        """Reads the newest valid checkpoint, or returns None if there is none.

        A damaged file is passed over with a RuntimeWarning that names it and the reason. It is left in place
        until a later `save` supersedes it, so that a process that only evaluates changes nothing.

        Raises:
            PermissionError: a file may not be read; falling back would lose work that is not lost.
            ValueError: a file was written by another version of the format.
        """
        return self._first_valid(newest=True)

    def _first_valid(self, *, newest: bool) -> Checkpoint | None:
        tried = set()
        # Listed afresh each time, because a trainer may save and prune while this process reads.
        while untried := [step for step in self.steps() if step not in tried]:
            step = untried[-1 if newest else 0]
            tried.add(step)
            try:
                return self.load(step)
            except FileNotFoundError:
                continue  # pruned since it was listed
            except PermissionError:
                raise
            except (DamagedCheckpointError, OSError) as error:
                warnings.warn(f"passed over a damaged checkpoint: {error}", RuntimeWarning, stacklevel=3)
        return None

    def discard_after(self, step: int) -> None:
        """Removes the checkpoints of later steps."""
        for later in self.steps():
            if later > step:
                self._path(later).unlink(missing_ok=True)

    def _path(self, step: int) -> pathlib.Path:
        return self.folder / f"step_{step:09d}.npz"

    def _damaged_after(self, step: int) -> list[int]:
        """Returns the later steps in the folder; raises ValueError if one of them is a valid checkpoint."""
        later = [other for other in self.steps() if other > step]
        for other in later:
            try:
                found = self.load(other)
            except (DamagedCheckpointError, OSError):
                continue
            raise ValueError(
                f"cannot save step {step}: the folder has a valid checkpoint of a later step, {found.path}; "
                "resume from it or use another folder"
            )
        return later


def _to_storable(name: str, array: np.ndarray) -> tuple[np.ndarray, str]:
    """Returns the array as NumPy's file format can hold it, and the name of its dtype."""
    if "\0" in name:
        raise ValueError(f"an array's name cannot hold a null character, found {name!r}")
    if array.dtype.hasobject:
        raise TypeError(f"array {name!r} has dtype {array.dtype}: only plain numbers can be saved")
    # NumPy's format forgets dtypes that are registered from outside (bfloat16, the 8-bit floats).
    if array.dtype.isbuiltin == 2:
        return array.view(np.dtype(f"u{array.dtype.itemsize}")), array.dtype.name
    return array, array.dtype.name


def _from_storable(array: np.ndarray, dtype_name: str) -> np.ndarray:
    if array.dtype.name == dtype_name:
        return array
    return array.view(np.dtype(getattr(ml_dtypes, dtype_name)))


def _digest(file: BinaryIO, length: int) -> bytes:
    """Returns the hexadecimal SHA-256 of the first `length` bytes and leaves the position after them."""
    digest = hashlib.sha256()
    file.seek(0)
    while length and (block := file.read(min(length, _BLOCK))):
        digest.update(block)
        length -= len(block)
    return digest.hexdigest().encode()


def _write_archive(file: BinaryIO, document: bytes, arrays: dict[str, np.ndarray]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = b"0" * _DIGEST_LENGTH
        # A ZipInfo made from a name alone is dated 1980: the same content gives the same bytes.
        archive.writestr(zipfile.ZipInfo(_DOCUMENT), document)
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    length = file.seek(0, os.SEEK_END) - _DIGEST_LENGTH
    digest = _digest(file, length)
    file.seek(length)
    file.write(digest)


def _read_archive(path: pathlib.Path, step: int) -> Checkpoint:
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size - _DIGEST_LENGTH
        if length <= 0:
            raise DamagedCheckpointError(f"{path}: only {length + _DIGEST_LENGTH} bytes long")
        expected = _digest(file, length)
        if file.read(_DIGEST_LENGTH) != expected:
            raise DamagedCheckpointError(f"{path}: its bytes do not match its SHA-256 (cut short or changed)")
        try:
            with zipfile.ZipFile(file) as archive:
                if archive.getinfo(_DOCUMENT).file_size > length:  # nothing is compressed
                    raise DamagedCheckpointError(f"{path}: {_DOCUMENT} is larger than the file")
                document = json.loads(archive.read(_DOCUMENT))
                if document["format"] != FORMAT:
                    found = document["format"]
                    raise ValueError(f"{path}: checkpoint format {found}, this version reads {FORMAT}")
                if document["step"] != step:
                    raise DamagedCheckpointError(f"{path}: holds step {document['step']}; was it renamed?")
                arrays = {}
                for name, dtype_name in document["dtypes"].items():
                    try:
                        require_size(archive, name, length)  # nothing is compressed
                    except ValueError as error:
                        raise DamagedCheckpointError(f"{path}: {error}") from None
                    with archive.open(f"{name}.npy") as entry:
                        array = np.lib.format.read_array(entry, allow_pickle=False)
                    arrays[name] = _from_storable(array, dtype_name)
        except (zipfile.BadZipFile, KeyError, TypeError, UnicodeDecodeError) as error:
            raise DamagedCheckpointError(f"{path}: {error}") from error
    return Checkpoint(step, arrays, document["metadata"], path)


class WorkdirLock:
    """Keeps a second trainer out of a working folder, as a context manager.

    The lock is the system's on the file `train.lock`, which drops it when its holder ends in whatever way, `kill -9`
    and a loss of power included: a dead trainer's lock is simply free. A file that locks by existing would stay
    behind, and asking whether its process number is alive goes wrong once the number is used again, which in
    containers is at once. `train.holder`, with process number and host, only serves the error message.

    Args:
        workdir: the folder; created if missing.

    Raises:
        WorkdirBusyError: on entering, if another process (or another lock of this one) holds the folder.
        OSError: on entering, if the lock file cannot be made or the file system has no locks.
    """

    def __init__(self, workdir: PathLike) -> None:
        self.path = pathlib.Path(workdir) / "train.lock"
        self._holder = self.path.with_suffix(".holder")
        self._lock = filelock.FileLock(self.path, timeout=0, mode=0o666)

    def __enter__(self) -> "WorkdirLock":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            holder = "a process that is just starting"
            with contextlib.suppress(OSError):
                holder = self._holder.read_text(encoding="utf-8").strip() or holder
            raise WorkdirBusyError(
                f"{self.path.parent} is in use by {holder}; stop it, wait for it, or choose another workdir"
            ) from None
        except (OSError, RuntimeError) as error:  # the latter where a file system has no locks
            raise OSError(getattr(error, "errno", None), f"cannot lock: {error}", str(self.path)) from error
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._holder.write_text(f"process {os.getpid()} on host {socket.gethostname()} since {started}\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._holder.unlink(missing_ok=True)
        self._lock.release()
