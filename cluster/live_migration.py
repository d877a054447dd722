"""Live migrations of a fleet, as the control plane runs them: admission, rounds, switch-over, outcomes.

Who may run a VM, and when that changes hands, is not decided here but in the
tables of ``cluster.hand_over``; this carries out what a row tells, and does what
lies between the rows: it copies in rounds while the VM runs, and carries what
is left when it stands still. What comes for a move that is over, or not in the
phase that it is for, has no row and is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from cluster.auto_converge import slow_down
from cluster.broken_links import break_round_off, end_flow, give_up, hold_back
from cluster.commit_record import CommitRecord
from cluster.entity import NEVER
from cluster.fabric import Fabric, Flow
from cluster.hand_over import AFTER_RESTART, FINAL, REPEATS, Event, Phase, Report
from cluster.migration import Due, Migration, MigrationOrder, Outcome, Patience, outcome_of
from cluster.migration_admission import Admission
from cluster.migration_commands import AWAITED, ROWS, TELL
from cluster.placement import FirstFit
from cluster.platform_fit import misfit
from cluster.post_copy import destroyed, drain, drained, go_on, lose, paced, say_pace
from cluster.precopy import Precopy, PrecopySettings, RoundCap, Verdict
from node.dirty_rates import Reads, pools_of
from node.migration_frames import PageDigests, Stream, bytes_of
from node.migration_refusal import MigrationRefusal
from node.vmsa import VMSA_BYTES
from psp.system_bus import PAGE_BYTES

Send = Callable[[str, str, object], None]
"""Sends a message: host, kind, fields."""
Wire = Callable[[str, tuple[bytes, ...]], tuple[bytes, ...]]
"""What the network does to a VM's frames; the tap of attackers and faults."""


_RELIABLE = Patience()
_NO_POST_COPY = ", and post-copy is not for memory that firmware carries"
# What every move comes by, at hand: an enumeration takes longer to give a member out than Python to do a line.
_PRE, _STANDS, _DRAINING, _DOUBTED = Phase.PRE, Phase.STOPPED, Phase.DRAINING, Phase.DOUBTED
_ADMITTED, _ROUNDS_DONE, _STOPPED = Event.ADMITTED, Event.ROUNDS_DONE, Event.STOPPED
_CARRIED, _WHOLE, _RUNS = Event.CARRIED, Event.WHOLE, Event.RUNS
_LOG_READ = Due.LOG_READ
_NEXT, _STOP, _COMPLETED = Verdict.NEXT, Verdict.STOP, Outcome.COMPLETED


