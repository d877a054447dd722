"""Traces of virtual machines in the schema of the Bitbrains extract (GWA-T-12, as OpenDC ships it).

    tasks        id, submission_time (ms since the epoch), duration (ms), cpu_count,
                 cpu_capacity (MHz of all CPUs together), mem_capacity (see MemoryUnit)
    fragments    id, duration (ms), cpu_usage (MHz of all CPUs together)

A task's fragments follow each other from its submission on, in the file's order;
the file has no times of its own for them. Both tables are parquet or CSV.
"""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from workloads.trace_table import Column, TraceError, TraceTable, Values
from workloads.trace_vm import NS_PER_MS, CpuFragments, TraceVm

__all__ = ["CpuFragments", "MemoryUnit", "TraceError", "TraceTable", "TraceVm", "load_trace", "read_trace"]

MOST_TASKS = 1_000_000
MOST_FRAGMENTS = 20_000_000
"""About twice the whole of Bitbrains' larger trace; bounds memory to some hundred MB."""
MOST_CPUS = 4096
MOST_MEMORY_BYTES = 32 << 40
_MOST_MHZ = MOST_CPUS * 10_000.0
_LONGEST_MS = 100 * 366 * 86_400_000
_LATEST_MS = 253_402_300_800_000
"""The year 10000."""
BOOST = 2.0
"""Use may exceed capacity: CPUs run above their nominal clock. The extract's largest excess is 6 %."""
_SMALLEST_FLEET_KIB = 64 << 10

_ID = re.compile(r"[A-Za-z0-9._-]{1,56}")


class MemoryUnit(Enum):
    """What one unit of ``mem_capacity`` stands for, in bytes.

    The schema says MB. The public extract of Bitbrains holds KiB: its values,
    such as 8388608 or 33554432, are round as KiB and would be terabytes for a
    machine of two CPUs as MB. ``AUTO`` takes a file for KiB if its smallest
    machine would have more than 64 GiB as MiB.
    """

    AUTO = 0
    KIB = 1 << 10
    MIB = 1 << 20


