"""What a run found: tables, a summary and a digest, in memory and in a folder.

    out/summary.json          the same for the same results: no wall time, layout or workers in it
    out/run.json              how this run went: wall time, layout, workers, versions
    out/tables/*.parquet      the tables of cluster/tables.py
    out/digests.parquet       the chained digests, for ``sevfleet diff``
    out/events.parquet        the event log, where one was asked for
    out/scenario.toml         the scenario as it was run

The folder appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.digest import digest_of
from cluster.errors import UserError
from cluster.scenario import Scenario
from cluster.tables import ARROW_TYPES, EVENTS, TABLES, Row, TableSchema, build_tables
from cluster.units import shown

FORMAT = 1
"""Version of the folder's layout; stands in summary.json under "sevfleet_results". Columns are looked at by name."""

_MARK = "sevfleet_results"
_SUMMARY = "summary.json"
_RUN = "run.json"
_SCENARIO = "scenario.toml"
_DIGESTS = "digests"
_EVENTS = "events.parquet"
_OURS = {_SUMMARY, _RUN, _SCENARIO, _EVENTS, f"{_DIGESTS}.parquet", "tables"}
_MISFITS = 3
"""So many columns that do not fit are named."""
_BELONGS_TO = b"sevfleet_digest"
"""Metadata of the event log: the digest of the results that it is of."""


class ResultsError(UserError):
    """A folder that holds no results, or must not be overwritten with them."""


@dataclass(frozen=True)
class Results:
    """The results of one run. Tables are also attributes: ``results.vms``.

    ``figures`` are the run's main numbers, which a summary shows; they follow
    from the run alone. ``run`` says how it went this time and is not part of
    the digest. ``partial`` is why the run ended early, None for a whole one.
    ``events`` is the event log, None without one; it is no part of the digest.
    """

    scenario: Scenario
    tables: Mapping[str, pa.Table]
    figures: Mapping[str, object] = field(default_factory=dict)
    run: Mapping[str, object] = field(default_factory=dict)
    partial: str | None = None
    events: pa.Table | None = None

    @classmethod
    def of_rows(
        cls,
        scenario: Scenario,
        rows: Mapping[str, Sequence[Row]],
        *,
        figures: Mapping[str, object] | None = None,
        run: Mapping[str, object] | None = None,
        partial: str | None = None,
        events: pa.Table | None = None,
    ) -> Self:
        """Results of rows by table name. Raises TableError where a row does not fit its table."""
        return cls(scenario, build_tables(rows), figures or {}, run or {}, partial, events)

    def __getattr__(self, name: str) -> pa.Table:
        # Before __init__ is through (in copies, in pickles) there are no tables yet.
        tables = self.__dict__.get("tables", {})
        if name in tables:
            table: pa.Table = tables[name]
            return table
        raise AttributeError(f"results have no table {name}; there are {', '.join(tables)}")

    @property
    def digest(self) -> str:
        """SHA-256 of every table's values, in hexadecimal."""
        return digest_of(self.tables, TABLES)

    @property
    def summary(self) -> dict[str, object]:
        """What summary.json holds."""
        return {
            _MARK: FORMAT,
            "scenario": self.scenario.name,
            "seed": self.scenario.seed,
            "digest": self.digest,
            "partial": self.partial is not None,
            **({"reason": self.partial} if self.partial is not None else {}),
            "rows": {name: table.num_rows for name, table in sorted(self.tables.items())},
            "figures": dict(self.figures),
        }

    def save(self, folder: str | Path) -> None:
        """Write a results folder whole or not at all. Raises ResultsError, or OSError from the disk."""
        check_output(folder)
        with _replacing(Path(folder).resolve()) as new:
            (new / "tables").mkdir()
            for name, table in self.tables.items():
                pq.write_table(table, _table_file(new, name))
            if self.events is not None:
                pq.write_table(self.events.replace_schema_metadata({_BELONGS_TO: self.digest}), new / _EVENTS)
            _write_json(new / _RUN, {**self.run, "partial": self.partial is not None})
            (new / _SCENARIO).write_text(self.scenario.to_toml(), "utf-8")
            _write_json(new / _SUMMARY, self.summary)

    @classmethod
    def load(cls, folder: str | Path, *, events: bool = True) -> Self:
        """Read a results folder, its event log only with ``events``. Raises ResultsError for anything else."""
        here = Path(folder)
        summary = _read_json(here / _SUMMARY)
        if summary.get(_MARK) != FORMAT:
            raise ResultsError(f"{here / _SUMMARY}: {_MARK}: expected {FORMAT}, got {summary.get(_MARK)!r}")
        figures = summary.get("figures")
        reason = summary.get("reason")
        results = cls(
            Scenario.load(here / _SCENARIO),
            {name: _read_table(here, name) for name in TABLES},
            figures if isinstance(figures, dict) else {},
            _read_json(here / _RUN),
            str(reason) if summary.get("partial") else None,
            _read_events(here / _EVENTS, summary.get("digest")) if events and (here / _EVENTS).exists() else None,
        )
        if results.digest != summary.get("digest"):
            raise ResultsError(f"{here / _SUMMARY}: digest: expected {results.digest}, that of the tables beside it")
        return results


