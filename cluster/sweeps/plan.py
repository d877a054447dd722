"""What a sweep runs: settings with every seed, all of it checked before anything starts.

Every combination of the settings, or each at its ends alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from cluster.errors import UserError
from cluster.scenario import Scenario, ScenarioError
from cluster.sweeps.scenario_paths import Place, places_of, printable, scenario_values, with_values
from cluster.sweeps.values import MOST_VALUES
from cluster.units import shown
from node.cost_table import Cost
from node.program import Scalar

DEFAULT_SEEDS = 5
MOST_POINTS = MOST_VALUES
MOST_RUNS = 100_000
_SEED = "seed"


class GridError(UserError):
    """A setting of a sweep that its scenario cannot have; names the path, what was expected and what was there."""


class SeedsError(UserError):
    """Seeds that a sweep cannot have."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One setting that is varied. A path with a ``*`` has several places, set alike."""

    path: str
    values: tuple[Scalar, ...]
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of values, in the order of the axes; ``text`` is its scenario, with seed 0.

    None is a setting left as the scenario has it.
    """

    number: int
    values: tuple[Scalar | None, ...]
    text: str = field(repr=False)

    @property
    def sha256(self) -> str:
        """Digest of the scenario's text, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def settings(self, axes: Sequence[Axis]) -> list[tuple[Axis, Scalar]]:
        """What it sets."""
        return _set(axes, self.values)


@dataclass(frozen=True, slots=True)
class Run:
    """One whole simulation: a point with a seed."""

    point: Point
    seed: int

    def described(self, axes: Sequence[Axis]) -> str:
        """The run in words: ``vms.database.vcpus=4 seed=2``."""
        settings = [f"{axis.path}={value_text(value)}" for axis, value in self.point.settings(axes)]
        return " ".join([*settings, f"seed={self.seed}"])


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """A whole sweep. Points vary the last axis first; each is run with every seed."""

    scenario: Scenario
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    points: tuple[Point, ...]

    @classmethod
    def of(
        cls, scenario: Scenario, seeds: int | Iterable[int], grid: Mapping[str, Iterable[Scalar]] | None = None
    ) -> Self:
        """The plan for ``seeds`` and a ``grid`` of values by path (``cluster/sweeps/scenario_paths.py``).

        A number of seeds counts from the scenario's own. Raises GridError,
        PathError or SeedsError for what cannot be; then nothing was begun.
        """
        values = scenario_values(scenario)
        axes = tuple(_axis(path, one, values) for path, one in (grid or {}).items())
        _check_places(axes)
        count = math.prod(len(axis.values) for axis in axes)
        return cls._with(scenario, axes, seeds, count, itertools.product(*(axis.values for axis in axes)))

    @classmethod
    def one_at_a_time(cls, scenario: Scenario, seeds: int | Iterable[int], rows: Sequence[Cost]) -> Self:
        """The scenario as it is, then each of these rows of the cost table at the least and the most of its sweep.

        All else stays as it is meanwhile: point 1 has the first row at its least, point 2 at its most, and so on.
        ``rows`` have a sweep. Raises GridError or SeedsError for what cannot be.
        """
        values = scenario_values(scenario)
        axes = tuple(_axis(f"costs.{row.name}", row.sweep or (), values) for row in rows)
        ends = [tuple(end if one is axis else None for one in axes) for axis in axes for end in axis.values]
        return cls._with(scenario, axes, seeds, 1 + len(ends), [(None,) * len(axes), *ends])

    @classmethod
    def _with(
        cls, scenario: Scenario, axes: tuple[Axis, ...], seeds: int | Iterable[int], count: int,
        combinations: Iterable[tuple[Scalar | None, ...]],
    ) -> Self:  # fmt: skip
        """Raises GridError before anything is built where there would be too many."""
        chosen = _seeds(seeds, scenario.seed)
        if count > MOST_POINTS:
            raise GridError(f"the grid: expected at most {MOST_POINTS:,} combinations of values, got {count:,}")
        if count * len(chosen) > MOST_RUNS:
            raise GridError(
                f"the grid: expected at most {MOST_RUNS:,} runs, got {count:,} combinations of values with "
                f"{len(chosen):,} seeds each, {count * len(chosen):,} in all"
            )
        base = scenario_values(scenario)
        points = tuple(
            Point(number, one, _text(scenario, base, _set(axes, one))) for number, one in enumerate(combinations)
        )
        return cls(scenario, axes, chosen, points)

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run, in the order in which they are begun."""
        return tuple(Run(point, seed) for point in self.points for seed in self.seeds)


def value_text(value: Scalar) -> str:
    """A value as it is written after ``--set``."""
    return value if isinstance(value, str) else json.dumps(value)


def _seeds(seeds: int | Iterable[int], first: int) -> tuple[int, ...]:
    if isinstance(seeds, int):
        if not 1 <= seeds <= MOST_RUNS:
            raise SeedsError(f"seeds: expected from 1 to {MOST_RUNS:,} of them, got {shown(seeds)}")
        chosen = list(range(first, first + seeds))
    else:
        chosen = [_plain(seed) for seed in itertools.islice(seeds, MOST_RUNS + 1)]  # type: ignore[misc]
    if not 1 <= len(chosen) <= MOST_RUNS:
        raise SeedsError(f"seeds: expected from 1 to {MOST_RUNS:,} of them, got {'more' if chosen else 'none'}")
    for seed in chosen:
        if type(seed) is not int or not 0 <= seed < 1 << 63:
            raise SeedsError(f"seeds: expected whole numbers from 0 to 2^63 - 1, got {shown(seed)}")
    if len(set(chosen)) < len(chosen):
        raise SeedsError(f"seeds: expected each once, got {_first_twice(chosen)} twice")
    return tuple(chosen)


def _axis(path: str, given: Iterable[Scalar], scenario: Mapping[str, object]) -> Axis:
    if path == _SEED:
        raise GridError("seed: expected among the seeds of the sweep, got a setting")
    places = places_of(path, scenario)
    values = (given,) if isinstance(given, (str, int, float)) else itertools.islice(given, MOST_VALUES + 1)
    axis = Axis(path, tuple(map(_plain, values)), places)
    if not 1 <= len(axis.values) <= MOST_VALUES:
        got = "more" if axis.values else "none"
        raise GridError(f"{printable(path)}: expected from 1 to {MOST_VALUES:,} values, got {got}")
    for value in axis.values:
        if not isinstance(value, (bool, int, float, str)):
            raise GridError(f"{printable(path)}: expected numbers and texts, got {shown(value)}")
    texts = [value_text(value) for value in axis.values]
    if len(set(texts)) < len(texts):
        raise GridError(f"{printable(path)}: expected each value once, got {shown(_first_twice(texts))} twice")
    return axis


def _plain(value: Scalar) -> Scalar:
    """A number of numpy's as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


