"""User data: `.npy` and `.npz` files of any event shape, checked before anything is trained on them.

`.csv` and `.parquet` tables and folders of images are read as well, see `tfstruct.data.tables`.
One array is split 80/10/10: by a fixed permutation, or, when an `.npy` file is larger than `STREAMED_BYTES`,
into contiguous blocks in this order, because then the file is mapped rather than read and rows come from disk
as they are needed. Shuffle the rows of such a file before saving it, and store intensities as uint8: every
variant but `none` copies other types into memory. An `.npz` file with the keys train, validation (or valid)
and test is split as it says; other keys beside these are ignored. Nothing is ever unpickled.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfstruct import random
from tfstruct.data import support, tables, variants
from tfstruct.data.prepared import DatasetNotFoundError
from tfstruct.files import DAMAGE, read_array_header, require_size

STREAMED_BYTES = 2**30
LARGEST_BYTES = 2**34  # of an array of a .npz file, which is read whole; .npy files are mapped
_SPLIT_SEED = 801010
_LEAST_ROWS = 3  # one for each split


@dataclasses.dataclass(frozen=True, eq=False)
class UserData:
    """What a file held.

    Attributes:
        splits: rows [n, *event] for each of train, validation and test. Binary data and integers in 0..255
            are uint8, all else float32; a mapped file keeps its own type.
        support: the narrowest of `tfstruct.data.support.SUPPORTS` that holds all values.
        origin: how the splits came about, for descriptions.
    """

    splits: dict[str, np.ndarray]
    support: str
    origin: str


def read(path: str | os.PathLike, event_shape: Sequence[int] | None = None) -> UserData:
    """Reads and checks a file, or a folder of images.

    Args:
        path: of it.
        event_shape: to which the images of a folder are resized; arrays and tables are read as they are.

    Raises:
        DatasetNotFoundError: if there is no such file (it is also a ValueError).
        ValueError: naming what was found and what is expected, for another suffix, a damaged file, types that
            are not numbers, NaN or infinities, rows without an event axis, too few rows, missing keys and
            splits whose events differ.
    """
    path = pathlib.Path(path).expanduser()
    if path.suffix not in _READERS and not path.is_dir():
        raise ValueError(f"a data file ends with {', '.join(_READERS)} or is a folder of images, found {str(path)!r}")
    if not path.exists():
        raise DatasetNotFoundError(f"the data file {str(path)!r} does not exist")
    arrays = tables.read_image_folder(path, event_shape) if path.is_dir() else _READERS[path.suffix](path)
    summaries = []
    for key, rows in arrays.items():
        _check_array(rows, _place(path, key))
        summaries.append(support.summarize(rows))
        _check_finite(summaries[-1], _place(path, key))
        if max(summaries[-1].maximum, -summaries[-1].minimum) > float(np.finfo(np.float32).max):
            raise ValueError(f"{_place(path, key)} has values beyond those of float32, 3.4e38; scale them")
    found = support.join(summaries).support
    if len(arrays) == 1:
        splits, origin = _divide(next(iter(arrays.values())), path)
    else:
        _check_events(arrays, path)
        splits, origin = arrays, "split as in the file"
    if not any(isinstance(rows, np.memmap) for rows in splits.values()):
        dtype = np.uint8 if found in (support.BINARY, support.INTEGERS) else np.float32
        splits = {name: rows.astype(dtype, copy=False) for name, rows in splits.items()}
    return UserData(splits, found, origin)


def render(data: UserData, variant: str) -> variants.Rendering:
    """Applies a variant to user data; `none` leaves the values as they are.

    Raises:
        ValueError: for a variant that has no meaning for these values, naming those that have.
    """
    if variant == "none":
        offset = 0.0 if data.support in (support.BINARY, support.INTEGERS) else None
        return variants.Rendering(data.splits, data.support, offset)
    possible = {
        support.BINARY: (),
        support.UNIT_INTERVAL: tuple(name for name in variants.VARIANTS if name not in ("dequantized", "levels")),
        support.INTEGERS: variants.VARIANTS,
        support.REAL: (),
    }[data.support]
    if variant not in possible:
        names = ", ".join(name for name in possible if name != "none") or "no variant but none"
        raise ValueError(
            f"variant {variant} does not fit this file, whose values have the support {data.support}: "
            f"`--set data.variant=none` takes them as they are; possible besides: {names}"
        )
    splits = data.splits
    if data.support == support.INTEGERS:
        # Only a mapped file holds intensities in another type than uint8, and only then are they copied.
        splits = {name: rows.astype(np.uint8, copy=False) for name, rows in splits.items()}
    return variants.render(variant, splits)


def _place(path: pathlib.Path, key: str) -> str:
    return f"{str(path)!r}" + (f", key {key!r}" if key else "")


def _load_npy(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the file, or maps it when it is large; the one key is empty."""
    size = path.stat().st_size
    mapped = size > STREAMED_BYTES
    missing = 0
    with contextlib.suppress(*DAMAGE), open(path, "rb") as file:  # which `_open` says
        header = read_array_header(file)
        missing = 0 if header.dtype.hasobject else header.num_bytes - (size - file.tell())
    if missing > 0:  # before memory is taken
        raise ValueError(f"{str(path)!r} ends {missing:,} bytes before the end of its array")
    rows = _open(path, np.ndarray, mmap_mode="r" if mapped else None)
    return {"": rows}


