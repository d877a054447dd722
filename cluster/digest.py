"""The digest of a run: SHA-256 over a canonical encoding of its tables.

Taken over values, never over file bytes: table name, then each column's name,
type and values, little-endian, rows in the order of their keys. Text carries
its length, absent values a zero in a map of presence, so no two different
tables have one encoding. Changing it makes all published digests void, so it
has a version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.tables import Column, ColumnType, TableSchema

_VERSION = b"sevfleet tables 1\0"
_FIXED = {ColumnType.INTEGER: "<i8", ColumnType.REAL: "<f8", ColumnType.BOOLEAN: "u1"}


def digest_of(tables: Mapping[str, pa.Table], schemas: Mapping[str, TableSchema]) -> str:
    """The digest in hexadecimal; neither the order of rows nor of tables matters."""
    digest = hashlib.sha256(_VERSION)
    for name in sorted(tables):
        for part in _encoded(tables[name], schemas[name]):
            digest.update(part)
    return digest.hexdigest()


def _encoded(table: pa.Table, schema: TableSchema) -> Iterator[bytes]:
    rows = table.sort_by([(key, "ascending") for key in schema.keys]).combine_chunks()
    yield _text(schema.name) + _number(len(schema.columns)) + _number(rows.num_rows)
    for column in schema.columns:
        yield _text(column.name) + _text(column.type.value)
        yield from _values(rows.column(column.name), column)


def _values(values: pa.ChunkedArray[Any], column: Column) -> Iterator[bytes]:
    yield values.is_valid().to_numpy().astype("u1").tobytes()
    if column.type is ColumnType.TEXT:
        texts = [text.encode() if text is not None else b"" for text in values.to_pylist()]
        yield np.fromiter(map(len, texts), "<u8", len(texts)).tobytes()
        yield b"".join(texts)
    else:
        absent = pa.scalar(0).cast(values.type)
        yield pc.fill_null(values, absent).to_numpy().astype(_FIXED[column.type]).tobytes()


def _text(text: str) -> bytes:
    data = text.encode()
    return _number(len(data)) + data


def _number(number: int) -> bytes:
    return number.to_bytes(8, "little")