def _first_twice(values: Sequence[object]) -> object:
    return next(value for index, value in enumerate(values) if value in values[:index])


def _check_places(axes: Sequence[Axis]) -> None:
    taken: dict[Place, str] = {}
    for axis in axes:
        for place in axis.places:
            if place in taken:
                raise GridError(f"{axis.path}: expected a setting of its own, got one that {taken[place]} sets too")
            taken[place] = axis.path


def _set(axes: Sequence[Axis], values: Sequence[Scalar | None]) -> list[tuple[Axis, Scalar]]:
    """The settings that are not left as they are."""
    return [(axis, value) for axis, value in zip(axes, values, strict=True) if value is not None]


def _text(scenario: Scenario, base: Mapping[str, object], settings: Sequence[tuple[Axis, Scalar]]) -> str:
    """The text of one point's scenario. Raises GridError where there is none such."""
    if not settings:
        return scenario.with_seed(0).to_toml()
    try:
        return _parsed(base, settings).with_seed(0).to_toml()
    except ScenarioError as error:
        guilty = _guilty(base, settings, error)
        named = ", ".join(printable(f"{axis.path}={value_text(value)}") for axis, value in guilty)
        raise GridError(f"{named}: {error.field}: expected {error.expected}, got {error.got}") from None


def _parsed(base: Mapping[str, object], settings: Sequence[tuple[Axis, Scalar]]) -> Scenario:
    return Scenario.parse(with_values(base, {place: value for axis, value in settings for place in axis.places}))


def _guilty(
    base: Mapping[str, object], settings: Sequence[tuple[Axis, Scalar]], error: ScenarioError
) -> Sequence[tuple[Axis, Scalar]]:
    """The setting that alone is refused in the same words; all of them where none is."""
    for one in settings:
        try:
            _parsed(base, [one])
        except ScenarioError as alone:
            if str(alone) == str(error):
                return [one]
    return settings
