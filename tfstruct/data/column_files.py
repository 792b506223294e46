"""Rows of parquet and CSV files."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tfstruct.data import storage
from tfstruct.data.source import Rows, Source, choose


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
        return [choose(self.path, self.key, schema.names, "column")]

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
        return self._values(pa.Table.from_batches(pieces), columns, start)

    def blocks(self, size: int) -> Iterator[Rows]:
        with storage.reading(self.path) as file:  # in one pass: a group of rows is decoded from its beginning
            opened, start = self._opened(file), 0
            columns = self._columns(opened.schema_arrow)
            try:
                for batch in opened.iter_batches(size, columns=columns):
                    yield self._values(pa.Table.from_batches([batch]), columns, start)
                    start += batch.num_rows
            except (pa.ArrowInvalid, OSError) as error:
                raise ValueError(f"{self.path} is damaged: {error}") from None

    def _values(self, table: pa.Table, columns: Sequence[str], start: int) -> Rows:
        for name in columns:
            if table[name].null_count:
                row = start + next(row for row, value in enumerate(table[name]) if not value.is_valid)
                raise ValueError(f"{self.place(row)} has no value in the column {name!r}")
        if len(columns) > 1:
            return self.shaped(np.stack([table[name].to_numpy() for name in columns], axis=1), self.path)
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
        return self.shaped(values.to_numpy().reshape(sizes), self.path)


class CsvFile(Source):
    """The columns of a CSV file, all of them numbers; its first line names them unless it is one of numbers."""

    def _batches(self) -> Iterator[pa.RecordBatch]:
        with storage.reading(self.path) as file:
            try:
                names = pyarrow.csv.open_csv(file).schema.names
                file.seek(0)
                if self.key:
                    raise ValueError(f"{self.path} is one table, which has no --key={self.key}")
                if len(names) != math.prod(self.event_shape):
                    raise ValueError(
                        f"{self.path} has {len(names)} columns, expected one a value of {self.event_shape}"
                    )
                options = pyarrow.csv.ReadOptions(autogenerate_column_names=are_numbers(names))
                names = [f"f{place}" for place in range(len(names))] if are_numbers(names) else names
                kinds = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.float64()))
                yield from pyarrow.csv.open_csv(file, options, convert_options=kinds)
            except pa.ArrowInvalid as error:
                raise ValueError(f"{self.path} is no readable CSV file of numbers: {error}") from None

    @functools.cached_property
    def num_rows(self) -> int:
        return sum(batch.num_rows for batch in self._batches())

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        first = 0
        for batch in self._batches():
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                if column.null_count:
                    row = first + column.is_null().to_pylist().index(True)
                    raise ValueError(f"{self.place(row)} has no value in the column {name!r}")
            rows = np.stack([column.to_numpy() for column in batch.columns], axis=1)
            for start in range(0, len(rows), size):
                yield self.shaped(rows[start : start + size], self.path)
            first += len(rows)

    def read(self, start: int, stop: int) -> np.ndarray:
        pieces, first = [], 0
        for block in self.blocks(8192):
            pieces.append(block[max(start - first, 0) : max(stop - first, 0)])
            first += len(block)
            if first >= stop:
                break
        return np.concatenate(pieces)


def are_numbers(names: Sequence[str]) -> bool:
    """Whether the first line of a CSV file is a row as the others are: it names no columns."""
    try:
        [float(name) for name in names]
    except ValueError:
        return False
    return True