_TASKS = (
    Column("id", pa.string(), "an id of at most 56 letters, digits, '.', '_' and '-'", longest=56),
    Column("submission_time", pa.int64(), "milliseconds since the epoch, before the year 10000", 0, _LATEST_MS),
    Column("duration", pa.int64(), "from 1 ms to 100 years, in ms", 1, _LONGEST_MS),
    Column("cpu_count", pa.int64(), f"a whole number from 1 to {MOST_CPUS}", 1, MOST_CPUS),
    Column("cpu_capacity", pa.float64(), f"from 1 to {_MOST_MHZ:.0f} MHz", 1, _MOST_MHZ),
    Column("mem_capacity", pa.int64(), "more than 0 and at most 32 TiB", 1, MOST_MEMORY_BYTES // MemoryUnit.KIB.value),
)
_FRAGMENTS = (
    Column("id", pa.string(), "the id of a task", longest=56),
    Column("duration", pa.int64(), "from 1 ms to 100 years, in ms", 1, _LONGEST_MS),
    Column("cpu_usage", pa.float64(), f"from 0 to {_MOST_MHZ:.0f} MHz", 0, _MOST_MHZ),
)


def load_trace(folder: Path, memory_unit: MemoryUnit = MemoryUnit.AUTO) -> tuple[TraceVm, ...]:
    """The machines of ``tasks`` and ``fragments`` (.parquet, or else .csv) in a folder, by arrival."""
    return read_trace(_table(folder, "tasks"), _table(folder, "fragments"), memory_unit)


def read_trace(
    tasks: TraceTable, fragments: TraceTable, memory_unit: MemoryUnit = MemoryUnit.AUTO
) -> tuple[TraceVm, ...]:
    """The machines of two tables, by arrival, then by their order in the table. Raises TraceError."""
    rows = _columns(tasks, _TASKS, MOST_TASKS)
    ids = rows["id"].tolist()
    _check_ids(tasks.label, ids)
    unit = _memory_unit(tasks.label, rows["mem_capacity"], memory_unit)
    arrivals = rows["submission_time"]
    first = arrivals.min()
    late = arrivals - first > _LONGEST_MS
    if late.any():
        bad = int(np.flatnonzero(late)[0])
        raise TraceError(
            tasks.label, bad + 1, "submission_time", "a time within 100 years of the first", int(arrivals[bad])
        )
    pieces = _fragments_of(fragments, ids, rows)
    machines = [
        TraceVm(
            name=f"vm-{ids[index]}",
            arrival_ns=int(arrivals[index] - first) * NS_PER_MS,
            duration_ns=int(rows["duration"][index]) * NS_PER_MS,
            vcpus=int(rows["cpu_count"][index]),
            memory_bytes=int(rows["mem_capacity"][index]) * unit,
            fragments=pieces[index],
            capacity_mhz=float(rows["cpu_capacity"][index]),
        )
        for index in np.argsort(arrivals, kind="stable").tolist()
    ]
    return tuple(machines)


def _table(folder: Path, name: str) -> TraceTable:
    path, text = folder / f"{name}.parquet", folder / f"{name}.csv"
    if text.is_file() and not path.is_file():
        path = text
    return TraceTable(str(path), path)


def _columns(table: TraceTable, columns: tuple[Column, ...], most_rows: int) -> dict[str, Values]:
    batches = [batch for _, batch in table.batches(columns, most_rows)]
    if not batches:
        raise TraceError(table.label, None, None, "at least one row")
    return {column.name: np.concatenate([batch[column.name] for batch in batches]) for column in columns}


def _check_ids(label: str, ids: list[str]) -> None:
    seen: set[str] = set()
    for row, one in enumerate(ids, start=1):
        if not _ID.fullmatch(one):
            raise TraceError(label, row, "id", _TASKS[0].expected, one)
        if one in seen:
            raise TraceError(label, row, "id", "an id of its own for each task", one)
        seen.add(one)


def _memory_unit(label: str, capacities: Values, wanted: MemoryUnit) -> int:
    if wanted is MemoryUnit.AUTO:
        wanted = MemoryUnit.KIB if capacities.min() > _SMALLEST_FLEET_KIB else MemoryUnit.MIB
    too_much = capacities > MOST_MEMORY_BYTES // wanted.value
    if too_much.any():
        bad = int(np.flatnonzero(too_much)[0])
        raise TraceError(label, bad + 1, "mem_capacity", _TASKS[-1].expected, int(capacities[bad]))
    return wanted.value


def _fragments_of(table: TraceTable, ids: list[str], tasks: dict[str, Values]) -> list[CpuFragments]:
    """The fragments of each task, in the order of ``ids``."""
    known = {one: index for index, one in enumerate(ids)}
    owners: list[NDArray[np.int64]] = []
    durations: list[Values] = []
    usages: list[Values] = []
    for row, batch in table.batches(_FRAGMENTS, MOST_FRAGMENTS):
        names, where = np.unique(batch["id"], return_inverse=True)
        owner = np.array([known.get(name, -1) for name in names.tolist()], dtype=np.int64)[where]
        if (owner < 0).any():
            bad = int(np.flatnonzero(owner < 0)[0])
            raise TraceError(table.label, row + bad, "id", _FRAGMENTS[0].expected, str(batch["id"][bad]))
        above = batch["cpu_usage"] > BOOST * tasks["cpu_capacity"][owner]
        if above.any():
            bad = int(np.flatnonzero(above)[0])
            expected = f"at most {BOOST:g} times the task's cpu_capacity"
            raise TraceError(table.label, row + bad, "cpu_usage", expected, float(batch["cpu_usage"][bad]))
        owners.append(owner)
        durations.append(batch["duration"])
        usages.append(batch["cpu_usage"])
    if not owners:
        raise TraceError(table.label, None, None, "at least one row")
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    duration, usage = np.concatenate(durations)[order], np.concatenate(usages)[order]
    ends = np.searchsorted(owner[order], np.arange(len(ids) + 1))
    pieces = []
    for index, (start, stop) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
        over = np.cumsum(duration[start:stop]) > tasks["duration"][index]
        if over.any():
            row = int(order[start + int(np.flatnonzero(over)[0])]) + 1
            raise TraceError(table.label, row, "duration", f"fragments that end with their task {ids[index]}")
        pieces.append(CpuFragments(duration[start:stop].copy(), usage[start:stop].copy()))
    return pieces
