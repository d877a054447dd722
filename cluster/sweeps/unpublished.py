"""What rows of the cost table that nobody has published make of a whole run: each at both ends of its sweep, alone.

Unlike ``cluster.swept_run``, which prices one run anew, every end is a run of its own. So launches, migrations and
waits for the security processor have their ranges too, and so has what follows from the order of things.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa

from cluster.progress import ShouldStop
from cluster.scenario import Scenario
from cluster.sweeps.figures import SweepFigure, chosen_figures
from cluster.sweeps.parameter_sweep import played_runs
from cluster.sweeps.plan import Axis, Run, SweepPlan
from cluster.sweeps.progress import OnSweepProgress
from cluster.sweeps.run import RunOutcome
from cluster.tables import Column, ColumnType, Row, TableSchema
from cluster.tornado import swept_rows

_T, _I, _R = ColumnType.TEXT, ColumnType.INTEGER, ColumnType.REAL
_FIGURE = Column("figure", _T, "", "name of the figure (FIGURES in cluster/sweeps/figures.py)", key=True)
_OF = Column("of", _T, "", "what it is of: a workload and generation, a generation, or the fleet", key=True)
_UNIT = Column("unit", _T, "", "the figure's unit")
_ROW = Column("row", _T, "", "row of the cost table", key=True)

RANGES = TableSchema(
    "ranges",
    "One row per figure and what it is of: what it takes on while each row that nobody has published is swept.",
    (
        _FIGURE, _OF, _UNIT,
        Column("as_is", _R, "the figure's", "mean over the seeds with the cost table as it is", optional=True),
        Column("low", _R, "the figure's", "least such mean over all ends"),
        Column("high", _R, "the figure's", "greatest such mean over all ends"),
        Column("rows", _I, "1", "rows of the cost table that change it"),
        Column("none_at", _I, "1", "ends at which no run has a value"),
    ),
)  # fmt: skip
SWINGS = TableSchema(
    "swings",
    "One row per figure, what it is of, and row of the cost table that changes it.",
    (
        _FIGURE, _OF, _UNIT, _ROW,
        Column("row_low", _R, "the row's", "least of the row's sweep"),
        Column("row_high", _R, "the row's", "most of the row's sweep"),
        Column("at_low", _R, "the figure's", "mean over the seeds with the row at its least", optional=True),
        Column("at_high", _R, "the figure's", "mean over the seeds with the row at its most", optional=True),
    ),
)  # fmt: skip
RUNS = TableSchema(
    "runs",
    "One row per run: the cost table as it is or with one row at one end of its sweep, and a seed.",
    (
        Column("point", _I, "1", "0 as it is, then each row at its least and its most", key=True),
        Column("row", _T, "", "row of the cost table", optional=True),
        Column("row_value", _R, "the row's", "what it was set to", optional=True),
        Column("seed", _I, "1", "seed of the run", key=True),
        Column("state", _T, "", "done or failed"),
        Column("reason", _T, "", "why it failed", optional=True),
        Column("digest", _T, "hex", "digest of the run's results, as sevfleet run has it", optional=True),
    ),
)  # fmt: skip

_Kind = tuple[str, str]
"""Figure, and what it is of."""


@dataclass(frozen=True)
class UnpublishedSweep:
    """What the ends of all sweeps found, as pyarrow tables (columns: RANGES, SWINGS and RUNS).

    ``partial`` is why it ended early, None for a whole one.
    """

    plan: SweepPlan = field(repr=False)
    ranges: pa.Table = field(repr=False)
    swings: pa.Table = field(repr=False)
    runs: pa.Table = field(repr=False)
    failures: Mapping[Run, str]
    """Runs without a result, and why."""
    partial: str | None = None


def sweep_unpublished(
    scenario: Scenario,
    *,
    seeds: int | Iterable[int] = 1,
    figures: Sequence[str] | None = None,
    out: str | Path | None = None,
    workers: int | None = None,
    address: str | None = None,
    on_progress: OnSweepProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> UnpublishedSweep:
    """Run ``scenario`` as it is, and with each row that has a sweep at the least and the most of it.

    Those are what nobody has published, and what was published and varies. A row that the scenario or a file of its
    user sets is somebody's measurement, and stays. Else as ``cluster.sweep``: the same arguments, errors, and folder
    to go on from.
    """
    chosen = chosen_figures(figures)
    plan = SweepPlan.one_at_a_time(scenario, seeds, swept_rows(scenario))
    played = played_runs(
        plan, lambda outcomes: tables_of(plan, outcomes, chosen), pairs=any(one.pairs for one in chosen), out=out,
        workers=workers, address=address, on_progress=on_progress, should_stop=should_stop,
    )  # fmt: skip
    tables = played.tables
    return UnpublishedSweep(plan, tables["ranges"], tables["swings"], tables["runs"], played.failures, played.partial)


def tables_of(
    plan: SweepPlan, outcomes: Mapping[Run, RunOutcome], figures: Sequence[SweepFigure]
) -> dict[str, pa.Table]:
    """All tables, by name, from the points whose runs all have a result."""
    units = {figure.name: figure.unit for figure in figures}
    means = _means(plan, outcomes, units)
    missing = {run.point.number for run in plan.runs if run not in outcomes or outcomes[run].reason is not None}
    ended = {point.number for point in plan.points} - missing  # Means over other seeds would pass for swings.
    ranges: list[Row] = []
    swings: list[Row] = []
    for kind in sorted({kind for point in sorted(ended) for kind in means[point]}):
        figure, of = kind
        named = {"figure": figure, "of": of, "unit": units[figure]}
        as_is = means[0].get(kind) if 0 in ended else None
        changed = 0
        for number, axis in enumerate(plan.axes):
            ends = [1 + 2 * number, 2 + 2 * number]
            if not ended.issuperset({0, *ends}):
                continue
            low, high = (means[end].get(kind) for end in ends)
            if not low == high == as_is:
                changed += 1
                least, most = map(float, axis.values)
                row = {"row": _row_name(axis), "row_low": least, "row_high": most}
                swings.append({**named, **row, "at_low": low, "at_high": high})
        values = [means[point][kind] for point in sorted(ended) if kind in means[point]]
        none_at = sum(kind not in means[point] for point in ended)
        ranges.append({
            **named, "as_is": as_is, "low": min(values), "high": max(values), "rows": changed, "none_at": none_at,
        })  # fmt: skip
    return {"ranges": RANGES.build(ranges), "swings": SWINGS.build(swings), "runs": RUNS.build(_runs(plan, outcomes))}


def _means(plan: SweepPlan, outcomes: Mapping[Run, RunOutcome], units: Mapping[str, str]) -> list[dict[_Kind, float]]:
    """Means over the seeds, by figure and what it is of; one for each point."""
    values: list[dict[_Kind, list[float]]] = [{} for _ in plan.points]
    for run in plan.runs:
        if run in outcomes:
            for figure, of, value in outcomes[run].values:
                if figure in units:
                    values[run.point.number].setdefault((figure, of), []).append(value)
    return [{kind: fmean(one) for kind, one in here.items()} for here in values]


def _runs(plan: SweepPlan, outcomes: Mapping[Run, RunOutcome]) -> list[Row]:
    rows: list[Row] = []
    for run in plan.runs:
        outcome = outcomes.get(run)
        if outcome is None:
            continue
        end = next(iter(run.point.settings(plan.axes)), None)
        rows.append({
            "point": run.point.number, "row": None if end is None else _row_name(end[0]),
            "row_value": None if end is None else float(end[1]), "seed": run.seed,
            "state": "done" if outcome.reason is None else "failed", "reason": outcome.reason, "digest": outcome.digest,
        })  # fmt: skip
    return rows


def _row_name(axis: Axis) -> str:
    return axis.path.removeprefix("costs.")


def relative_swing(row: Mapping[str, Any], as_is: float | None) -> float:
    """How far a swing goes, as a share of the figure; infinite where the figure is nothing or has no value."""
    low, high = row["at_low"], row["at_high"]
    if not as_is or low is None or high is None:
        return math.inf
    return float(max(abs(low - as_is), abs(high - as_is)) / abs(as_is))
