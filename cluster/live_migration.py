"""Live migrations of a fleet, as the control plane runs them: admission, rounds, switch-over, outcomes.

Each migration is a state machine over answers of two hosts and ends of flows.
What comes for a migration that is over, or not in its stage, is late and is
passed over. Until the target says that the VM came, the source can take it
back; whatever goes wrong before, it goes on there.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from cluster.fabric import Fabric
from cluster.guest_body import guest_body
from cluster.migration_admission import Admission
from cluster.placement import FirstFit
from cluster.precopy import Precopy, PrecopySettings, Verdict
from node.dirty_rates import Pool
from node.guest import GuestSpec
from node.migration_refusal import MigrationRefusal
from node.vmsa import VMSA_BYTES
from psp.system_bus import PAGE_BYTES

Send = Callable[[str, str, tuple[object, ...]], None]
"""Sends a message: host, kind, fields."""
Wire = Callable[[str, tuple[bytes, ...]], tuple[bytes, ...]]
"""What the network does to a VM's frames; the tap of attackers and faults."""


CARD = "card "
"""How the name of a flow of guests' frames begins; a migration's is its number."""


class Stage(StrEnum):
    """Where a migration stands."""

    QUEUED = "queued"
    BEGINNING = "beginning"
    """Both hosts have been asked."""
    COPYING = "copying"
    BETWEEN = "between rounds"
    STOPPING = "stopping"
    SWITCHING = "switching"
    """The VM stands still; what was left dirty is on its way."""
    COMING = "coming"
    """The frames are at the target."""
    OVER = "over"


class Outcome(StrEnum):
    """How a migration ended."""

    COMPLETED = "completed"
    REFUSED = "refused"
    """The source will not or cannot move the VM."""
    NO_ROOM = "no room"
    CANCELLED = "cancelled"
    ROUND_CAP = "round cap"
    SPOILED = "spoiled"
    """What came was not what was sent; the VM went on at the source."""
    ENDED = "VM ended"
    UNFINISHED = "unfinished"
    """The run was over first."""


@dataclass(frozen=True, slots=True)
class MigrationOrder:
    """A wish: which VM, where to (None: wherever there is room), and for which drain."""

    vm: str
    to: str | None = None
    drain: str | None = None
    first_host: int = 0
    """Where in the fleet the search for room begins."""


@dataclass(slots=True)
class Migration:
    """One migration. Times are virtual nanoseconds, -1 for not yet."""

    number: int
    order: MigrationOrder
    ordered_ns: int
    guest: GuestSpec | None = None
    source: str = ""
    destination: str = ""
    stage: Stage = Stage.QUEUED
    outcome: Outcome = Outcome.UNFINISHED
    reason: str = ""
    started_ns: int = -1
    ended_ns: int = -1
    stopped_ns: int = -1
    precopy: Precopy | None = None
    ready: tuple[int, tuple[Pool, ...]] | None = None
    """The source's memory and pools, once it has said so."""
    has_place: bool = False
    final_bytes: int = 0
    frame_bytes: int = 0
    pages_checked: int = 0
    luggage: tuple[Any, ...] = ()
    """Frames, digests and books between the two hosts."""
    over: Callable[[Migration, int], None] | None = None


