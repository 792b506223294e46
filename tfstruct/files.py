"""Files that are written whole or not at all, strict JSON, and checksums: the only place that writes files."""

import contextlib
import errno
import hashlib
import json
import lzma
import math
import os
import pathlib
import re
import secrets
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

try:
    import fcntl
except ImportError:  # not a Unix: what killed writers leave behind stays
    fcntl = None

CHECKSUMS_NAME = "SHA256SUMS"
_CHECKSUM = re.compile(rb"([0-9a-f]{64})  ([^\x00-\x1f]+)")
_TEMPORARY_NAME = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")

#: What reading a damaged .npy or .npz file may raise: of its bytes, of an unknown or encrypted archive, of a header.
DAMAGE = (
    ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, RuntimeError,
    SyntaxError, tokenize.TokenError,
)  # fmt: skip

#: how PNG and JPEG files begin
IMAGE_MAGIC = (b"\x89PNG", b"\xff\xd8\xff")

PathLike = str | os.PathLike[str]


@contextlib.contextmanager
def writing(path: PathLike, *errors: type[Exception]) -> Iterator[None]:
    """Names a file or folder in what goes wrong while it is written: a full disk is often reported without.

    Of nested ones the outermost is named: a temporary folder is gone when the message is read.

    Args:
        path: what is written.
        *errors: what a library raises where others raise an OSError.

    Raises:
        OSError: in place of an OSError or of `errors`.
    """
    path = pathlib.Path(path)
    try:
        yield
    except (OSError, *errors) as error:
        while isinstance(error.__cause__, OSError):
            error = error.__cause__
        cause = getattr(error, "strerror", None) or getattr(error, "message", None) or error
        reason = f"cannot write {path.name}: {cause}; what was there before is intact"
        raise OSError(getattr(error, "errno", None) or errno.EIO, reason, str(path)) from error


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[BinaryIO]:
    """Opens a temporary sibling of `path`, which takes the place of `path` if the block succeeds.

    Readers see the old file or the new one, never a mixture, whenever the writer is killed: the sibling is
    synced to disk before it is renamed, and the folder after. If the block fails, the sibling is removed and
    `path` stays as it was. Siblings left by killed writers are removed on the way.

    Args:
        path: file to replace or create; missing folders above it are created.

    Yields:
        The sibling, open for reading and writing bytes.

    Raises:
        OSError: the file cannot be written; the message names `path`.
    """
    path = pathlib.Path(path)
    file, temporary = None, None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned_temporaries(path.parent)  # first, because they may be what fills the disk
            file, temporary = _create_temporary(path)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        if file is not None and temporary is not None:
            with contextlib.suppress(OSError):  # closing flushes, which fails once more on a full disk
                file.close()
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _create_temporary(path: pathlib.Path) -> tuple[BinaryIO, pathlib.Path]:
    """Creates a sibling of `path` and locks it, which tells the living writers from the dead."""
    while True:
        # Not tempfile.mkstemp: its files are private to the user, and renaming would make `path` private too.
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        file = open(temporary, "x+b")
        with contextlib.suppress(OSError):  # a file system without flock: left-overs stay, saving works
            _lock(file, blocking=True)
        # Another writer may have taken the file for abandoned between its creation and its locking.
        if os.fstat(file.fileno()).st_nlink:
            return file, temporary
        file.close()


def _remove_abandoned_temporaries(folder: pathlib.Path) -> None:
    for temporary in folder.glob(".*.tmp"):
        if _TEMPORARY_NAME.fullmatch(temporary.name):
            # OSError: its writer is alive and holds the lock, or has just renamed it.
            with contextlib.suppress(OSError), open(temporary, "r+b") as file:
                _lock(file, blocking=False)
                temporary.unlink()


def _lock(file: BinaryIO | int, *, blocking: bool) -> None:
    if fcntl is None:
        raise OSError("this system has no flock")
    fcntl.flock(file, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))


