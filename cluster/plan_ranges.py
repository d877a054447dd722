"""The range that a plan's figures take on while each row of costs that nobody has published goes through its sweep.

Every end of every range is a plan of its own, but for rows that no price was worked out from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cluster.capacity_plan import Need, PlanError, Planner
from cluster.scenario import Scenario
from cluster.tornado import Swing, swept_rows
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
    planner: Planner, scenario: Scenario, needs: Sequence[Need], tried: Callable[[str], None] | None = None
) -> Mapping[Generation, NeedRange]:
    """The ranges of what a planner came to; ``tried`` is told which row is next."""
    read = planner.read
    swings = []
    for row in swept_rows(scenario, scenario.host_instances[0].product.name):
        if row.name not in read or row.sweep is None:
            continue
        if tried is not None:
            tried(row.name)
        ends: dict[tuple[str, Generation], tuple[float, float]] = {}
        for one in needs:
            low, high = (_under(planner, {row.name: end}, one) for end in row.sweep)
            ends |= {(name, one.generation): (low[name], high[name]) for name in low}
        swings.append(Swing(row.name, ends))
    return {one.generation: _range(one, swings) for one in needs}


def _under(planner: Planner, changes: Mapping[str, float], was: Need) -> Mapping[str, float]:
    try:
        return _values(planner.need_under(changes, was))
    except PlanError:
        return dict.fromkeys((HOSTS, MACHINES, SLOWDOWN, LAUNCH), math.inf)


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
        if hosts != (need.hosts, need.hosts) or slowdown != (need.slowdown, need.slowdown):
            rows.append((swing.row, hosts, slowdown))
    rows.sort(key=lambda one: (-_width(one[1]), -_width(one[2]), one[0]))
    return NeedRange(figures, tuple(rows))


def _width(ends: Between) -> float:
    low, high = sorted(ends)
    return math.inf if math.isinf(high) else high - low
