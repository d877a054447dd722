"""Live figures of migrations, as operators know them from QEMU and KubeVirt.

They are read and nothing else: no result depends on whether somebody looked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.hand_over import Phase
from cluster.live_migration import LiveMigrations
from cluster.migration import Migration, Outcome

PENDING, SCHEDULING, RUNNING = "pending", "scheduling", "running"
"""KubeVirt's phases: in line, agreeing with both hosts, and copying or switching over."""


@dataclass(frozen=True, slots=True)
class MoveFigures:
    """One move under way. Bytes of memory, and bytes a second of virtual time."""

    vm: str
    source: str
    destination: str
    started_s: float
    total_bytes: int
    processed_bytes: int
    remaining_bytes: int
    dirty_bytes_per_s: float
    """Distinct bytes that the last round found written, over its time."""
    transfer_bytes_per_s: float
    rounds: int
    throttle_ratio: float
    expected_downtime_s: float


@dataclass(frozen=True, slots=True)
class MigrationFigures:
    """All moves of a run so far."""

    phases: Mapping[str, int] = field(default_factory=dict)
    """Moves under way, by KubeVirt's phases."""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """Moves that are over."""
    moves: tuple[MoveFigures, ...] = ()


def figures_of(live: LiveMigrations, now_ns: int) -> MigrationFigures:
    """The figures at a virtual time."""
    phases, outcomes = Counter({PENDING: 0, SCHEDULING: 0, RUNNING: 0}), Counter[str]()
    moves: list[MoveFigures] = []
    for one in live.all:
        if one.is_over:
            outcomes[one.outcome.value] += 1
            continue
        phases[_phase(one)] += 1
        if one.precopy is not None:
            moves.append(_move(live, one, now_ns))
    return MigrationFigures(dict(phases), dict(outcomes), tuple(moves))


def succeeded(outcome: str) -> bool:
    """Whether a move that ended so was a success to whoever asked for it."""
    return outcome == Outcome.COMPLETED.value


def _phase(one: Migration) -> str:
    if one.phase is Phase.SOURCE:
        return PENDING
    return SCHEDULING if one.precopy is None else RUNNING


def _move(live: LiveMigrations, one: Migration, now_ns: int) -> MoveFigures:
    assert one.precopy is not None
    rounds, now_bytes, rate = one.precopy.rounds, 0, 0.0
    size = one.precopy.size_bytes if one.phase is Phase.PRE else one.final_bytes
    if one.flows:
        ratio = 1.0 if one.platforms else live.settings.compression_ratio
        now_bytes = round(live.fabric.moved(str(one.number), now_ns) / ratio)
        rate = live.fabric.rate(str(one.number)) / ratio
    dirty = 0.0
    if rounds:
        last = rounds[-1]
        dirty = last.left_bytes * 1e9 / max(1, last.ended_ns - last.began_ns)
    return MoveFigures(
        one.order.vm, one.source, one.destination, one.started_ns / 1e9, one.precopy.memory_bytes,
        one.precopy.sent_bytes + now_bytes, max(0, size - now_bytes), dirty, rate, len(rounds),
        one.precopy.throttle, one.precopy.expected_downtime_ns / 1e9,
    )  # fmt: skip