def _load_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the three splits, or the only array there is."""
    with _open(path, np.lib.npyio.NpzFile) as archive:
        wanted = _wanted_keys(list(archive.files), path)
        try:
            for key in wanted.values():
                require_size(archive.zip, key, LARGEST_BYTES)
            return {name: archive[key] for name, key in wanted.items()}
        except (*DAMAGE, OSError) as error:
            raise ValueError(f"{str(path)!r} cannot be read as arrays of numbers: {error}") from error


def _open(path: pathlib.Path, kind: type, **options) -> Any:
    """Calls `np.load` without pickle and checks what it returns."""
    try:
        content = np.load(path, allow_pickle=False, **options)
    except (*DAMAGE, OSError) as error:
        # NumPy takes whatever it does not know for a pickle, and advises to load it unsafely.
        reason = "it is no file of NumPy's" if "load it unsafely" in str(error) else error
        raise ValueError(f"{str(path)!r} cannot be read as arrays of numbers: {reason}") from error
    if not isinstance(content, kind):
        raise ValueError(
            f"{str(path)!r} holds {type(content).__name__}, which its suffix {path.suffix} does not announce"
        )
    return content


def _wanted_keys(keys: list[str], path: pathlib.Path) -> dict[str, str]:
    """Returns the key in the file of each split, or of the only array."""
    if len(keys) == 1 and keys[0] not in (*variants.SPLITS, "valid"):
        return {keys[0]: keys[0]}
    validation = "validation" if "validation" in keys else "valid"
    wanted = {"train": "train", "validation": validation, "test": "test"}
    if not set(wanted.values()) <= set(keys):
        raise ValueError(
            f"{_place(path, '')} has the keys {', '.join(keys) or '(none)'}; expected train, validation (or "
            "valid) and test, or a single array, which is split 80/10/10"
        )
    return wanted


_READERS = {
    ".npy": _load_npy,
    ".npz": _load_npz,
    **{suffix: lambda path: {"": tables.read_table(path)} for suffix in tables.TABLES},
}


def _check_array(rows: np.ndarray, place: str) -> None:
    """Raises unless rows are numbers with at least one event axis."""
    if rows.dtype.kind not in "biuf":
        raise ValueError(f"{place} has elements of type {rows.dtype}; expected booleans, integers or real floats")
    if rows.ndim < 2:
        raise ValueError(
            f"{place} has shape {rows.shape}; expected [n, *event]: rows first, then at least one event axis"
        )
    if rows.size == 0:
        raise ValueError(f"{place} is empty: shape {rows.shape}; expected at least one row and one value in it")


def _divide(rows: np.ndarray, path: pathlib.Path) -> tuple[dict[str, np.ndarray], str]:
    """Splits one array 80/10/10; a mapped one without reading it."""
    if len(rows) < _LEAST_ROWS:
        raise ValueError(f"{str(path)!r} has {len(rows)} rows; expected at least {_LEAST_ROWS}, one per split")
    held = max(1, len(rows) // 10)
    first, second = len(rows) - 2 * held, len(rows) - held
    if isinstance(rows, np.memmap):
        parts = rows[:first], rows[first:second], rows[second:]
        return dict(zip(variants.SPLITS, parts, strict=True)), "contiguous blocks of 80/10/10 percent"
    order = random.permutation(_SPLIT_SEED, 0, len(rows))
    parts = rows[order[:first]], rows[order[first:second]], rows[order[second:]]
    return dict(zip(variants.SPLITS, parts, strict=True)), "80/10/10 percent by a fixed permutation"


def _check_finite(summary: support.Summary, place: str) -> None:
    if summary.non_finite:
        raise ValueError(
            f"{place} has {summary.non_finite:,} values that are NaN or infinite, first in row "
            f"{summary.first_non_finite}; expected finite numbers"
        )


def _check_events(arrays: dict[str, np.ndarray], path: pathlib.Path) -> None:
    if len({rows.shape[1:] for rows in arrays.values()}) > 1:
        found = ", ".join(f"{name} {rows.shape[1:]}" for name, rows in arrays.items())
        raise ValueError(f"{str(path)!r} has splits of different event shapes: {found}; expected one shape")
