"""What a sweep takes from each run: a few numbers by name, each of the fleet or of a part of it.

A figure without a value in a run, such as the downtime of a fleet that
migrates nobody, is left out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from cluster.errors import UserError
from cluster.near_names import nearest
from cluster.report import ADDED
from cluster.results import Results
from cluster.stretched import OWN
from cluster.units import shown

FLEET = "fleet"
_COMPLETED = "completed"

Row = Mapping[str, Any]
Parts = Mapping[str, float]
"""Values by what they are of."""


class Value(NamedTuple):
    """One number of one run: which figure, of what."""

    figure: str
    of: str
    value: float


@dataclass(frozen=True, slots=True)
class SweepFigure:
    """How a number is taken from results. ``pairs``: it needs each VM run again as PLAIN."""

    name: str
    unit: str
    meaning: str
    take: Callable[[Results], Parts]
    default: bool = False
    pairs: bool = False


class UnknownFigureError(UserError):
    """A figure that no run has."""


def chosen_figures(names: Sequence[str] | None) -> tuple[SweepFigure, ...]:
    """The figures of these names, in the order of FIGURES; the default ones for None. Raises UnknownFigureError."""
    if names is None:
        return tuple(figure for figure in FIGURES.values() if figure.default)
    for name in names:
        if name not in FIGURES:
            raise UnknownFigureError(f"expected {nearest(name, list(FIGURES))}, got {shown(name)}")
    return tuple(figure for figure in FIGURES.values() if figure.name in names)


def values_of_run(results: Results, pairs: bool) -> tuple[Value, ...]:
    """Every figure of a run, those of ``pairs`` only where it has them."""
    return tuple(
        Value(figure.name, of, float(value))
        for figure in FIGURES.values()
        if pairs or not figure.pairs
        for of, value in sorted(figure.take(results).items())
        if math.isfinite(value)
    )


def _kind(row: Row) -> str:
    return f"{row['workload']} {row['generation']}"


def _generation(row: Row) -> str:
    return str(row["generation"])


def _rows(results: Results, table: str) -> Sequence[Row]:
    rows: Sequence[Row] = results.tables[table].to_pylist()
    return rows


def _means(rows: Iterable[Row], part: Callable[[Row], str], value: Callable[[Row], float | None]) -> Parts:
    """Means over rows that have a value, by part."""
    parts: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        found = value(row)
        if found is not None:
            parts[part(row)].append(found)
    return {name: fmean(values) for name, values in parts.items()}


def _times(results: Results) -> Mapping[str, Mapping[str, float]]:
    """Time of vCPUs by workload with generation, then by mechanism."""
    kinds = {row["vm"]: _kind(row) for row in _rows(results, "vms")}
    times: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in _rows(results, "vm_time"):
        times[kinds[row["vm"]]][row["mechanism"]] += row["time_ns"]
    return times


def _over_own(results: Results, chosen: Callable[[Mapping[str, float]], float]) -> Parts:
    """Some of the time, in parts of what the programs themselves need."""
    parts: dict[str, float] = {}
    for kind, times in _times(results).items():
        own_ns = sum(times.get(mechanism, 0.0) for mechanism in OWN)
        if own_ns:
            parts[kind] = chosen(times) / own_ns
    return parts


def _stretched(results: Results) -> Parts:
    return _over_own(results, lambda times: sum(times.values()))


def _share(mechanism: str) -> Callable[[Results], Parts]:
    return lambda results: _over_own(results, lambda times: times.get(mechanism, 0.0))


def _launch(results: Results) -> Parts:
    return _means(_rows(results, "vms"), _kind, lambda row: row["launch_ns"])


def _psp_wait(results: Results) -> Parts:
    asked = (row for row in _rows(results, "vms") if row["psp_service_ns"] or row["psp_wait_ns"])
    return _means(asked, _generation, lambda row: row["psp_wait_ns"])


def _psp_longest_wait(results: Results) -> Parts:
    return {FLEET: max((row["psp_longest_wait_ns"] for row in _rows(results, "hosts")), default=0)}


def _migration(results: Results) -> Parts:
    return _means(_migrated(results), _generation, lambda row: row["ended_ns"] - row["started_ns"])


def _downtime(results: Results) -> Parts:
    return _means(_migrated(results), _generation, lambda row: row["downtime_ns"])


def _migrated(results: Results) -> list[Row]:
    return [row for row in _rows(results, "migrations") if row["outcome"] == _COMPLETED]


def _not_migrated(results: Results) -> Parts:
    rows = _rows(results, "migrations")
    return {FLEET: sum(row["outcome"] != _COMPLETED for row in rows)} if rows else {}


def _not_as_asked(results: Results) -> Parts:
    return {FLEET: sum(row["state"] in {"refused", "failed"} for row in _rows(results, "vms"))}


def _work(results: Results) -> Parts:
    parts: defaultdict[str, float] = defaultdict(float)
    for row in _rows(results, "vms"):
        parts[_kind(row)] += row["units_of_work"]
    return parts


def _host_mean(column: str) -> Callable[[Results], Parts]:
    return lambda results: _means(_rows(results, "hosts"), lambda _: FLEET, lambda row: row[column])


def _memory_peak(results: Results) -> Parts:
    return {FLEET: sum(row["memory_peak_bytes"] for row in _rows(results, "hosts"))}


def _slowdown(results: Results) -> Parts:
    return _means(_rows(results, "pairs"), _kind, lambda row: row["slowdown"])


FIGURES: Mapping[str, SweepFigure] = {
    figure.name: figure
    for figure in (
        SweepFigure("stretched", "x", "vCPU time over what the programs themselves need", _stretched, default=True),
        SweepFigure("launch_ns", "ns", "from order to running, mean over VMs", _launch, default=True),
        SweepFigure("psp_wait_ns", "ns", "a VM's wait for the security processor, mean over VMs that use it",
                    _psp_wait, default=True),
        SweepFigure("psp_longest_wait_ns", "ns", "longest wait of one command for a security processor",
                    _psp_longest_wait),
        SweepFigure("migration_ns", "ns", "from admission to the end, mean over completed migrations",
                    _migration, default=True),
        SweepFigure("downtime_ns", "ns", "standstill, mean over completed migrations", _downtime, default=True),
        SweepFigure("not_migrated", "1", "migrations that did not complete", _not_migrated, default=True),
        SweepFigure("not_as_asked", "1", "VMs refused or failed", _not_as_asked, default=True),
        SweepFigure("work", "1", "units of work completed", _work),
        SweepFigure("slowdown", "x", "each VM against itself run as PLAIN, mean over VMs", _slowdown, pairs=True),
        *(
            SweepFigure(f"{mechanism.value}_share", "ratio",
                        f"time for {mechanism.value} over what the programs themselves need", _share(mechanism))
            for mechanism in ADDED
        ),
        SweepFigure("core_ratio", "ratio", "hardware threads in use, mean over time and hosts",
                    _host_mean("core_mean_ratio")),
        SweepFigure("bandwidth_ratio", "ratio", "memory bandwidth in use, mean over time and hosts",
                    _host_mean("bandwidth_mean_ratio")),
        SweepFigure("memory_peak_bytes", "byte", "each host's most memory in use, summed", _memory_peak),
    )
}  # fmt: skip
"""By name. To add one, add a line, and raise FORMAT in cluster/sweeps/folder.py: kept runs lack it."""