def _sync_folder(folder: pathlib.Path) -> None:
    """Makes a rename inside `folder` survive a loss of power."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusive(folder: PathLike) -> Iterator[None]:
    """Keeps other processes that ask for the same folder waiting; makes the folder if it is missing.

    Where the system or the file system has no locks of folders nobody waits.
    """
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            _lock(descriptor, blocking=True)
        yield
    finally:
        os.close(descriptor)


def write_text(path: PathLike, text: str) -> pathlib.Path:
    """Writes a text in UTF-8, atomically, unless the file holds it already; returns the file.

    Raises:
        OSError: the file cannot be written.
    """
    path = pathlib.Path(path)
    if not path.exists() or path.read_bytes() != text.encode():
        with replacing(path) as file:
            file.write(text.encode())
    return path


def write_json(path: PathLike, data: Any) -> pathlib.Path:
    """Writes data as indented JSON, atomically; returns the file.

    Raises:
        TypeError: `data` holds something JSON has no form for.
        OSError: the file cannot be written.
    """
    return write_text(path, to_json(data, indent=2) + "\n")


def read_json(path: PathLike) -> Any:
    """Reads a JSON file; numbers that are not finite come as the texts that `to_json` writes.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no JSON; the message names it.
    """
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also bytes that are no text, and brackets in brackets
        raise ValueError(f"{path} is not JSON: {error}") from None


def to_json(data: Any, **options: Any) -> str:
    """Returns data as strict JSON: "NaN", "Infinity" and "-Infinity" stand as texts, which `float` reads.

    Args:
        data: what `json.dumps` takes.
        **options: of `json.dumps`.
    """
    return json.dumps(_strict(data), allow_nan=False, **options)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _strict(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


class ArrayHeader(NamedTuple):
    """What stands before the values of an array in NumPy's format.

    Attributes:
        shape: of the array.
        is_fortran: whether its first axis changes fastest.
        dtype: of its values.
    """

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype

    @property
    def num_bytes(self) -> int:
        """Size of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_array_header(stream: Any) -> ArrayHeader:
    """Reads the header of a .npy file, or of a member of a .npz file; raises ValueError for what is none."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in readers:
        raise ValueError(f"version {version} of NumPy's format, expected 1.0 or 2.0")
    try:
        return ArrayHeader(*readers[version](stream))
    except (*DAMAGE, TypeError, AttributeError) as error:  # of the text of a dictionary
        raise ValueError(f"the header of an array is damaged: {error}") from None


def count_records(stream: Any) -> int:
    """Returns the number of records of a TFRecord file, by their lengths alone.

    TensorFlow's reader ends the process where a record says that it is larger than memory.

    Raises:
        ValueError: a record that ends behind the file.
    """
    count, place = 0, 0
    while head := stream.read(12):  # length, a checksum of it; after the record one of the record
        place += 12 + int.from_bytes(head[:8], "little") + 4
        # Read up to the last byte, for files whose end is not known.
        if len(head) < 12 or place > 2**43 or stream.seek(place - 1) != place - 1 or len(stream.read(1)) < 1:
            raise ValueError(f"record {count} ends behind the file")
        count += 1
    return count


def require_size(archive: zipfile.ZipFile, name: str, largest: int) -> int:
    """Checks what an array of a .npz archive says of its size before memory is taken for it; returns its bytes.

    Args:
        archive: open.
        name: of the array.
        largest: most bytes.

    Raises:
        ValueError: an array of another size than its header says, or of too many bytes.
    """
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as stream:
        header = read_array_header(stream)
        held = member.file_size - stream.tell()
    if held != header.num_bytes and not header.dtype.hasobject:  # which is refused when it is read
        raise ValueError(f"{name!r} says that it has {header.num_bytes:,} bytes, found {held:,}")
    if held > largest:
        raise ValueError(f"{name!r} has {held:,} bytes, expected at most {largest:,}")
    return held


def shaped(rows: np.ndarray, event_shape: Sequence[int] | None) -> np.ndarray:
    """Returns rows [n, ...] as [n, *event_shape], in row-major order; as they are where there is none.

    Raises:
        ValueError: rows of another number of values, or with axes of other lengths or in another order, channels first
            for instance: only axes of length 1, and flat rows or events, say nothing of an order.
    """
    if event_shape is None:
        return rows
    shape, found = tuple(int(size) for size in event_shape), rows.shape[1:]
    long, theirs = ([size for size in sizes if size != 1] for sizes in (shape, found))
    is_possible = min(shape, default=0) >= 1 and math.prod(shape) == math.prod(found)
    if not is_possible or (long != theirs and min(len(long), len(theirs)) > 1):
        other = f"; the same number of values in another order: bring them to {shape}" if is_possible else ""
        raise ValueError(f"event_shape {shape} does not fit rows of shape {found}{other}")
    return rows.reshape(len(rows), *shape)


def sha256(path: PathLike) -> str:
    """Returns the SHA-256 of a file, in hexadecimal; raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listed_files(folder: PathLike) -> list[pathlib.Path]:
    """Returns all files of a folder and the folders in it but the list of checksums."""
    folder = pathlib.Path(folder)
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CHECKSUMS_NAME)


def write_checksums(folder: PathLike) -> None:
    """Writes SHA256SUMS of all other files of a folder, in the format of `sha256sum --check`."""
    lines = [f"{sha256(path)}  {path.relative_to(folder)}" for path in listed_files(folder)]
    write_text(pathlib.Path(folder) / CHECKSUMS_NAME, "\n".join(lines) + "\n")


def read_checksums(folder: PathLike) -> dict[str, str]:
    """Returns the SHA-256 of each file of a folder by its path there; raises ValueError where the list is damaged."""
    listing = pathlib.Path(folder) / CHECKSUMS_NAME
    lines = listing.read_bytes().split(b"\n")
    entries = [_CHECKSUM.fullmatch(line) for line in lines[:-1]]
    if lines[-1] or None in entries:  # not lines of a text, which may end in more ways than one
        raise ValueError(f"{listing} is no list of SHA-256 sums")
    return {os.fsdecode(entry[2]): entry[1].decode() for entry in entries if entry}
