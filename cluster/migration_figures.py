"""Live figures of migrations, as operators know them from QEMU and KubeVirt.

They are read and nothing else: no result depends on whether somebody looked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from cluster.hand_over import Phase
from cluster.live_migration import LiveMigrations
from cluster.migration import Migration, Outcome
from node.migration_refusal import MigrationRefusal

BOUNDS_S = (0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 90, 120, 180, 300, 600, 1200, 1800, 3600)
"""KubeVirt's, of the time from a migration's creation to each phase."""
DOWNTIME_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32)
"""Of downtimes, as pull request 17974 of kubevirt/kubevirt has them."""
PENDING, SCHEDULING, RUNNING = "pending", "scheduling", "running"
"""KubeVirt's phases: in line, agreeing with both hosts, and copying or switching over."""
_KEPT = 5
"""Migrations of one machine that are over and that KubeVirt keeps."""

_OF_THE_MOMENT = {
    one.name
    for one in (MigrationRefusal.UNDER_WAY, MigrationRefusal.ALREADY_THERE, MigrationRefusal.RECORD_FULL)
}
"""Refusals that say nothing of whether a machine can move."""


@dataclass(frozen=True, slots=True)
class MoveFigures:
    """One move under way. Bytes of memory, and bytes a second of virtual time."""

    vm: str
    name: str
    node: str
    """Where the machine is taken to be."""
    source: str
    destination: str
    started_s: float | None
    """When its first byte could go, None for not yet."""
    total_bytes: int
    processed_bytes: int
    remaining_bytes: int
    dirty_bytes_per_s: float
    """Distinct bytes that the last round found written, over its time."""
    transfer_bytes_per_s: float
    """What the network carries for it, as QEMU counts its throughput and KubeVirt passes it on."""
    rounds: int
    throttle_ratio: float
    slowed_ratio: float
    """Share of its time that the move costs the machine: throttled, logged, sealed by a handler, or awaiting pages."""
    expected_downtime_s: float | None
    """None where nothing was sent yet that it could be told by."""
    sent_bytes: Mapping[str, int]
    """What is processed, by when it was sent."""


@dataclass(frozen=True, slots=True)
class EndedMove:
    """The last move of one VM that is over, of those that came to copying."""

    vm: str
    name: str
    node: str
    started_s: float
    ended_s: float
    succeeded: bool


@dataclass(frozen=True, slots=True)
class FinalMove:
    """One of a VM's last moves that are over."""

    vm: str
    name: str
    outcome: str
    reason: str


@dataclass(frozen=True, slots=True)
class LastDowntime:
    """For how long a VM stood still in its last move that succeeded."""

    vm: str
    source: str
    destination: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Times:
    """How long something took, as a histogram has it."""

    within: tuple[int, ...]
    """What took as long as each bound, or less."""
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
    final: tuple[FinalMove, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)
    """Every VM that has a place, and its host."""
    bound: Mapping[tuple[str, str], bool] = field(default_factory=dict)
    """Of each VM that was to move, and where it is: whether its host refused its last move."""
    last_downtimes: tuple[LastDowntime, ...] = ()
    downtimes: Mapping[str, Times] = field(default_factory=dict)
    """Of moves that succeeded, by source, within ``DOWNTIME_BOUNDS_S``."""
    transitions: Mapping[str, Times] = field(default_factory=dict)
    """How long after they were ordered moves entered each of KubeVirt's phases, within ``BOUNDS_S``."""


class MoveBooks:
    """Figures of a run's moves; what is over is counted once, however often somebody looks."""

    def __init__(self, live: LiveMigrations) -> None:
        self._live = live
        self._seen = 0
        self._open: list[Migration] = []
        self._outcomes: Counter[str] = Counter()
        self._final: dict[str, deque[Migration]] = {}
        self._copied: dict[str, Migration] = {}
        self._moved: dict[str, Migration] = {}
        """The last of each VM that came to copying, and that succeeded."""
        self._times: dict[str, _Sum] = {}
        self._downtimes: dict[str, _Sum] = {}

    def at(self, now_ns: int) -> MigrationFigures:
        """The figures at a virtual time."""
        every = self._live.all
        self._open += every[self._seen :]
        self._seen = len(every)
        phases = Counter({PENDING: 0, SCHEDULING: 0, RUNNING: 0})
        moves: list[MoveFigures] = []
        # In order of time, whenever somebody looks.
        for one in sorted([one for one in self._open if one.is_over], key=lambda one: (one.ended_ns, one.number)):
            self._close(one)
        self._open = [one for one in self._open if not one.is_over]
        times = {phase: one.copy() for phase, one in self._times.items()}
        for one in self._open:
            _count(times, one, now_ns)
            phases[_phase(one)] += 1
            if one.precopy is not None:
                moves.append(_move(self._live, one, now_ns))
        there = {vm: node for vm in sorted(self._final) if (node := self._live.placement.host_of(vm)) is not None}
        return MigrationFigures(
            dict(phases), dict(self._outcomes), tuple(moves),
            tuple(_ended(self._copied[vm], node) for vm, node in there.items() if vm in self._copied),
            tuple(
                FinalMove(vm, _name(one), one.outcome.value, one.reason) for vm in there for one in self._final[vm]
            ),
            self._live.placement.places(),
            {(vm, node): _is_bound(self._final[vm][-1]) for vm, node in there.items()},
            tuple(
                LastDowntime(vm, one.source, one.destination, _downtime_ns(one) / 1e9)
                for vm, one in sorted(self._moved.items()) if vm in there
            ),
            {node: some.told() for node, some in self._downtimes.items()},
            {phase: some.told() for phase, some in times.items()},
        )  # fmt: skip

    def _close(self, one: Migration) -> None:
        self._outcomes[one.outcome.value] += 1
        vm = one.order.vm
        self._final.setdefault(vm, deque(maxlen=_KEPT)).append(one)
        if one.precopy is not None:
            self._copied[vm] = one
        if succeeded(one.outcome.value):
            self._moved[vm] = one
            self._downtimes.setdefault(one.source, _Sum(DOWNTIME_BOUNDS_S)).add(_downtime_ns(one))
        _count(self._times, one, one.ended_ns)


