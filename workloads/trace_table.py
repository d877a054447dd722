"""Columns of a trace file, read in batches and checked row by row.

A file comes from anybody: it is read a bounded piece at a time, and the first
value that cannot be ends the reading with the file, row and column at fault.
Rows are counted from 1, without the header of a CSV file.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

BATCH_ROWS = 65_536
_BLOCK_BYTES = 1 << 20
_HEADER_BYTES = 64 << 10
_MOST_BYTES_A_ROW = 256
_LONGEST_SHOWN = 40

Values = NDArray[Any]
"""int64, float64 or text, as the column's ``dtype`` says."""
Batch = Mapping[str, Values]


class TraceError(Exception):
    """A trace that cannot be used; ``row`` and ``column`` are None where the whole file is at fault."""

    def __init__(self, file: str, row: int | None, column: str | None, expected: str, got: object = None) -> None:
        self.file, self.row, self.column, self.expected, self.got = file, row, column, expected, got
        parts = [file]
        if row is not None:
            parts.append(f"row {row}")
        if column is not None:
            parts.append(column)
        found = f", got {_shown(got)}" if got is not None else ""
        super().__init__(f"{': '.join(parts)}: expected {expected}{found}")

    def __reduce__(self) -> tuple[type[TraceError], tuple[object, ...]]:
        return type(self), (self.file, self.row, self.column, self.expected, self.got)


@dataclass(frozen=True, slots=True)
class Column:
    """A column and what its values may be: numbers from ``low`` to ``high``, or names where ``dtype`` is text."""

    name: str
    dtype: pa.DataType
    expected: str
    low: float = 0
    high: float = 0
    longest: int = 0


@dataclass(frozen=True, slots=True)
class TraceTable:
    """A table of a trace: a parquet or CSV file, or an Arrow table in memory, called ``label`` in errors."""

    label: str
    source: Path | pa.Table

    def batches(self, columns: tuple[Column, ...], most_rows: int) -> Iterator[tuple[int, Batch]]:
        """Checked values of ``columns``, each batch with the number of its first row."""
        row = 1
        try:
            for batch in self._raw(columns, most_rows):
                if row - 1 + batch.num_rows > most_rows:
                    raise TraceError(self.label, None, None, f"at most {most_rows} rows")
                if batch.num_rows:
                    yield row, {one.name: self._checked(one, batch.column(one.name), row) for one in columns}
                row += batch.num_rows
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            raise TraceError(self.label, None, None, "a readable parquet or CSV file", _first_line(error)) from error

    def _raw(self, columns: tuple[Column, ...], most_rows: int) -> Iterator[pa.RecordBatch]:
        names = [column.name for column in columns]
        if isinstance(self.source, Path):
            if not self.source.is_file():
                raise TraceError(self.label, None, None, "a file")
            if self.source.suffix == ".csv":
                return self._csv(self.source, names)
            return self._parquet(self.source, names, most_rows)
        self._require(names, self.source.column_names)
        return iter(self.source.select(names).to_batches(max_chunksize=BATCH_ROWS))

    def _parquet(self, path: Path, names: list[str], most_rows: int) -> Iterator[pa.RecordBatch]:
        # The limits bound what the header of a hostile file makes the reader allocate.
        with pyarrow.parquet.ParquetFile(
            path, thrift_string_size_limit=1 << 24, thrift_container_size_limit=1 << 20
        ) as file:
            self._require(names, file.schema_arrow.names)
            if file.metadata.num_rows > most_rows:
                raise TraceError(self.label, None, None, f"at most {most_rows} rows", file.metadata.num_rows)
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
            for group in groups:
                if group.total_byte_size > _BLOCK_BYTES + group.num_rows * _MOST_BYTES_A_ROW:
                    raise TraceError(self.label, None, None, f"at most {_MOST_BYTES_A_ROW} bytes a row")
            yield from file.iter_batches(batch_size=BATCH_ROWS, columns=names, use_threads=False)

    def _csv(self, path: Path, names: list[str]) -> Iterator[pa.RecordBatch]:
        with path.open(encoding="utf-8", newline="") as file:
            header = next(csv.reader([file.readline(_HEADER_BYTES)]), [])
        self._require(names, header)
        # As text first, so that a value that is no number is found with its row.
        convert = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=names,
            strings_can_be_null=True,
            null_values=[""],
        )
        read = pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False)
        with pyarrow.csv.open_csv(path, read_options=read, convert_options=convert) as reader:
            yield from reader

    def _require(self, names: list[str], found: list[str]) -> None:
        for name in names:
            if found.count(name) != 1:
                raise TraceError(self.label, None, name, f"one column of this name among {', '.join(names)}")

    def _checked(self, column: Column, values: pa.Array[Any], first_row: int) -> Values:
        """The values as numpy holds them, or the error of the first bad one."""
        if values.null_count:
            bad = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
            raise self._error(column, first_row + bad, "nothing")
        if not _castable(values.type, column.dtype):
            raise self._error(column, None, f"a column of {values.type}")
        if pa.types.is_timestamp(values.type):
            values = values.cast(pa.timestamp("ms", tz=values.type.tz))
        try:
            converted = values.cast(column.dtype)
        except pa.ArrowInvalid:
            bad = next(index for index, value in enumerate(values) if not _casts(value, column.dtype))
            raise self._error(column, first_row + bad, values[bad].as_py()) from None
        if column.longest:
            # Before numpy sees it, which gives each text the room of the longest.
            names = cast("pa.StringArray", converted)
            fits = pyarrow.compute.utf8_length(names).to_numpy(zero_copy_only=False) <= column.longest
        else:
            numbers = converted.to_numpy(zero_copy_only=False)
            fits = (numbers >= column.low) & (numbers <= column.high)  # false for NaN
        if not fits.all():
            bad = int(np.flatnonzero(~fits)[0])
            raise self._error(column, first_row + bad, values[bad].as_py())
        return names.to_numpy(zero_copy_only=False).astype(np.str_) if column.longest else numbers

    def _error(self, column: Column, row: int | None, got: object) -> TraceError:
        return TraceError(self.label, row, column.name, column.expected, got)


def _castable(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_integer(found) or pa.types.is_string(found) or pa.types.is_large_string(found):
        return True
    if pa.types.is_dictionary(found):
        return _castable(found.value_type, wanted)
    if pa.types.is_timestamp(found):
        return bool(wanted == pa.int64())
    return pa.types.is_floating(found) and wanted != pa.string()


def _casts(value: pa.Scalar[Any], dtype: pa.DataType) -> bool:
    try:
        value.cast(dtype)
    except pa.ArrowInvalid:
        return False
    return True


def _shown(value: object) -> str:
    shown = value if isinstance(value, str) else repr(value)
    shown = shown if shown.isprintable() else repr(shown)
    return shown if len(shown) <= _LONGEST_SHOWN else shown[: _LONGEST_SHOWN - 3] + "..."


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
