"""Live figures of migrations, as operators know them from QEMU and KubeVirt.

They are read and nothing else: no result depends on whether somebody looked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from cluster.hand_over import Phase
from cluster.live_migration import LiveMigrations
from cluster.migration import Migration, Outcome

BOUNDS_S = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 90, 120, 180, 300, 600, 1200, 1800, 3600, 7200)
"""KubeVirt's, of the time from a migration's creation to each phase."""
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
class EndedMove:
    """The last move of one VM that is over. A move that never began has no time of it."""

    vm: str
    started_s: float | None
    ended_s: float
    refused: bool
    """Its host will not or cannot move the VM."""


@dataclass(frozen=True, slots=True)
class Transitions:
    """How long after they were ordered moves entered a phase, as a histogram has it."""

    within: tuple[int, ...]
    """Moves that took as long as each of ``BOUNDS_S``, or less."""
    count: int
    sum_s: float


@dataclass(frozen=True, slots=True)
class MigrationFigures:
    """All moves of a run so far."""

    phases: Mapping[str, int] = field(default_factory=dict)
    """Moves under way, by KubeVirt's phases."""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """Moves that are over."""
    moves: tuple[MoveFigures, ...] = ()
    ended: tuple[EndedMove, ...] = ()
    transitions: Mapping[str, Transitions] = field(default_factory=dict)
    """By KubeVirt's names of phases."""


class MoveBooks:
    """Figures of a run's moves; what is over is counted once, however often somebody looks."""

    def __init__(self, live: LiveMigrations) -> None:
        self._live = live
        self._seen = 0
        self._open: list[Migration] = []
        self._outcomes: Counter[str] = Counter()
        self._ended: dict[str, EndedMove] = {}
        self._times: dict[str, _Times] = {}

    def at(self, now_ns: int) -> MigrationFigures:
        """The figures at a virtual time."""
        every = self._live.all
        self._open += every[self._seen :]
        self._seen = len(every)
        phases = Counter({PENDING: 0, SCHEDULING: 0, RUNNING: 0})
        moves: list[MoveFigures] = []
        times = {phase: one.copy() for phase, one in self._times.items()}
        for one in [one for one in self._open if one.is_over]:
            self._close(one, times)
        self._open = [one for one in self._open if not one.is_over]
        for one in self._open:
            _count(times, one)
            phases[_phase(one)] += 1
            if one.precopy is not None:
                moves.append(_move(self._live, one, now_ns))
        transitions = {phase: some.told() for phase, some in times.items()}
        ended = tuple(self._ended.values())
        return MigrationFigures(dict(phases), dict(self._outcomes), tuple(moves), ended, transitions)

    def _close(self, one: Migration, times: dict[str, _Times]) -> None:
        self._outcomes[one.outcome.value] += 1
        started_s = None if one.started_ns < 0 else one.started_ns / 1e9
        vm, refused = one.order.vm, one.outcome is Outcome.REFUSED
        self._ended[vm] = EndedMove(vm, started_s, one.ended_ns / 1e9, refused)
        for some in (self._times, times):
            _count(some, one)


def succeeded(outcome: str) -> bool:
    """Whether a move that ended so was a success to whoever asked for it."""
    return outcome == Outcome.COMPLETED.value


def _entered(one: Migration) -> Iterator[tuple[str, int]]:
    """KubeVirt's phases that a move has entered, and when (ns)."""
    if one.started_ns >= 0:
        yield "Scheduling", one.started_ns
    if one.precopy is not None:
        yield "Running", one.precopy.began_copying_ns
    if one.is_over:
        yield "Succeeded" if succeeded(one.outcome.value) else "Failed", one.ended_ns


@dataclass(slots=True)
class _Times:
    """Of one phase: moves by the first bound that they are within, and the sum of their times (ns)."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_ns: int = 0

    def copy(self) -> _Times:
        return _Times(list(self.counts), self.sum_ns)

    def told(self) -> Transitions:
        within = tuple(accumulate(self.counts))
        return Transitions(within[:-1], within[-1], self.sum_ns / 1e9)


def _count(times: dict[str, _Times], one: Migration) -> None:
    for phase, at_ns in _entered(one):
        some = times.setdefault(phase, _Times())
        took_ns = at_ns - one.ordered_ns
        some.counts[bisect_left(BOUNDS_S, took_ns / 1e9)] += 1
        some.sum_ns += took_ns


def _phase(one: Migration) -> str:
    if one.phase is Phase.SOURCE:
        return PENDING
    return SCHEDULING if one.precopy is None else RUNNING


def _move(live: LiveMigrations, one: Migration, now_ns: int) -> MoveFigures:
    assert one.precopy is not None
    rounds, now_bytes, rate = one.precopy.rounds, 0, 0.0
    sent, left = _beside_rounds(one)
    if one.flows:
        now_bytes = round(live.fabric.moved(one.number, now_ns) / one.wire_ratio)
        rate = live.fabric.rate(one.number) / one.wire_ratio
    dirty = rounds[-1].dirty_bytes_per_s if rounds else 0.0
    return MoveFigures(
        one.order.vm, one.source, one.destination, one.started_ns / 1e9, one.precopy.memory_bytes,
        one.precopy.sent_bytes + sent + now_bytes, max(0, left - now_bytes), dirty, rate, len(rounds),
        one.precopy.throttle, one.precopy.expected_downtime_ns / 1e9,
    )  # fmt: skip


def _beside_rounds(one: Migration) -> tuple[int, int]:
    """Bytes that were sent besides those of rounds that are through, and that are left, what flows now among them."""
    assert one.precopy is not None
    if one.phase is Phase.PRE:
        return 0, one.precopy.size_bytes
    if one.phase is Phase.PAUSED:
        return 0, one.precopy.rounds[-1].left_bytes
    if one.phase is Phase.STOPPED:
        return 0, one.final_bytes + one.pulled_bytes
    if one.phase is Phase.DRAINING:
        return one.final_bytes + one.came_bytes, one.pulled_bytes - one.came_bytes
    return one.final_bytes, one.pulled_bytes
