"""Which figures that nobody has published matter to a comparison: each goes through its sweep range, one at a time.

Most of them touch nothing in a given fleet. Those are found in groups: where a whole group goes to
its ends and no slowdown changes by a bit, none of it matters; else its halves are looked at. A figure that
a scenario or a user's own file has set is somebody's measurement, and is not swept but over a range in that file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cluster.scenario import Scenario
from cluster.scenario_costs import scenario_costs
from node.cost_table import Cost
from node.generation import Generation

Slowdowns = Mapping[tuple[str, Generation], float]
"""By workload and generation."""


@dataclass(frozen=True, slots=True)
class Swing:
    """What one figure's sweep does to every slowdown: (workload, generation), to the values at both of its ends."""

    row: str
    ends: Mapping[tuple[str, Generation], tuple[float, float]]


def swept_rows(scenario: Scenario, product: str | None = None) -> list[Cost]:
    """The rows with a sweep range, as all of a scenario's hosts take them, or those of a product, in table order."""
    table = scenario_costs(scenario)
    products = sorted({host.product for host in scenario.hosts}) if product is None else [product]
    own = [table.of_product(product) for product in products]
    rows = []
    for name in table:
        taken = [one.row(name) for one in own]
        if taken and all(row.sweep is not None for row in taken):
            rows.append(taken[0])
    return rows


def tornado(rows: Sequence[Cost], predict: Callable[[Mapping[str, float]], Slowdowns]) -> list[Swing]:
    """The swings of all rows that matter; ``predict`` gives the slowdowns with some figures replaced."""
    base = predict({})
    found: list[Swing] = []
    groups = [list(rows)] if rows else []
    while groups:
        group = groups.pop()
        low, high = ({row.name: _end(row, number) for row in group} for number in (0, 1))
        ends = predict(low), predict(high)
        if all(one == base for one in ends):
            continue
        if len(group) > 1:
            half = len(group) // 2
            groups += [group[half:], group[:half]]
            continue
        keys = [key for key in base if all(key in one for one in ends)]
        found.append(Swing(group[0].name, {key: (ends[0][key], ends[1][key]) for key in keys}))
    return found


def _end(row: Cost, number: int) -> float:
    assert row.sweep is not None
    return row.sweep[number]


@dataclass(frozen=True, slots=True)
class Range:
    """The least and most that a slowdown and what its rung adds take on while each figure is swept."""

    slowdown: tuple[float, float]
    added: tuple[float, float]


def range_of(
    swings: Sequence[Swing], workload: str, generation: Generation, below: Generation, slowdown: float, added: float
) -> Range:
    """The range of one rung, its own values in it."""
    whole, more = [slowdown], [added]
    for swing in swings:
        here = swing.ends.get((workload, generation))
        if here is None:
            continue
        there = (1.0, 1.0) if below is Generation.PLAIN else swing.ends.get((workload, below))
        whole += here
        if there is not None:
            more += [one - other for one, other in zip(here, there, strict=True)]
    return Range((min(whole), max(whole)), (min(more), max(more)))
