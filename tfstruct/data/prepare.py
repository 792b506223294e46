"""Files of any kind and size as one .npy file of rows in random order, which training maps instead of reading it."""

import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import numpy as np
import tensorflow as tf

from tfstruct import random
from tfstruct.data import images, storage
from tfstruct.data.source import Source
from tfstruct.files import PathLike, replacing
from tfstruct.progress import Progress

DTYPES = ("uint8", "float32")
BLOCK_BYTES = 2**26
_MOST_ROWS = 2**32  # of `random.shuffled`


def prepare(sources: Sequence[Source], output: PathLike, *, dtype: str | None = None, seed: int = 0) -> pathlib.Path:
    """Writes the rows of files, in random order, as one .npy file; a few of them are in memory at a time.

    The order matters: of a file that is too large for memory, training, validation and test rows are contiguous blocks.

    Args:
        sources: the files, all with the same event shape; images are decoded and resized to its height and width.
        output: the file, which ends with `.npy`.
        dtype: one of DTYPES; default uint8 for images and where the first rows are whole numbers in 0..255, else
            float32.
        seed: of the order.

    Returns:
        The file.

    Raises:
        FileExistsError: there is such a file already.
        ValueError: rows that the files do not have, NaN or infinities, numbers that the dtype does not hold, an event
            shape that is none of images, another suffix, or a remote path, which cannot be mapped; nothing is written.
    """
    if storage.is_remote(str(output)):
        raise ValueError(f"the output must be a file of this machine, which training maps, found {str(output)!r}")
    output = pathlib.Path(output)
    if output.suffix != ".npy":
        raise ValueError(f"the output must end with .npy, found {output.name!r}")
    if output.exists():
        raise FileExistsError(f"{output} exists already; nothing was written")
    total, event_shape = sum(source.num_rows for source in sources), sources[0].event_shape
    if total > _MOST_ROWS:
        raise ValueError(f"at most {_MOST_ROWS:,} rows are put in order, found {total:,}")
    blocks = _blocks(sources, max(1, BLOCK_BYTES // (4 * math.prod(event_shape))))
    with Progress("preparing", total, "row", compiles=False) as shown, replacing(output) as file:
        done, mapped = 0, None
        for rows, place in blocks:
            if mapped is None:
                mapped = _map(file, (total, *event_shape), np.dtype(dtype or _dtype(rows)))
            _require_held(rows, mapped.dtype, place)
            mapped[random.shuffled(seed, 0, np.arange(done, done + len(rows)), total)] = rows
            done += len(rows)
            shown.update(len(rows))
        if mapped is not None:
            mapped.flush()
    return output


def _blocks(sources: Sequence[Source], size: int) -> Iterator[tuple[np.ndarray, Callable[[int], str]]]:
    """Yields numbers [n, *event_shape], and what names the place of each of them."""
    for source in sources:
        start = 0
        for rows in source.blocks(size):
            place = functools.partial(_place, source, start)
            yield (rows if isinstance(rows, np.ndarray) else _decoded(rows, source.event_shape, place)), place
            start += len(rows)


def _place(source: Source, start: int, row: int) -> str:
    return source.place(start + row)


def _decoded(encoded: list[bytes], event_shape: tuple[int, ...], place: Callable[[int], str]) -> np.ndarray:
    *size, channels = event_shape if len(event_shape) == 3 else (*event_shape, 1)
    if len(size) != 2:
        raise ValueError(f"images need an event shape of height, width and perhaps channels, found {event_shape}")
    rows = []
    for row, content in enumerate(encoded):
        try:
            rows.append(images.decode_resized(tf.constant(content), size, channels).numpy().astype(np.uint8))
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(f"{place(row)} is not a PNG or JPEG image: {images.problem(error)}") from None
    return np.stack(rows).reshape(-1, *event_shape)


def _are_bytes(rows: np.ndarray) -> np.ndarray:
    """Which rows hold whole numbers in 0..255 only, [n]."""
    return np.all((rows == np.floor(rows)) & (rows >= 0) & (rows <= 255), axis=tuple(range(1, rows.ndim)))


def _dtype(rows: np.ndarray) -> str:
    return "uint8" if rows.dtype in (np.uint8, np.bool_) or _are_bytes(rows).all() else "float32"


def _require_held(rows: np.ndarray, dtype: np.dtype, place: Callable[[int], str]) -> None:
    """Raises ValueError, which names the first row that a dtype does not hold."""
    if dtype == np.uint8:
        held, wanted = _are_bytes(rows), "whole numbers in 0..255, as rows before it; --dtype=float32 takes all numbers"
    else:
        values = rows.reshape(len(rows), -1)
        held, wanted = np.all(np.abs(values) <= np.finfo(np.float32).max, axis=1), "finite numbers"  # NaN: not <=
    if not held.all():
        raise ValueError(f"{place(int(np.argmin(held)))} holds others than {wanted}")


def _map(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    """Writes the header of a .npy file and maps the array behind it, whose place on the disk is taken before."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, header)
    file.flush()
    start, size = file.tell(), math.prod(shape) * dtype.itemsize
    if hasattr(os, "posix_fallocate"):  # a disk that is full ends the process when it is written to through a map
        os.posix_fallocate(file.fileno(), start, size)
    else:
        file.truncate(start + size)
    return np.memmap(file, dtype, "r+", offset=start, shape=shape)
