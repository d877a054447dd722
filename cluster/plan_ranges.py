"""The range that a plan's figures take on while each row of costs that nobody has published goes through its sweep.

Every end of every range is a plan of its own; rows that change none are found in groups (``cluster.tornado``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cluster.capacity_plan import Need, PlanError, plan
from cluster.scenario import Scenario
from cluster.tornado import Slowdowns, Swing, swept_rows, tornado
from node.firmware_image import FirmwareImage
from node.generation import Generation

HOSTS, MACHINES, SLOWDOWN, LAUNCH = "hosts", "machines", "slowdown", "launch_all_s"
Between = tuple[float, float]


@dataclass(frozen=True, slots=True)
class NeedRange:
    """Least and most of one generation's figures by name; hosts without end where no number of them serves."""

    figures: Mapping[str, Between]
    swings: tuple[tuple[str, Between, Between], ...]
    """Rows that matter to the hosts or the slowdown: hosts and slowdown at both ends, those that change most first."""


def plan_ranges(
    scenario: Scenario,
    needs: Sequence[Need],
    firmware: FirmwareImage,
    level: float | None = None,
    tried: Callable[[int], None] | None = None,
) -> Mapping[Generation, NeedRange]:
    """The ranges of what ``plan`` came to; ``tried`` is told how many plans there were so far."""
    generations = [one.generation for one in needs]
    count = 0

    def predict(changes: Mapping[str, float]) -> Slowdowns:
        nonlocal count
        count += 1
        if tried is not None:
            tried(count)
        changed = scenario.model_copy(update={"costs": {**scenario.costs, **changes}}) if changes else scenario
        return {key: value for one in generations for key, value in _figures(changed, one, firmware, level).items()}

    swings = tornado(swept_rows(scenario), predict)
    return {one.generation: _range(one, swings) for one in needs}


def _figures(
    scenario: Scenario, generation: Generation, firmware: FirmwareImage, level: float | None
) -> Mapping[tuple[str, Generation], float]:
    try:
        (one,) = plan(scenario, [generation], firmware, level)
    except PlanError:
        return {(name, generation): math.inf for name in (HOSTS, MACHINES, SLOWDOWN, LAUNCH)}
    return {(name, generation): value for name, value in _values(one).items()}


def _values(one: Need) -> Mapping[str, float]:
    return {HOSTS: one.hosts, MACHINES: one.machines, SLOWDOWN: one.slowdown, LAUNCH: one.launch_all_s}


def _range(need: Need, swings: Sequence[Swing]) -> NeedRange:
    own, figures = need.generation, {}
    for name, value in _values(need).items():
        ends = [value, *[end for swing in swings for end in swing.ends.get((name, own), ())]]
        figures[name] = min(ends), max(ends)
    rows = []
    for swing in swings:
        hosts, slowdown = swing.ends[HOSTS, own], swing.ends[SLOWDOWN, own]
        if hosts[0] != hosts[1] or slowdown[0] != slowdown[1]:
            rows.append((swing.row, hosts, slowdown))
    rows.sort(key=lambda one: (-_width(one[1]), -_width(one[2]), one[0]))
    return NeedRange(figures, tuple(rows))


def _width(ends: Between) -> float:
    low, high = sorted(ends)
    return math.inf if math.isinf(high) else high - low