@dataclass(slots=True)
class LiveMigrations:
    """All migrations of a run."""

    fabric: Fabric
    placement: FirstFit
    admission: Admission
    settings: PrecopySettings
    send: Send
    wire: Wire | None = None
    patience: Patience = _RELIABLE
    record: CommitRecord = field(default_factory=CommitRecord)
    all: list[Migration] = field(default_factory=list)
    _by_vm: dict[str, Migration] = field(default_factory=dict)
    due: list[tuple[int, Due, int, Phase]] = field(default_factory=lambda: [(NEVER, Due.NOTHING, -1, Phase.SOURCE)])
    """A heap of (time, what, number of the move, the phase that it was in); nothing is there always, as the last."""
    down: dict[str, int] = field(default_factory=dict)
    """Hosts whose links are down, and for how many reasons."""
    is_whole: bool = True
    """No link was down yet, and no host has crashed. That a source has lost a VM ends the move, and asks nothing."""
    _cap_bytes_per_s: float = field(init=False)
    """What the settings let one move put on the wire."""

    def __post_init__(self) -> None:
        self._cap_bytes_per_s = self.settings.cap_bytes_per_s

    # What the control plane asks for.

    def order(
        self, order: MigrationOrder, now_ns: int, over: Callable[[Migration, int], None] | None = None,
        excluded: frozenset[str] = frozenset(),
    ) -> Migration:  # fmt: skip
        """Begin a migration, or put it in line; ``over`` is called when it has ended."""
        one = Migration(len(self.all), order, now_ns, over)
        self.all.append(one)
        place = self.placement.place_of(order.vm)
        if place is None:
            self.end(one, Outcome.REFUSED, now_ns, MigrationRefusal.NO_SUCH_VM.name)
            return one
        account, one.guest = place
        one.source = source = account.name
        if order.vm in self._by_vm:
            self.end(one, Outcome.REFUSED, now_ns, MigrationRefusal.UNDER_WAY.name)
            return one
        if order.to == source:
            self.end(one, Outcome.REFUSED, now_ns, MigrationRefusal.ALREADY_THERE.name)
            return one
        if not self.record.reserve(one.number):
            self.end(one, Outcome.REFUSED, now_ns, MigrationRefusal.RECORD_FULL.name)
            return one
        destination = self.placement.keep(order.vm, order.to, excluded, order.first_host)
        if destination is None:
            wrong = self.placement.misfit(order.vm, order.to)
            why = wrong.name if wrong else self.placement.no_room(order.vm, order.to, excluded)
            self.end(one, Outcome.REFUSED if wrong else Outcome.NO_ROOM, now_ns, why)
            return one
        one.destination, one.path = destination, self.fabric.path(source, destination)
        self._by_vm[order.vm] = one
        if self.admission.ask(one.number, source, destination):
            self._begin(one, now_ns)
        return one

    def cancel(self, one: Migration, now_ns: int) -> None:
        """Call a migration off, unless it is over or too late for that."""
        if not one.is_over and one.can_be_called_off:
            self.fail(one, Outcome.CANCELLED, now_ns, "on request")

    def of(self, vm: str) -> Migration | None:
        """The migration of a VM that is under way or in line."""
        return self._by_vm.get(vm)

    def under_way(self) -> tuple[Migration, ...]:
        """All migrations that are, or in line."""
        return tuple(self._by_vm.values())

    def is_cut_off(self, one: Migration) -> bool:
        """Whether there is no way between a move's hosts, or one of them has nothing of it any more."""
        if one.source_lost or one.target_lost:
            return True
        return bool(self.down.get(one.source) or self.down.get(one.destination))

    # Time.

    def next_event_ns(self) -> int:
        """When a flow ends, shares change, a round begins, or something is said again."""
        return min(self.fabric.next_event_ns, self.due[0][0])

    def advance(self, now_ns: int) -> None:
        """Do what is due at ``now_ns``, and what comes of that: what the network brings first."""
        fabric, due = self.fabric, self.due
        while True:
            if fabric.next_event_ns <= now_ns:
                for flow in fabric.advance(now_ns):
                    flow.arrived(flow.about, now_ns)
            elif due[0][0] <= now_ns:
                _, what, number, phase = heappop(due)
                _DUE[what](self, self.all[number], phase, now_ns)
            else:
                return

    def plan(self, time_ns: int, what: Due, one: Migration) -> None:
        """Have a move do something at a time."""
        heappush(self.due, (time_ns, what, one.number, one.phase))

    def receive(self, kind: str, fields: tuple[Any, ...], now_ns: int) -> None:
        """An answer of a host: the number of the migration, and what it says."""
        ANSWERS[kind](self, self.all[fields[0]], now_ns, *fields[1:])

    # The table's rows.

    def step(self, one: Migration, event: Event, now_ns: int) -> bool:
        """Go where the table says for an event, and tell what it says; False where it has no row."""
        before = one.phase
        row = ROWS.get((before, event))
        if row is None:
            return False
        phase, record, told = row
        if record is not None:
            self.record.append(one.number, record)
        if phase is not before:
            one.phase = phase
            one.history.append((phase, now_ns))
        if self.patience is not _RELIABLE:
            self._await(one, phase, now_ns)
        for tell in told:
            tell(self, one)
        return True

    def _enter(self, one: Migration, phase: Phase, now_ns: int) -> None:
        """Come to a phase by no row."""
        if phase is not one.phase:
            one.phase = phase
            one.history.append((phase, now_ns))
        self._await(one, phase, now_ns)

    def _await(self, one: Migration, phase: Phase, now_ns: int) -> None:
        """Wait for the answers of a phase, where messages may be lost."""
        if self.patience.again_after_ns and phase is not Phase.SOURCE:
            one.silence = 0
            one.unanswered = AWAITED.get(phase, frozenset())
            self.plan(now_ns + self.patience.again_after_ns, Due.SILENCE, one)

    # The two hosts begin.

    def _begin(self, one: Migration, now_ns: int) -> None:
        one.started_ns = now_ns
        self.step(one, _ADMITTED, now_ns)

    def on_ready(
        self, one: Migration, now_ns: int, memory_bytes: int, pools: tuple[tuple[int, float], ...],
        platform: tuple[Any, ...], held_bytes: int, zero_bytes: int,
    ) -> None:  # fmt: skip
        """The source logs dirty pages now. Of what it holds of the VM so many bytes are pages of zeros."""
        if one.phase is _PRE and one.precopy is None:
            if one.silence and one.ready is None:
                one.silence = 0
            one.ready = memory_bytes, pools_of(pools) if pools else ()
            if platform:
                one.platforms = {**one.platforms, one.source: platform}
            elif self.settings.zero_share is not None:
                one.zero_bytes = zero_bytes + self.settings.zeros_among(memory_bytes - held_bytes)
            if one.certificates is not None:
                self._begin_copying(one, now_ns)

    def on_place(
        self, one: Migration, now_ns: int, wrong: str | None, certificates: bytes, platform: tuple[Any, ...]
    ) -> None:
        """The target keeps a place, or has none."""
        if one.phase is not _PRE or one.precopy is not None:
            return
        if wrong is not None:
            refusal = MigrationRefusal.of(wrong)
            self.fail(one, Outcome.REFUSED if refusal else Outcome.NO_ROOM, now_ns, refusal.name if refusal else wrong)
            return
        one.certificates = certificates
        if platform:
            one.platforms = {**one.platforms, one.destination: platform}
        if one.ready is not None:
            self._begin_copying(one, now_ns)

    def on_stays(self, one: Migration, now_ns: int, name: str, _: str) -> None:
        """The source refuses."""
        if one.phase in (Phase.PRE, Phase.PAUSED):
            self.fail(one, outcome_of(name, Outcome.REFUSED), now_ns, name)

    def on_sealed(self, one: Migration, now_ns: int, wrong: str | None, session: bytes) -> None:
        """The source's firmware has agreed to send, or has not."""
        if one.phase is not Phase.PRE or one.agreed:
            return
        if wrong is not None:
            self.fail(one, outcome_of(wrong, Outcome.REFUSED), now_ns, wrong)
            return
        one.silence = 0
        self.send(one.destination, "open", (one.number, one.order.vm, session))

    def on_opened(self, one: Migration, now_ns: int, wrong: str | None) -> None:
        """The target's firmware is ready to receive, or is not."""
        if one.phase is not Phase.PRE or one.agreed:
            return
        if wrong is not None:
            self.fail(one, outcome_of(wrong, Outcome.REFUSED), now_ns, wrong)
            return
        one.agreed = True
        self._begin_copying(one, now_ns)

    def _begin_copying(self, one: Migration, now_ns: int) -> None:
        """Both hosts are ready."""
        assert one.ready is not None
        if one.platforms and not one.agreed:
            refusal = misfit(one.platforms[one.source][:4], one.platforms[one.destination][:4])
            if refusal is not None:
                self.fail(one, Outcome.REFUSED, now_ns, refusal.name)
                return
            self.send(one.source, "seal", (one.number, one.order.vm, one.certificates))
            return
        begins_ns = now_ns + round(self.settings.setup_ns_per_gib * one.ready[0] / (1 << 30))
        one.precopy = Precopy(*one.ready, self.settings, begins_ns)
        assert one.guest is not None
        if self.settings.timeout_ns_per_gib:
            most_ns = round(self.settings.timeout_ns_per_gib * one.precopy.memory_bytes / (1 << 30))
            self.plan(now_ns + most_ns, Due.DEADLINE, one)
        if one.guest.migration_agent and one.guest.machine.by_agents:
            # A page that firmware has swapped out is gone for its guest: nothing is copied while it runs.
            one.precopy.break_off(0, now_ns)
            self.step(one, Event.ROUNDS_DONE, now_ns)
            return
        if self.settings.post_copy_at_once and not one.platforms:
            one.precopy.break_off(0, now_ns)
            one.ahead = True
            self.step(one, Event.ROUNDS_DONE, now_ns)
            return
        if self.settings.dirty_limit_bytes_per_s:
            slow_down(self, one)
        if begins_ns > now_ns:
            self.plan(begins_ns, _LOG_READ, one)
        else:
            self.on_log_read(one, one.phase, now_ns)

    # Rounds.

    def on_log_read(self, one: Migration, _: Phase, now_ns: int) -> None:
        """The dirty log has been read: the next round begins, if one is to."""
        if one.phase is not _PRE:
            return
        precopy, guest = one.precopy, one.guest
        assert precopy is not None
        assert guest is not None
        if not self.is_whole and self.is_cut_off(one):
            give_up(self, one, now_ns)
            return
        zero_bytes = 0 if precopy.rounds else one.zero_bytes  # A page that was written is taken to hold something.
        self.start_flow(one, precopy.begin(now_ns, zero_bytes), now_ns, zero_bytes)
        if guest.migration_handler:
            slow_down(self, one)

    def on_dirty(self, one: Migration, now_ns: int, pools: tuple[tuple[int, float], ...]) -> None:
        """The guest writes otherwise."""
        if one.phase is not _PRE:
            return
        if one.precopy is not None:
            one.precopy.restate(pools_of(pools), now_ns)
        elif one.ready is not None:
            one.ready = (one.ready[0], pools_of(pools))

    def on_through(self, one: Migration, now_ns: int, round_: int, host: str) -> None:
        """A host's security processor has sent, or received, all that a round copies."""
        if round_ == one.rounds_told and host in one.unserved:
            one.unserved = tuple([each for each in one.unserved if each != host])
            one.silence = 0
            if one.flow is None:
                self._copied(one, now_ns)

    def _copied(self, one: Migration, now_ns: int) -> None:
        """The network has brought what it was to bring of a move at once; firmware may have to do with it still."""
        one.flow = None
        if one.unserved:
            return
        phase, precopy = one.phase, one.precopy
        if phase is _STANDS:
            self.step(one, _CARRIED, now_ns)
            return
        if phase is _DRAINING:
            drained(self, one, now_ns)
            return
        assert precopy is not None
        verdict = precopy.round_done(now_ns)
        if verdict is _STOP:
            self.step(one, _ROUNDS_DONE, now_ns)
        elif verdict is _NEXT:
            slow_down(self, one)
            self.plan(now_ns + precopy.between_rounds_ns, _LOG_READ, one)
        elif verdict is Verdict.GO_AHEAD and not one.platforms:
            one.ahead = True
            self.step(one, Event.ROUNDS_DONE, now_ns)
        elif verdict is Verdict.STALLED:
            self.fail(one, Outcome.TIMED_OUT, now_ns, f"no progress, {precopy.how_far}")
        else:
            why = _NO_POST_COPY if verdict is Verdict.GO_AHEAD else ""
            self.fail(one, Outcome.ROUND_CAP, now_ns, precopy.how_far + why)

    def on_deadline(self, one: Migration, _: Phase, now_ns: int) -> None:
        """The copying has taken as long as it may."""
        agents = one.guest is not None and one.guest.machine.by_agents  # Their guest stands still from the first byte.
        if one.precopy is None or not (one.can_be_called_off if agents else one.phase is Phase.PRE):
            return
        one.ahead = self.settings.at_timeout is RoundCap.POST_COPY and not one.platforms
        if self.settings.at_timeout is not RoundCap.STOP and not one.ahead:
            why = _NO_POST_COPY if self.settings.at_timeout is RoundCap.POST_COPY else ""
            self.fail(one, Outcome.TIMED_OUT, now_ns, "the time for copying is over" + why)
            return
        if not agents:
            break_round_off(self, one, now_ns)
        self.step(one, Event.ROUNDS_DONE, now_ns)

    # Switch-over.

    def on_stopped(
        self, one: Migration, now_ns: int, frames: Stream | tuple[bytes, ...], digests: PageDigests | bytes,
        books: tuple[Any, ...], written_pages: int, stopped_ns: int, unsent_pages: int, reads: tuple[Any, ...],
    ) -> None:  # fmt: skip
        """The VM stands still: what is still dirty goes over now."""
        if not self.step(one, _STOPPED, now_ns):
            return
        precopy, guest = one.precopy, one.guest
        assert precopy is not None
        assert guest is not None
        one.stopped_ns, one.luggage = stopped_ns, (frames, digests, books)
        one.frame_bytes = bytes_of(frames)
        carried = hold_back(one, unsent_pages, now_ns) if unsent_pages else 0
        left = precopy.dirty_bytes(now_ns) + written_pages * PAGE_BYTES
        if left > precopy.memory_bytes or (guest.migration_handler and not self.settings.handler_believes_log):
            left = precopy.memory_bytes
        if one.ahead:
            precopy.reads = Reads(*reads)
            one.pulled_bytes, left = left, 0
        if one.zero_bytes:
            one.unsent_zero_bytes = precopy.unsent_zeros(one.zero_bytes)
        one.final_bytes = left + guest.vcpus * VMSA_BYTES
        if not self.is_whole and self.is_cut_off(one):
            one.final_bytes = 0
            give_up(self, one, now_ns)
            return
        self.start_flow(one, one.final_bytes, now_ns, 0 if one.ahead else one.unsent_zero_bytes, carried)

    def start_flow(
        self, one: Migration, size_bytes: int, now_ns: int, zero_bytes: int = 0, carried_bytes: int = 0
    ) -> Flow:
        """Send memory of a move from now on; so much of it is pages of zeros, or was on the network before."""
        settings, cap = self.settings, self._cap_bytes_per_s
        ratio = settings.compression_ratio
        if one.platforms:
            assert one.guest is not None
            ratio = 1.0  # Ciphertext does not become shorter.
            if one.guest.migration_handler:
                cap = settings.handler_cap(one.guest.vcpus)
            else:
                self._begin_carrying(one, size_bytes)
        if carried_bytes:
            size_bytes = max(0, size_bytes - carried_bytes)
        wire_bytes = size_bytes * ratio
        if zero_bytes:
            wire_bytes, cap = settings.without_zeros(size_bytes, zero_bytes, ratio)
        one.flow_bytes = size_bytes
        one.wire_bytes += round(wire_bytes)
        one.flow = flow = self.fabric.start(one.path, wire_bytes, now_ns, cap, self._copied, one)
        return flow

    def _begin_carrying(self, one: Migration, size_bytes: int) -> None:
        """The pages go through both security processors while the network carries them."""
        assert one.precopy is not None
        one.rounds_told += 1
        one.unserved = one.source, one.destination
        memory_bytes, shared_bytes = one.precopy.memory_bytes, one.platforms[one.source][-1]
        new_bytes, one.told_bytes = max(0, size_bytes - one.told_bytes), 0
        one.private_pages = -(-(new_bytes * (memory_bytes - shared_bytes) // memory_bytes) // PAGE_BYTES)
        self._tell_round(one)

    def _tell_round(self, one: Migration) -> None:
        for host in one.unserved:
            self.send(host, "round", (one.number, one.order.vm, one.rounds_told, one.private_pages))

    def on_ended(self, one: Migration, now_ns: int) -> None:
        """The VM powered itself off before it could be stopped."""
        if one.phase is Phase.PAUSED:
            self.fail(one, Outcome.ENDED, now_ns, "the VM powered itself off")

    def on_came(self, one: Migration, now_ns: int, pages_checked: int) -> None:
        """The target holds all of the VM: from here on it is the target's."""
        if self.step(one, _WHOLE, now_ns):
            one.pages_checked = pages_checked

    def on_never(self, one: Migration, now_ns: int, wrong: str | None) -> None:
        """The target holds nothing of it and will not start it: it goes on at the source."""
        if self.step(one, Event.NEVER, now_ns):
            if one.source_lost:
                self._stays(one, Outcome.LOST, now_ns, f"with {one.source}")
            elif wrong is None:
                self._stays(one, Outcome.TARGET_LOST, now_ns, f"{one.destination} had nothing of it any more")
            else:
                self._stays(one, outcome_of(wrong, Outcome.SPOILED), now_ns, wrong)

    def on_runs(self, one: Migration, now_ns: int, resumed_ns: int) -> None:
        """The VM runs at the target."""
        if one.ahead:
            if self.step(one, Event.RUNS_AHEAD, now_ns):
                one.resumed_ns = resumed_ns
                self.placement.settle(one.order.vm, moved=True)
                drain(self, one, now_ns)
        elif self.step(one, _RUNS, now_ns):
            one.resumed_ns = resumed_ns
            self.placement.settle(one.order.vm, moved=True)
            self.end(one, _COMPLETED, now_ns, "")

    def on_stayed(self, one: Migration, now_ns: int) -> None:
        """The source goes on."""
        one.unanswered -= {Report.STAYED}
        if self.step(one, Event.STAYED, now_ns):
            self._stays(one, one.outcome, now_ns, one.reason)

    def on_lost(self, one: Migration, now_ns: int) -> None:
        """The source has lost the VM: the target may have it, if it got that far."""
        one.unanswered -= {Report.STAYED}
        one.source_lost = True
        if one.phase is Phase.DRAINING:
            lose(self, one, now_ns)
        elif self.step(one, Event.LOST, now_ns) and one.phase is Phase.ABORTED:
            self._stays(one, Outcome.LOST, now_ns, f"with {one.source}")

    def on_busy(self, one: Migration, now_ns: int) -> None:
        """A host is at what it was asked for."""
        one.silence = 0

    def on_gone(self, one: Migration, now_ns: int, host: str) -> None:
        """A host does not know of the move any more: it has crashed."""
        outcome = Outcome.TARGET_LOST if host == one.destination else Outcome.LOST
        self.fail(one, outcome, now_ns, f"{host} had nothing of it any more")

    def on_done(self, one: Migration, _: int, report: str) -> None:
        """A host has let go of what it had."""
        one.unanswered -= {Report(report)}

    # Ends.

    def fail(self, one: Migration, outcome: Outcome, now_ns: int, reason: str) -> None:
        """Leave the VM at the source and give the place at the target back, as far as that can still be said."""
        if self.step(one, Event.FAILED, now_ns):
            if one.phase is Phase.ABORTED:
                self._stays(one, outcome, now_ns, reason)
            else:
                one.outcome, one.reason = outcome, reason

    def _stays(self, one: Migration, outcome: Outcome, now_ns: int, reason: str) -> None:
        end_flow(self, one, now_ns)
        one.unserved = ()
        if one.started_ns < 0:
            self.admission.forget(one.number)
        self.placement.settle(one.order.vm, moved=False)
        self.end(one, outcome, now_ns, reason)

    def close(self, end_ns: int) -> None:
        """The run is over: count what the moves that are still under way have sent."""
        for one in self._by_vm.values():
            end_flow(self, one, end_ns)

    def end(self, one: Migration, outcome: Outcome, now_ns: int, reason: str) -> None:
        one.outcome, one.ended_ns, one.reason, one.luggage = outcome, now_ns, reason, ()
        self.record.release(one.number)
        if one.destination:
            del self._by_vm[one.order.vm]
        if one.started_ns >= 0:
            for number in self.admission.release(one.source, one.destination):
                self._begin(self.all[number], now_ns)
        over, one.over = one.over, None
        if over is not None:
            over(one, now_ns)

    def wants_answer(self, one: Migration) -> bool:
        """Whether a host is to say that it did as told."""
        return self.patience.again_after_ns > 0 or one.phase is _DOUBTED

    # When messages are lost, and when the control plane itself crashes.

    def on_silence(self, one: Migration, phase: Phase, now_ns: int) -> None:
        """A host was not heard of for a while."""
        if one.phase is not phase or (phase in FINAL and not one.unanswered):
            return
        if Report.PACED in one.unanswered:
            say_pace(self, one)
        if one.unserved or (one.flow is None and (phase is not Phase.PRE or one.precopy is None)):
            one.silence += 1
            if one.silence > self.patience.most_times and (phase, Event.FAILED) in ROWS:
                self.fail(one, Outcome.TIMED_OUT, now_ns, f"no answer in phase {phase.value!r}")
                return
            if one.unserved:
                self._tell_round(one)
            else:
                for command in REPEATS.get(phase, ()):
                    TELL[command](self, one)
        self.plan(now_ns + self.patience.again_after_ns, Due.SILENCE, one)

    def restart(self, now_ns: int) -> None:
        """The control plane has crashed and comes back with its record and nothing else."""
        last = self.record.last()
        for one in list(self._by_vm.values()):
            end_flow(self, one, now_ns)
            one.luggage, one.unserved = (), ()
            if one.number not in last:
                self.admission.forget(one.number)
                self.placement.settle(one.order.vm, moved=False)
                one.phase = Phase.ABORTED
                self.end(one, Outcome.RESTARTED, now_ns, "before it had begun")
                continue
            one.outcome, one.reason = Outcome.RESTARTED, f"in phase {one.phase.value!r}"
            self._enter(one, AFTER_RESTART[last[one.number]], now_ns)
            if one.phase is Phase.DRAINING:
                drain(self, one, now_ns)
            for command in REPEATS[one.phase]:
                TELL[command](self, one)


_DUE: tuple[Callable[[LiveMigrations, Migration, Phase, int], None], ...] = (
    LiveMigrations.on_log_read, LiveMigrations.on_deadline, go_on, LiveMigrations.on_silence,
)  # fmt: skip
"""What is done then, in the order of ``Due``."""
ANSWERS: Mapping[str, Callable[..., None]] = {
    Report.READY: LiveMigrations.on_ready,
    "stays": LiveMigrations.on_stays,
    Report.PLACE: LiveMigrations.on_place,
    "sealed": LiveMigrations.on_sealed,
    "opened": LiveMigrations.on_opened,
    "through": LiveMigrations.on_through,
    "busy": LiveMigrations.on_busy,
    "gone": LiveMigrations.on_gone,
    "let-go": lambda _, one, __, at_ns: one.let_go(at_ns),
    "settled": lambda _, one, __, *said: one.settled(*said),
    "dirty": LiveMigrations.on_dirty,
    Report.STOPPED: LiveMigrations.on_stopped,
    "ended": LiveMigrations.on_ended,
    Report.WHOLE: LiveMigrations.on_came,
    Report.RUNS: LiveMigrations.on_runs,
    Report.NEVER: LiveMigrations.on_never,
    Report.STAYED: LiveMigrations.on_stayed,
    Report.LOST: LiveMigrations.on_lost,
    Report.DESTROYED: destroyed,
    Report.PACED: paced,
    Report.LEFT: lambda live, one, now_ns: live.on_done(one, now_ns, Report.LEFT),
    Report.GIVEN: lambda live, one, now_ns: live.on_done(one, now_ns, Report.GIVEN),
}
"""What is done when a host says something of a move: takes all moves, the one, the time, and what else is said."""
