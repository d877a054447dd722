"""Two faults at once that no scenario has a word for, by chance beside those of a scenario.

Each comes once, or with the first thing after its time that it can come with, so that one may meet what another has
left: a record that is full, firmware that fails while an agent begins anew, bytes that change on a link that stands
still.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, NamedTuple

from cluster.bench.fault_verdict import Bring, judged
from cluster.bench.inner_faults import INNER_FAULTS, Built, FaultyControl
from cluster.control_plane import ControlPlane
from cluster.migration import Migration
from node.host import Host

OF_ALL = 0.4
"""The share of schedules that have such faults."""
_FROM_US, _TO_US = 990_000, 1_900_000


class Timed(NamedTuple):
    """An inner fault by its name, and when it comes."""

    fault: str
    at_ns: int


class Schedule(NamedTuple):
    """A scenario, and what happens besides."""

    body: Mapping[str, Any]
    inner: tuple[Timed, ...] = ()


def drawn(seed: int, way: str) -> tuple[Timed, ...]:
    """Two different ones for a way to move, or none."""
    dice = random.Random(f"{seed} {way} at once")  # noqa: S311 - it need not be secret
    if dice.random() >= OF_ALL:
        return ()
    names = dice.sample([name for name, one in INNER_FAULTS.items() if one.has_it(way)], 2)
    return tuple([Timed(name, 1000 * dice.randint(_FROM_US, _TO_US)) for name in names])


def played(one: Schedule, *, twice: bool = False) -> tuple[str | None, list[Migration]]:
    """What is wrong after a schedule, None for nothing, and its moves; ``twice`` as ``judged`` has it."""
    body = {**one.body, "faults": list(one.body["faults"]), "migration": dict(one.body["migration"])}
    for timed in one.inner:
        changed = INNER_FAULTS[timed.fault].change(timed.at_ns)
        body["faults"] += changed.get("faults", [])
        body["migration"] |= {key: changed[key] for key in ("record",) if key in changed}
    ends = tuple([why for timed in one.inner for why in INNER_FAULTS[timed.fault].ends])
    return judged(body, _bring(one) if one.inner else None, twice=twice, ends=ends)


def _bring(one: Schedule) -> Bring:
    def bring(control: ControlPlane, hosts: Mapping[str, Host]) -> FaultyControl:
        dice = random.Random(f"{one.body['seed']} {one.inner}")  # noqa: S311 - it need not be secret
        built = Built(FaultyControl(control), hosts, dice)
        for timed in one.inner:
            INNER_FAULTS[timed.fault].bring(built, timed.at_ns)
        return built.control

    return bring


def smallest(one: Schedule) -> dict[str, Any]:
    """A schedule that fails, without the faults and moves that it fails without."""
    for part in ("faults", "migrations"):
        for each in list(one.body[part]):
            less = one._replace(body={**one.body, part: [other for other in one.body[part] if other is not each]})
            if played(less, twice=True)[0] is not None:
                one = less
    for timed in one.inner:
        less = one._replace(inner=tuple([other for other in one.inner if other is not timed]))
        if played(less, twice=True)[0] is not None:
            one = less
    found = {part: one.body[part] for part in ("seed", "faults", "migrations")}
    return found | ({"at once": [tuple(timed) for timed in one.inner]} if one.inner else {})