@dataclass(slots=True)
class LiveMigrations:
    """All migrations of a run."""

    fabric: Fabric
    placement: FirstFit
    admission: Admission
    settings: PrecopySettings
    send: Send
    wire: Wire = lambda _, frames: frames
    card_flow_ended: Callable[[str, int], None] = lambda _, __: None
    """Whom to tell of the end of a flow of guests' frames, named after the card that sent them."""
    all: list[Migration] = field(default_factory=list)
    _by_vm: dict[str, Migration] = field(default_factory=dict)
    _rounds: list[tuple[int, int]] = field(default_factory=list)
    """(time, number) of rounds that begin when the dirty log has been read."""

    # What the control plane asks for.

    def order(
        self, order: MigrationOrder, now_ns: int, over: Callable[[Migration, int], None] | None = None,
        excluded: frozenset[str] = frozenset(),
    ) -> Migration:  # fmt: skip
        """Begin a migration, or put it in line; ``over`` is called when it has ended."""
        one = Migration(len(self.all), order, now_ns, over=over)
        self.all.append(one)
        source = self.placement.host_of(order.vm)
        if source is None:
            self._end(one, Outcome.REFUSED, now_ns, MigrationRefusal.NO_SUCH_VM.name)
            return one
        one.source = source
        if order.vm in self._by_vm:
            self._end(one, Outcome.REFUSED, now_ns, MigrationRefusal.UNDER_WAY.name)
            return one
        if order.to == source:
            self._end(one, Outcome.REFUSED, now_ns, MigrationRefusal.ALREADY_THERE.name)
            return one
        destination = self.placement.keep(order.vm, order.to, excluded | {source}, order.first_host)
        if destination is None:
            self._end(one, Outcome.NO_ROOM, now_ns, f"no room on {order.to}" if order.to else "no host has room")
            return one
        one.destination, one.guest = destination, self.placement.guest(order.vm)
        self._by_vm[order.vm] = one
        if self.admission.ask(str(one.number), source, destination):
            self._begin(one, now_ns)
        return one

    def cancel(self, one: Migration, now_ns: int) -> None:
        """Call a migration off, unless it is over or too late for that."""
        if one.stage not in (Stage.COMING, Stage.OVER):
            self.fail(one, Outcome.CANCELLED, now_ns, "on request")

    def of(self, vm: str) -> Migration | None:
        """The migration of a VM that is under way or in line."""
        return self._by_vm.get(vm)

    # Time.

    def next_event_ns(self) -> int:
        """When a flow ends, shares change, or a round begins."""
        following_ns = self.fabric.next_event_ns
        if self._rounds and self._rounds[0][0] < following_ns:
            return self._rounds[0][0]
        return following_ns

    def advance(self, now_ns: int) -> None:
        """Do what is due at ``now_ns``."""
        fabric, rounds = self.fabric, self._rounds
        while fabric.next_event_ns <= now_ns or (rounds and rounds[0][0] <= now_ns):
            for name in fabric.advance(now_ns):
                if name.startswith(CARD):
                    self.card_flow_ended(name, now_ns)
                else:
                    self._flow_ended(self.all[int(name)], now_ns)
            while rounds and rounds[0][0] <= now_ns:
                one = self.all[heapq.heappop(rounds)[1]]
                if one.stage is Stage.BETWEEN:
                    self._start_round(one, now_ns)

    def receive(self, kind: str, fields: tuple[Any, ...], now_ns: int) -> None:
        """An answer of a host: the number of the migration, and what it says."""
        number, *rest = fields
        one = self.all[number]
        stages, handler = _ANSWERS[kind]
        if one.stage in stages:
            handler(self, one, now_ns, *rest)

    # The two hosts begin.

    def _begin(self, one: Migration, now_ns: int) -> None:
        assert one.guest is not None
        one.stage, one.started_ns = Stage.BEGINNING, now_ns
        self.send(one.source, "migrate", (one.number, one.order.vm))
        self.send(one.destination, "keep-place", (one.number, guest_body(one.guest)))

    def on_ready(self, one: Migration, now_ns: int, memory_bytes: int, pools: tuple[tuple[int, float], ...]) -> None:
        """The source logs dirty pages now."""
        one.ready = (memory_bytes, _pools(pools))
        self._begin_copying(one, now_ns)

    def on_place(self, one: Migration, now_ns: int, wrong: str | None) -> None:
        """The target keeps a place, or has none."""
        if wrong is not None:
            self.fail(one, Outcome.NO_ROOM, now_ns, wrong)
            return
        one.has_place = True
        self._begin_copying(one, now_ns)

    def on_stays(self, one: Migration, now_ns: int, name: str, _: str) -> None:
        """The source refuses."""
        self.fail(one, Outcome.REFUSED, now_ns, name)

    def _begin_copying(self, one: Migration, now_ns: int) -> None:
        if one.ready is not None and one.has_place:
            one.precopy = Precopy(*one.ready, self.settings, now_ns)
            self._start_round(one, now_ns)

    # Rounds.

    def _start_round(self, one: Migration, now_ns: int) -> None:
        assert one.precopy is not None
        one.stage = Stage.COPYING
        one.precopy.begin(now_ns)
        self._start_flow(one, one.precopy.size_bytes, now_ns)

    def on_dirty(self, one: Migration, now_ns: int, pools: tuple[tuple[int, float], ...]) -> None:
        """The guest writes otherwise."""
        if one.precopy is None:
            assert one.ready is not None
            one.ready = (one.ready[0], _pools(pools))
        else:
            one.precopy.restate(_pools(pools), now_ns)

    def _flow_ended(self, one: Migration, now_ns: int) -> None:
        if one.stage is Stage.SWITCHING:
            one.stage = Stage.COMING
            frames, digests, books = one.luggage
            one.luggage = ()
            self.send(
                one.destination, "come", (one.number, one.order.vm, self.wire(one.order.vm, frames), digests, books)
            )
            return
        assert one.precopy is not None
        verdict = one.precopy.round_done(now_ns)
        if verdict is Verdict.NEXT:
            one.stage = Stage.BETWEEN
            heapq.heappush(self._rounds, (now_ns + one.precopy.between_rounds_ns, one.number))
        elif verdict is Verdict.STOP:
            one.stage = Stage.STOPPING
            self.send(one.source, "stop", (one.number, one.order.vm, one.precopy.began_ns))
        else:
            one.stage = Stage.BETWEEN  # No flow of it is under way.
            self.fail(one, Outcome.ROUND_CAP, now_ns, f"after {len(one.precopy.rounds)} rounds")

    # Switch-over.

    def on_stopped(
        self, one: Migration, now_ns: int, frames: tuple[bytes, ...], digests: bytes, books: tuple[Any, ...],
        written_pages: int, stopped_ns: int,
    ) -> None:  # fmt: skip
        """The VM stands still: what is still dirty goes over now."""
        assert one.precopy is not None
        assert one.guest is not None
        one.stage, one.stopped_ns, one.luggage = Stage.SWITCHING, stopped_ns, (frames, digests, books)
        one.frame_bytes = sum(map(len, frames))
        dirty = one.precopy.dirty_bytes(now_ns) + written_pages * PAGE_BYTES
        one.final_bytes = min(dirty, one.precopy.memory_bytes) + one.guest.vcpus * VMSA_BYTES
        self._start_flow(one, one.final_bytes, now_ns)

    def _start_flow(self, one: Migration, size_bytes: int, now_ns: int) -> None:
        cap = self.settings.connection_bytes_per_s
        self.fabric.start(str(one.number), one.source, one.destination, size_bytes, now_ns, cap)

    def on_ended(self, one: Migration, now_ns: int) -> None:
        """The VM powered itself off before it could be stopped."""
        self.fail(one, Outcome.ENDED, now_ns, "the VM powered itself off")

    def on_came(self, one: Migration, now_ns: int, wrong: str | None, pages_checked: int) -> None:
        """The VM runs at the target, or something was wrong with what came."""
        if wrong is not None:
            self.fail(one, Outcome.SPOILED, now_ns, wrong)
            return
        one.pages_checked = pages_checked
        self.send(one.source, "leave", (one.order.vm,))
        self.placement.settle(one.order.vm, moved=True)
        self._end(one, Outcome.COMPLETED, now_ns, "")

    # Ends.

    def fail(self, one: Migration, outcome: Outcome, now_ns: int, reason: str) -> None:
        """Leave the VM at the source and give the place at the target back."""
        if one.stage in (Stage.COPYING, Stage.SWITCHING):
            one.final_bytes += int(self.fabric.cancel(str(one.number), now_ns))
        if one.stage is Stage.QUEUED:
            self.admission.forget(str(one.number))
        else:
            self.send(one.source, "stay", (one.order.vm,))
            self.send(one.destination, "give-place-back", (one.order.vm,))
        self.placement.settle(one.order.vm, moved=False)
        self._end(one, outcome, now_ns, reason)

    def close(self, end_ns: int) -> None:
        """The run is over: count what the moves that are still under way have sent."""
        for one in self._by_vm.values():
            if one.stage in (Stage.COPYING, Stage.SWITCHING):
                one.final_bytes += int(self.fabric.cancel(str(one.number), end_ns))
                one.stage = Stage.BETWEEN  # No flow of it is under way.

    def _end(self, one: Migration, outcome: Outcome, now_ns: int, reason: str) -> None:
        was_admitted = one.started_ns >= 0
        one.stage, one.outcome, one.ended_ns, one.reason, one.luggage = Stage.OVER, outcome, now_ns, reason, ()
        if self._by_vm.get(one.order.vm) is one:
            del self._by_vm[one.order.vm]
        if was_admitted:
            for number in self.admission.release(one.source, one.destination):
                self._begin(self.all[int(number)], now_ns)
        over, one.over = one.over, None
        if over is not None:
            over(one, now_ns)


def _pools(bodies: tuple[tuple[int, float], ...]) -> tuple[Pool, ...]:
    return tuple(Pool(*body) for body in bodies)


_Answer = Callable[..., None]
_ANSWERS: Mapping[str, tuple[tuple[Stage, ...], _Answer]] = {
    "ready": ((Stage.BEGINNING,), LiveMigrations.on_ready),
    "stays": ((Stage.BEGINNING,), LiveMigrations.on_stays),
    "place": ((Stage.BEGINNING,), LiveMigrations.on_place),
    "dirty": ((Stage.BEGINNING, Stage.COPYING, Stage.BETWEEN), LiveMigrations.on_dirty),
    "stopped": ((Stage.STOPPING,), LiveMigrations.on_stopped),
    "ended": ((Stage.STOPPING,), LiveMigrations.on_ended),
    "came": ((Stage.COMING,), LiveMigrations.on_came),
}
"""What hosts say of a migration, and in which stages that means something."""

ANSWERS = frozenset(_ANSWERS)
