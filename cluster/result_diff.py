"""Where two runs part: the first bucket of virtual time and entity, then the first cells of the tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from cluster.results import Results
from cluster.tables import TABLES, TableSchema

_DIGESTS = "digests"

Cell = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class FirstBucket:
    """The first bucket of virtual time in which digests differ, and whose they are."""

    bucket: int
    start_ns: int
    entities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CellDifference:
    """One cell, or with column None a whole row that only one of the runs has."""

    table: str
    key: tuple[Cell, ...]
    column: str | None
    left: Cell
    right: Cell


@dataclass(frozen=True, slots=True)
class Difference:
    """Everything that two runs do not share, to a limit of cells."""

    scenario_fields: tuple[str, ...]
    """Top-level fields in which the scenarios as run differ; alone they are no difference of results."""
    first_bucket: FirstBucket | None
    cells: tuple[CellDifference, ...]
    more: bool
    """Whether further cells differ."""
    same: bool
    """Whether the results' digests are equal."""


def difference(left: Results, right: Results, limit: int = 10) -> Difference:
    """Compare two results; ``limit`` bounds how many cells are reported."""
    fields = tuple(
        name
        for name in type(left.scenario).model_fields
        if getattr(left.scenario, name) != getattr(right.scenario, name)
    )
    if left.digest == right.digest:
        return Difference(fields, None, (), more=False, same=True)
    cells = list(islice(_cells(left, right), limit + 1))
    first = first_bucket(left.tables[_DIGESTS], right.tables[_DIGESTS])
    return Difference(fields, first, tuple(cells[:limit]), more=len(cells) > limit, same=False)


def first_bucket(
    left: pa.Table, right: pa.Table, from_bucket_on: int | None = None, *, left_is_whole: bool = True
) -> FirstBucket | None:
    """Where two tables of digests part first; buckets from ``from_bucket_on`` on are left out of it.

    So is what only the right one has, unless the left one is whole.
    """
    chains = [
        {
            (row["bucket"], row["entity"]): (row["start_ns"], row["records"], row["digest"])
            for row in table.to_pylist()
            if from_bucket_on is None or row["bucket"] < from_bucket_on
        }
        for table in (left, right)
    ]
    places = chains[0].keys() | (chains[1].keys() if left_is_whole else set())
    parted = sorted(place for place in places if chains[0].get(place) != chains[1].get(place))
    if not parted:
        return None
    bucket = parted[0][0]
    start_ns = (chains[0].get(parted[0]) or chains[1][parted[0]])[0]
    return FirstBucket(bucket, start_ns, tuple(entity for number, entity in parted if number == bucket))


def _cells(left: Results, right: Results) -> Iterator[CellDifference]:
    for name, schema in TABLES.items():
        if name != _DIGESTS:
            yield from _table_cells(schema, _by_key(left, schema), _by_key(right, schema))


_Rows = dict[tuple[Cell, ...], dict[str, Cell]]


def _by_key(results: Results, schema: TableSchema) -> _Rows:
    return {tuple(row[key] for key in schema.keys): row for row in results.tables[schema.name].to_pylist()}


def _table_cells(schema: TableSchema, left: _Rows, right: _Rows) -> Iterator[CellDifference]:
    for key in sorted(left.keys() | right.keys()):
        if key not in left or key not in right:
            yield CellDifference(schema.name, key, None, _presence(key in left), _presence(key in right))
            continue
        for column in schema.columns:
            here, there = left[key][column.name], right[key][column.name]
            if here != there:
                yield CellDifference(schema.name, key, column.name, here, there)


def _presence(present: bool) -> str:
    return "present" if present else "absent"
