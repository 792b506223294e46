"""The scores of all shards as one .npz or parquet file, written with one shard in memory at a time."""

import math
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tfstruct.data import storage
from tfstruct.data.storage import gfile
from tfstruct.serving.batch.job import Job, Shard

FORMATS = (".npz", ".parquet")


def check_output(path: str) -> None:
    """Raises ValueError or FileNotFoundError unless a file of scores can be written."""
    if not path.endswith(FORMATS):
        raise ValueError(f"--output must end in {' or '.join(FORMATS)}, found {path!r}")
    folder = path.rpartition("/")[0]
    if folder and not storage.is_remote(path) and not gfile.isdir(folder):
        raise FileNotFoundError(f"the folder of --output does not exist: {folder}")


class Summary(NamedTuple):
    """What the scores of a job come to.

    Attributes:
        rows: how many rows.
        valid: how many of them have scores.
        means: mean and standard error over those rows, by output; of outputs with one number for each row.
    """

    rows: int
    valid: int
    means: dict[str, tuple[float, float]]


def join(job: Job, path: str) -> Summary:
    """Writes the scores of all shards as one file, and removes the shards.

    Beside the outputs and `valid` there are `path`, the file of each row, and `row`, its number in that file.

    Args:
        job: one whose shards are all scored.
        path: of a .npz or parquet file.
    """
    shards = job.shards()
    with storage.replacing(path) as file:
        (_write_npz if path.endswith(".npz") else _write_parquet)(job, shards, file)
    summary = _summarize(job, shards)
    gfile.rmtree(job.folder)
    return summary


def _column(job: Job, shard: Shard, name: str) -> np.ndarray:
    if name == "path":
        return np.array(shard.source.names(shard.start, shard.stop))
    with storage.reading(job.path(shard)) as file, np.load(file) as scores:
        return scores[name]


def _columns(job: Job, shards: list[Shard]) -> list[str]:
    with storage.reading(job.path(shards[0])) as file, np.load(file) as scores:
        return ["path", *scores.files]


def _write_npz(job: Job, shards: list[Shard], file: Any) -> None:
    num = sum(shard.num_rows for shard in shards)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in _columns(job, shards):
            if name == "path":
                dtype = np.dtype(f"<U{max(_column(job, shard, name).itemsize // 4 for shard in shards)}")
            else:
                dtype = _column(job, shards[0], name).dtype
            shape = (num, *_column(job, shards[0], name).shape[1:])
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for shard in shards:
                    member.write(np.ascontiguousarray(_column(job, shard, name).astype(dtype)).tobytes())


def _write_parquet(job: Job, shards: list[Shard], file: Any) -> None:
    def table(shard: Shard) -> pa.Table:
        columns = {name: _column(job, shard, name) for name in _columns(job, shards)}
        return pa.table({name: _arrow(values) for name, values in columns.items()})

    first = table(shards[0])
    with pq.ParquetWriter(file, first.schema) as writer:
        for shard in shards:
            writer.write_table(first if shard.index == 0 else table(shard))


def _arrow(values: np.ndarray) -> Any:
    """Returns a column; of outputs [N, ...] one of lists, of flat values."""
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), math.prod(values.shape[1:]))


def _summarize(job: Job, shards: list[Shard]) -> Summary:
    def kept(name: str) -> Iterator[np.ndarray]:
        for shard in shards:
            yield _column(job, shard, name)[_column(job, shard, "valid")].astype(np.float64)

    valid, means = sum(len(values) for values in kept("valid")), {}
    for name in _columns(job, shards):
        if name in ("path", "row", "valid") or _column(job, shards[0], name).ndim > 1:
            continue
        mean = sum(values.sum() for values in kept(name)) / valid if valid else math.nan
        squares = sum(((values - mean) ** 2).sum() for values in kept(name))
        means[name] = mean, math.sqrt(squares / (valid - 1) / valid) if valid > 1 else math.nan
    return Summary(sum(shard.num_rows for shard in shards), valid, means)
