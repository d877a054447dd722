"""The tables of a sweep: for each column its name, type, unit and meaning, as in cluster/tables.py.

Each setting that is varied has a column named by its path; its type follows
from the values. The tables are the same whatever order the runs ended in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from cluster.sweeps.confidence import interval_of
from cluster.sweeps.figures import SweepFigure
from cluster.sweeps.plan import Axis, Point, Run, SweepPlan, value_text
from cluster.sweeps.run import RunOutcome
from cluster.tables import Column, ColumnType, Row, TableSchema
from node.program import Scalar

_T, _I, _R = ColumnType.TEXT, ColumnType.INTEGER, ColumnType.REAL

Outcomes = Mapping[Run, RunOutcome]

_POINT = Column("point", _I, "1", "number of the grid point, from 0, the last setting varied first", key=True)
_SEED = Column("seed", _I, "1", "seed of the run", key=True)
_FIGURE = Column("figure", _T, "", "name of the figure (FIGURES in cluster/sweeps/figures.py)", key=True)
_OF = Column("of", _T, "", "what it is of: a workload and generation, a generation, or the fleet", key=True)
_UNIT = Column("unit", _T, "", "the figure's unit")


def sweep_schema(axes: Sequence[Axis]) -> TableSchema:
    """The main table."""
    return TableSchema(
        "sweep",
        "One row per grid point, figure and what it is of: its mean over the seeds.",
        (
            _POINT, *_axis_columns(axes), _FIGURE, _OF, _UNIT,
            Column("runs", _I, "1", "runs of the point: one a seed"),
            Column("n", _I, "1", "runs that have a value"),
            Column("mean", _R, "the figure's", "mean of the values", optional=True),
            Column("half_width", _R, "the figure's",
                   "half of the mean's 95 % confidence interval (Student's t); none for fewer than two values",
                   optional=True),
            Column("min", _R, "the figure's", "least value", optional=True),
            Column("max", _R, "the figure's", "greatest value", optional=True),
        ),
    )  # fmt: skip


def runs_schema(axes: Sequence[Axis]) -> TableSchema:
    """How each run ended."""
    return TableSchema(
        "runs",
        "One row per run: a grid point with a seed.",
        (
            _POINT, *_axis_columns(axes), _SEED,
            Column("state", _T, "", "done or failed"),
            Column("reason", _T, "", "why it failed", optional=True),
            Column("digest", _T, "hex", "digest of the run's results, as sevfleet run has it", optional=True),
        ),
    )  # fmt: skip


def points_schema(axes: Sequence[Axis]) -> TableSchema:
    """Every value that the main table is made of."""
    return TableSchema(
        "points",
        "One row per run, figure and what it is of.",
        (
            _POINT, *_axis_columns(axes), _SEED, _FIGURE, _OF, _UNIT,
            Column("value", _R, "the figure's", "value of the figure in the run"),
        ),
    )  # fmt: skip


def sweep_tables(plan: SweepPlan, outcomes: Outcomes, figures: Sequence[SweepFigure]) -> dict[str, pa.Table]:
    """All tables of a sweep, by name, from the outcomes there are."""
    units = {figure.name: figure.unit for figure in figures}
    settings = {point.number: _settings(point, plan.axes) for point in plan.points}
    runs: list[Row] = []
    points: list[Row] = []
    values: dict[tuple[int, str, str], list[float]] = {}
    for run in plan.runs:
        outcome = outcomes.get(run)
        if outcome is None:
            continue
        place = {"point": run.point.number, **settings[run.point.number], "seed": run.seed}
        state = "done" if outcome.reason is None else "failed"
        runs.append({**place, "state": state, "reason": outcome.reason, "digest": outcome.digest})
        for name, of, value in outcome.values:
            if name in units:
                points.append({**place, "figure": name, "of": of, "unit": units[name], "value": value})
                values.setdefault((run.point.number, name, of), []).append(value)
    kinds = sorted({(name, of) for _, name, of in values})
    means = [
        {
            "point": point.number, **settings[point.number], "figure": name, "of": of, "unit": units[name],
            "runs": len(plan.seeds), **_statistics(values.get((point.number, name, of), [])),
        }
        for point in plan.points
        for name, of in kinds
    ]  # fmt: skip
    return {
        "sweep": sweep_schema(plan.axes).build(means),
        "runs": runs_schema(plan.axes).build(runs),
        "points": points_schema(plan.axes).build(points),
    }


def _statistics(values: Sequence[float]) -> dict[str, object]:
    if not values:
        return {"n": 0, "mean": None, "half_width": None, "min": None, "max": None}
    one = interval_of(values)
    return {"n": one.n, "mean": one.mean, "half_width": one.half_width, "min": one.least, "max": one.most}


def _axis_columns(axes: Sequence[Axis]) -> tuple[Column, ...]:
    return tuple(Column(axis.path, _axis_type(axis), "the scenario's", "value of the setting") for axis in axes)


def _axis_type(axis: Axis) -> ColumnType:
    kinds = {type(value) for value in axis.values}
    if kinds == {int} and all(-(1 << 63) <= int(value) < 1 << 63 for value in axis.values):
        return _I
    return _R if kinds <= {int, float} and all(abs(float(value)) < 2**53 for value in axis.values) else _T


def shown_value(axis: Axis, value: Scalar) -> Scalar:
    """A setting's value as its column holds it."""
    return value_text(value) if _axis_type(axis) is _T else value


def _settings(point: Point, axes: Sequence[Axis]) -> dict[str, Scalar]:
    return {axis.path: shown_value(axis, value) for axis, value in point.settings(axes)}
