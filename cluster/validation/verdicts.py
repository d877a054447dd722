"""Predictions beside what was published: errors, verdicts, and the interval of what nobody knows.

The interval of a point is what it takes on while each row with a sweep range that its
prediction reads goes from one end of that range to the other, one row at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from cluster.validation.case import Case, CaseKind, Point
from cluster.validation.predictions import PREDICTIONS
from node.cost_table import Cost, CostTable

MOST_KNOWN_MISSES = 3


class Verdict(StrEnum):
    """What comes of a point."""

    INSIDE = "inside"
    OUTSIDE = "outside"
    KNOWN_MISS = "known miss"
    FITTED = "fitted"
    """The model was fitted to it, so it shows nothing."""
    MODEL_ONLY = "model only"


_HOLDS = (Verdict.INSIDE, Verdict.FITTED)


@dataclass(frozen=True, slots=True)
class Swing:
    """What one row's sweep does to one point."""

    row: str
    case: str
    point: str
    least: float
    most: float
    ratio: float
    """The difference over the prediction."""


@dataclass(frozen=True, slots=True)
class PointResult:
    """A point with its prediction and the interval of it."""

    case: Case
    point: Point
    predicted: float
    verdict: Verdict
    least: float
    most: float

    @property
    def error(self) -> float | None:
        """As a share of what was published."""
        return None if self.verdict is Verdict.MODEL_ONLY else self.point.error(self.predicted)


@dataclass(frozen=True, slots=True)
class GroupMean:
    """The mean error of a group's points that nothing was fitted to, beyond what was published, either way."""

    group: str
    points: int
    mean_error: float
    worst_error: float


@dataclass(frozen=True, slots=True)
class Validation:
    """All results, known misses first, and the swings, widest first."""

    results: tuple[PointResult, ...]
    swings: tuple[Swing, ...]

    @property
    def blind_cases(self) -> Mapping[str, bool]:
        """Blind quantitative cases, and whether each is inside its tolerance with all of its points."""
        found: dict[str, bool] = {}
        for one in self.results:
            if one.case.blind and one.case.kind is CaseKind.QUANTITATIVE:
                found[one.case.id] = found.get(one.case.id, True) and one.verdict in _HOLDS
        return dict(sorted(found.items()))

    @property
    def holds(self) -> bool:
        """Whether no blind case is outside of its tolerance, but for points known to miss."""
        return not any(one.case.blind and one.verdict is Verdict.OUTSIDE for one in self.results)

    @property
    def known_misses(self) -> tuple[PointResult, ...]:
        """Points that the model is known to miss."""
        return tuple(one for one in self.results if one.verdict is Verdict.KNOWN_MISS)

    @property
    def groups(self) -> tuple[GroupMean, ...]:
        """Mean and worst error by group."""
        errors: dict[str, list[float]] = {}
        for one in self.results:
            if one.error is not None and one.verdict is not Verdict.FITTED:
                errors.setdefault(one.case.group, []).append(abs(one.error))
        return tuple(GroupMean(name, len(some), fmean(some), max(some)) for name, some in sorted(errors.items()))


class _Reader(Mapping[str, float]):
    """A table that remembers which rows were asked for."""

    def __init__(self, table: Mapping[str, float]) -> None:
        self._table = table
        self.asked: dict[str, None] = {}

    def __getitem__(self, name: str) -> float:
        self.asked[name] = None
        return self._table[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


def validate(cases: Sequence[Case], table: CostTable, *, sweep: bool = True) -> Validation:
    """Predict every case, and without ``sweep`` nothing else: intervals are then the predictions."""
    results: list[PointResult] = []
    swings: list[Swing] = []
    for case in cases:
        predict = PREDICTIONS[case.id]
        own = table if case.product is None else table.of_product(case.product)
        reader = _Reader(own)
        predicted = predict(case, reader)
        rows = [own.row(name) for name in reader.asked] if sweep else []
        swept = [(row, _ends(predict, case, own, row)) for row in rows if row.sweep is not None]
        for point in case.points:
            value = predicted[point.name]
            seen = [value, *(end[point.name] for _, ends in swept for end in ends)]
            results.append(
                PointResult(case, point, value, _verdict(case, point, value), min(seen), max(seen))
            )  # fmt: skip
            swings += [_swing(row, case, point, value, ends) for row, ends in swept]
    results.sort(key=lambda one: one.verdict is not Verdict.KNOWN_MISS)
    swings = sorted((one for one in swings if one.ratio), key=lambda one: (-one.ratio, one.row, one.case, one.point))
    return Validation(tuple(results), tuple(swings))


def _ends(
    predict: Callable[[Case, Mapping[str, float]], Mapping[str, float]], case: Case, table: CostTable, row: Cost
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    assert row.sweep is not None
    low, high = row.sweep
    return predict(case, {**table, row.name: low}), predict(case, {**table, row.name: high})


def _swing(
    row: Cost, case: Case, point: Point, value: float, ends: tuple[Mapping[str, float], Mapping[str, float]]
) -> Swing:
    low, high = (end[point.name] for end in ends)
    ratio = abs(high - low) / abs(value) if value else 0.0
    return Swing(row.name, case.id, point.name, min(low, high), max(low, high), ratio)


def _verdict(case: Case, point: Point, value: float) -> Verdict:
    if case.kind is CaseKind.MODEL_ONLY:
        return Verdict.MODEL_ONLY
    if point.fitted:
        return Verdict.FITTED
    if point.within(value):
        return Verdict.INSIDE
    return Verdict.KNOWN_MISS if point.known_miss else Verdict.OUTSIDE