def check_output(folder: str | Path) -> None:
    """Raise ResultsError unless the folder is new, empty, or holds nothing but earlier results."""
    path = Path(folder)
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir():
        raise ResultsError(f"{folder}: expected a folder for results, got a file")
    try:
        foreign = sorted({entry.name for entry in path.iterdir()} - _OURS)
        empty = not any(path.iterdir())
    except OSError as error:
        raise ResultsError(f"{folder}: expected a folder that can be read, got: {error.strerror}") from None
    if foreign:
        raise ResultsError(
            f'{folder}: expected a new or empty folder, or earlier results, got one that holds "{foreign[0]}"'
        )
    if not empty and _MARK not in _read_json(path / _SUMMARY):
        raise ResultsError(f"{folder}: expected a new or empty folder, or earlier results, got something else")


def check_room_for(folder: str | Path) -> None:
    """As ``check_output``, and raise ResultsError too where the folder could not be made; nothing stays of the try."""
    path = Path(folder).absolute()
    try:
        check_output(folder)
        there = next(parent for parent in path.parents if parent.exists())
        Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=there)).rmdir()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResultsError(f"{folder}: expected a folder that can be made, got: {reason}") from None


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder`` that takes its place at the end, or vanishes when anything fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        new = work / "new"
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(work / "old")
        try:
            new.rename(folder)
        except OSError:
            if (work / "old").exists():
                (work / "old").rename(folder)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _table_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.parquet" if name == _DIGESTS else folder / "tables" / f"{name}.parquet"


def _read_table(folder: Path, name: str) -> pa.Table:
    return _read_parquet(_table_file(folder, name), TABLES[name])


def _read_events(file: Path, digest: object) -> pa.Table:
    table = _read_parquet(file, EVENTS)
    found = (table.schema.metadata or {}).get(_BELONGS_TO, b"").decode("ascii", "replace")
    if found != digest:
        raise ResultsError(f"{file}: digest: expected {digest}, that of the results, got {shown(found)}")
    return table.replace_schema_metadata(None)


def _read_parquet(file: Path, expected: TableSchema) -> pa.Table:
    try:
        table = pq.ParquetFile(file).read()
    except (OSError, pa.ArrowException) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "something else"
        raise ResultsError(f"{file}: expected a Parquet file, got: {reason}") from None
    misfits = list(_misfits(table, expected))
    if misfits:
        more = f"; and {len(misfits) - _MISFITS} more" if len(misfits) > _MISFITS else ""
        raise ResultsError(f"{file}: {'; '.join(misfits[:_MISFITS])}{more}")
    # Another version may have let a column be empty that nowhere is.
    schema = expected.arrow
    return table.select(schema.names).cast(schema.with_metadata(table.schema.metadata))


def _misfits(table: pa.Table, expected: TableSchema) -> Iterator[str]:
    """What is wrong with a table's columns, a line for each."""
    names = table.schema.names
    for column in expected.columns:
        name, wanted, there = column.name, ARROW_TYPES[column.type], names.count(column.name)
        if there != 1:
            yield f"{name}: expected one such column, got {there}"
        elif table.schema.field(name).type != wanted:
            yield f"{name}: expected {wanted}, got {shown(str(table.schema.field(name).type))}"
        elif not column.optional and table[name].null_count:
            yield f"{name}: expected a value in each row, got none in {table[name].null_count} of {table.num_rows}"
    known = {column.name for column in expected.columns}
    yield from (f"{shown(name)}: expected no such column" for name in names if name not in known)


def _write_json(file: Path, values: Mapping[str, object]) -> None:
    file.write_text(json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n", "utf-8")


def _read_json(file: Path) -> dict[str, object]:
    try:
        values = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ResultsError(f"{file.parent}: expected a folder of results, found no {file.name} in it") from None
    except (OSError, ValueError, RecursionError):
        raise ResultsError(f"{file}: expected JSON") from None
    if not isinstance(values, dict):
        raise ResultsError(f"{file}: expected a JSON object")
    return values