def succeeded(outcome: str) -> bool:
    """Whether a move that ended so was a success to whoever asked for it."""
    return outcome == Outcome.COMPLETED.value


def _name(one: Migration) -> str:
    """What KubeVirt would call it: the name of an object."""
    return f"migration-{one.number}"


def _is_bound(one: Migration) -> bool:
    """Whether the end of its last move says that a machine cannot be moved."""
    return one.outcome is Outcome.REFUSED and one.reason not in _OF_THE_MOMENT


def _ended(one: Migration, node: str) -> EndedMove:
    assert one.precopy is not None
    began_s = one.precopy.began_copying_ns / 1e9
    return EndedMove(one.order.vm, _name(one), node, began_s, one.ended_ns / 1e9, succeeded(one.outcome.value))


def _downtime_ns(one: Migration) -> int:
    return one.resumed_ns - one.stopped_ns


def _entered(one: Migration) -> Iterator[tuple[str, int]]:
    """KubeVirt's phases that a move has entered, or is about to, and when (ns)."""
    yield "Pending", one.ordered_ns
    if one.started_ns >= 0:
        yield "Scheduling", one.started_ns
    if one.precopy is not None:
        yield "Running", one.precopy.began_copying_ns
    if one.is_over:
        yield "Succeeded" if succeeded(one.outcome.value) else "Failed", one.ended_ns


class _Sum:
    """Times by the first bound that they are within, and their sum (ns)."""

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_ns = 0

    def add(self, took_ns: int) -> None:
        self._counts[bisect_left(self._bounds_s, took_ns / 1e9)] += 1
        self._sum_ns += took_ns

    def copy(self) -> _Sum:
        other = _Sum(self._bounds_s)
        other._counts, other._sum_ns = list(self._counts), self._sum_ns
        return other

    def told(self) -> Times:
        within = tuple(accumulate(self._counts))
        return Times(within[:-1], within[-1], self._sum_ns / 1e9)


def _count(times: dict[str, _Sum], one: Migration, now_ns: int) -> None:
    for phase, at_ns in _entered(one):
        if at_ns <= now_ns:
            times.setdefault(phase, _Sum(BOUNDS_S)).add(at_ns - one.ordered_ns)


def _phase(one: Migration) -> str:
    if one.phase is Phase.SOURCE:
        return PENDING
    return SCHEDULING if one.precopy is None else RUNNING


def _move(live: LiveMigrations, one: Migration, now_ns: int) -> MoveFigures:
    assert one.precopy is not None
    rounds, now_bytes, rate = one.precopy.rounds, 0, 0.0
    left = _left(one)
    if one.flow is not None:
        now_bytes, rate = round(one.flow.moved(now_ns) / one.wire_ratio), one.flow.rate
    dirty = rounds[-1].dirty_bytes_per_s if rounds else 0.0
    began_ns = one.precopy.began_copying_ns
    sent = _sent(one, now_bytes)
    slowed, expected_ns = one.pace[1] if one.phase is Phase.DRAINING else one.slowed[0], one.expected_downtime_ns
    return MoveFigures(
        one.order.vm, _name(one), live.placement.host_of(one.order.vm) or one.source, one.source, one.destination,
        began_ns / 1e9 if began_ns <= now_ns else None, one.precopy.memory_bytes,
        sum(sent.values()), max(0, left - now_bytes), dirty, rate, len(rounds),
        one.precopy.throttle, slowed, None if expected_ns is None else expected_ns / 1e9, sent,
    )  # fmt: skip


def _sent(one: Migration, now_bytes: int) -> dict[str, int]:
    """Memory that was sent, by when; ``now_bytes`` of what flows at present."""
    assert one.precopy is not None
    # What is being sent while it stands still is counted whole from the beginning.
    final_bytes = 0 if one.phase is Phase.STOPPED else one.final_bytes
    sent = {"pre-copy": one.precopy.sent_bytes, "stop-and-copy": final_bytes, "post-copy": one.came_bytes}
    if now_bytes:
        sent[_FLOWS[one.phase]] += now_bytes
    return sent


_FLOWS = {Phase.PRE: "pre-copy", Phase.STOPPED: "stop-and-copy", Phase.DRAINING: "post-copy"}


def _left(one: Migration) -> int:
    """Bytes that are left, what flows now among them."""
    assert one.precopy is not None
    if one.phase is Phase.PRE:
        return one.precopy.size_bytes
    if one.phase is Phase.PAUSED:
        return one.precopy.rounds[-1].left_bytes
    if one.phase is Phase.STOPPED:
        return one.final_bytes + one.pulled_bytes
    return one.pulled_bytes - one.came_bytes
