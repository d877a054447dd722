"""A host's side of live migration in messages: commands from the control plane, answers to it.

Which command means something, and what is answered, is in the tables of ``cluster.hand_over``; this calls the host's
departures and arrivals for it. What a migration needs besides the VM itself, its books and the digests of its
pages, travels beside the frames: frames cross the network, the rest is the control
plane's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from cluster import hand_over
from cluster.agent_certificates import agent_certified, with_own_chain
from cluster.entity import Message
from cluster.guest_body import GuestBody, guest_of
from cluster.hand_over import HOST, REMEMBERED, Command, Holding, Mine, Report
from node.departures import Stopped
from node.dirty_rates import Pool
from node.frame_allocator import OutOfMemory
from node.guest import GuestSpec, GuestState
from node.guest_books import GuestBooks
from node.host import Host
from node.migration_frames import PageDigests, Stream, StreamName
from node.migration_refusal import MigrationRefusal
from node.sealed_transfer import SEALED
from node.svsm_memory import IMAGE_BYTES
from psp.policy import LegacyPolicy
from psp.system_bus import PAGE_BYTES

Send = Callable[[str, tuple[object, ...]], Message]
"""Sends a message of a kind with these fields to the control plane."""
_Row = tuple[Holding, Callable[[Mine, int], None] | None, Callable[..., None], bool]
"""What a host has then, what becomes of what it remembers, what is done, and whether all has to be laid down first."""

_HERE = (GuestState.RUNNING, GuestState.PAUSED, GuestState.STOPPED)
_KEEPS, _LEAVING, _NOTHING, _RUNS, _STANDS, _WHOLE = (
    Holding.KEEPS, Holding.LEAVING, Holding.NOTHING, Holding.RUNS, Holding.STANDS, Holding.WHOLE
)  # fmt: skip
"""As in ``node.vcpu_runner``, lest each command looks them up in their enumeration."""
_READY, _STOPPED, _PLACE, _CAME, _STARTED = Report.READY, Report.STOPPED, Report.PLACE, Report.WHOLE, Report.RUNS
_new = tuple.__new__
"""Makes a named tuple without the call of Python's that its class would add."""
_KEYS = 0
"""The step before the first round."""
_NO_STREAM = StreamName(-1, "", "", "")


class _Known(Mine):
    """What a host knows of a VM. What it has of it in no move is the guest's to say."""

    __slots__ = ("asked", "lost", "paced", "peer", "said")

    def __init__(self) -> None:
        super().__init__(_NOTHING)
        self.lost = -1
        """Under which move it stood still when the host crashed: it may run elsewhere."""
        self.paced = (-1, -1)
        """Of which move, and since when, what was told last is of how far it stands still."""
        self.rest()

    def rest(self) -> None:
        """It is in no move any more, or the host has forgotten which."""
        self.peer = _NO_STREAM
        """The name of the stream that it travels as."""
        self.asked = -1
        """What between the rows was begun last: 0 for the agreement on keys, else a round's number."""
        self.said: Message | None = None
        """What was said last, to be said again."""

    def has(self, holding: Holding, number: int) -> bool:
        """Whether the host has this of it, under this move."""
        return self.number == number and self.holding is holding


class MigrationPort:
    """Turns messages into calls of a host's departures and arrivals, and back.

    ``others`` takes messages of other kinds: most that a host gets are of moves.
    """

    __slots__ = ("_clock", "_host", "_known", "_laboratory", "_others", "_send")

    def __init__(self, host: Host, send: Send, others: Callable[[Message], None], laboratory: int = 0) -> None:
        self._host = host
        self._clock = host.clock
        self._laboratory = laboratory
        """Whose root keys certify what a migration agent shows."""
        self._send = send
        self._others = others
        self._known: dict[str, _Known] = {}
        """By the names of VMs."""

    def receive(self, message: Message) -> None:
        """Do what a message asks."""
        kind, fields = message.kind, message.payload
        if kind not in _KINDS:
            self._others(message)
            return
        number, vm = fields[0], fields[1]
        known = self._known.get(vm)
        if known is None:
            known = self._known[vm] = _Known()
        step = None
        if known.number == number:
            step = _STEPS.get((known.holding, kind))
        elif known.number < 0:
            known.holding = self._at_rest(vm)
            if number > known.newest:
                step = _STEPS.get((known.holding, kind))
        # Most that comes is the next command of the move that it is in, or the first of one.
        if step is None or (step[3] and self._host.arrivals.is_laying(vm)):
            self._receive_otherwise(known, kind, fields)
        else:
            known.holding, remembered, done, _ = step
            if remembered is not None:
                remembered(known, number)
                if known.number < 0:
                    known.rest()
            done(self, known, *fields)
        if self._clock.unsettled:
            self._clock.settle()

    def _receive_otherwise(self, known: _Known, kind: str, fields: tuple[Any, ...]) -> None:
        """Do what is asked between the rows, again, or of a move that is another or was forgotten."""
        number, vm = fields[0], fields[1]
        between = self.BETWEEN.get(kind)
        if between is not None:
            between(self, known, *fields)
            return
        command = Command(kind)
        if command is Command.GO and self._host.arrivals.is_laying(vm):
            self._send("busy", (number,))  # What comes of that will be said, and answered.
            return
        had, before = known.holding, known.number
        report = hand_over.told(known, command, number)
        if report is None:
            if had is _NOTHING:
                self._miss(number, command)
            return
        other = known.number != before
        if other and before >= 0:
            if known.number >= 0:
                # A newer move says that the older one is over, though nobody told so.
                (self._host.departures.cancel if command is Command.BEGIN else self._host.arrivals.abandon)(vm)
            known.rest()
        if other or known.holding is not had:
            self.DONE[command](self, known, *fields)
        elif before == number:
            self._say_again(known, number)
        else:
            self._pass(report, number, command, fields[2:])

    def crash(self) -> None:
        """Forget what was under way; what was written down stays."""
        for known in self._known.values():
            if known.holding is _STANDS:
                known.lost = known.number
            hand_over.crashed(known)
            known.rest()

    def standing(self, vm: str) -> int:
        """Under which move a VM stands still here, and may run elsewhere by now; -1 for one that does not."""
        known = self._known.get(vm)
        if known is None:
            return -1
        return known.number if known.holding is Holding.STANDS else known.lost

    def _at_rest(self, vm: str) -> Holding:
        """What the host has of a VM that is in no move."""
        guest = self._host.guests.get(vm)
        return _RUNS if guest is not None and guest.state in _HERE else _NOTHING

    def _miss(self, number: int, command: Command) -> None:
        """Say that there is nothing to begin with: no VM, or a move that was begun before a crash."""
        if command is Command.BEGIN:
            missing = MigrationRefusal.NO_SUCH_VM
            self._send("stays", (number, missing.name, missing.value))
        else:
            self._send("gone", (number, self._host.spec.name))

    def _say_again(self, known: _Known, number: int) -> None:
        """What was asked before is done, and was said, or the host is at it still."""
        if known.said is None:
            self._send("busy", (number,))
        else:
            self._send(known.said.kind, known.said.payload)

    def _is_new(self, known: _Known, number: int, step: int) -> bool:
        """Whether something between the rows is to be begun: not what was, and nothing of who is not here."""
        if known.number != number:
            self._send("gone", (number, self._host.spec.name))
            return False
        if step <= known.asked:
            if step == known.asked:
                self._say_again(known, number)
            return False
        known.asked, known.said = step, None
        return True

    def _pass(self, report: Report, number: int, command: Command, rest: tuple[Any, ...]) -> None:
        """Answer a command of a move that is not under way here."""
        if report is Report.RUNS:
            self._send(report, (number, self._host.now_ns))
        elif report is Report.NEVER:
            self._send(report, (number, None))
        elif command not in _ON_REQUEST or rest[0]:
            self._send(report, (number,))

    # Out.

    def _migrate(
        self, known: _Known, number: int, vm: str, destination: str, let_go_within_ns: int, looks: bool
    ) -> None:
        def writes(pools: tuple[Pool, ...]) -> None:
            self._send("dirty", (number, pools))

        found = self._host.departures.begin(vm, writes)
        if isinstance(found, MigrationRefusal):
            known.holding, known.number = _NOTHING, -1
            self._send("stays", (number, found.name, found.value))
            return
        guest = self._host.guests[vm]
        known.peer = _new(StreamName, (number, vm, self._host.spec.name, destination))
        if not guest.spec.devices:
            self._ready(known, number, vm, found, looks=looks)
            return

        def told(wrong: str | None) -> None:
            if not known.has(_LEAVING, number):
                return  # It was called off meanwhile.
            if wrong is not None:
                known.said = self._send("stays", (number, _NAMES[wrong], wrong))
                return
            self._send("let-go", (number, self._host.now_ns))
            self._ready(known, number, vm, self._host.departures.statement(vm), looks=looks)

        self._host.departures.ask_devices(vm, let_go_within_ns, told)

    def _ready(self, known: _Known, number: int, vm: str, pools: tuple[Pool, ...], *, looks: bool) -> None:
        """The VM may be copied."""
        spec = self._host.guests[vm].spec
        image = self._host.images[spec.firmware]
        memory_bytes = spec.memory_bytes + -(-len(image.data) // PAGE_BYTES) * PAGE_BYTES
        if spec.svsm and spec.machine.by_agents:
            memory_bytes += IMAGE_BYTES
        held = self._host.departures.zero_pages(vm) if looks else (0, 0)
        known.said = self._send(_READY, (number, memory_bytes, pools, self._platform(spec), *held))

    def _seal(self, known: _Known, number: int, vm: str, certificates: bytes) -> None:
        if not self._is_new(known, number, _KEYS):
            return

        if (machine := self._host.guests[vm].spec.machine).migration_agent and machine.migration_handler:
            certificates = with_own_chain(certificates, self._host.board.psp, self._laboratory)

        def told(wrong: str | None, session: bytes) -> None:
            if not known.has(_LEAVING, number):
                return  # It was called off meanwhile.
            name = None if wrong is None else _NAMES.get(wrong, wrong)
            if session and is_attested(self._host.guests[vm].spec):
                session = agent_certified(session, self._host.board.psp, self._laboratory)
            known.said = self._send("sealed", (number, name, session))

        self._host.departures.seal(vm, certificates, told)

    def _slow(self, known: _Known, number: int, vm: str, standing_still: float, most_bytes_per_s: float) -> None:
        if known.has(_LEAVING, number):
            self._host.departures.slow(vm, standing_still, most_bytes_per_s)

    def _ahead(self, known: _Known, number: int, vm: str) -> None:
        if known.has(_STANDS, number):
            self._host.departures.hand_on(vm)

    def _stall(self, known: _Known, number: int, vm: str, since: int, standing_still: float, answer: bool) -> None:
        if known.started == number and (number, since) > known.paced:
            known.paced = number, since
            if vm in self._host.guests and known.number < 0:
                self._host.arrivals.slow(vm, standing_still)
        if answer:
            self._send(Report.PACED, (number, since))

    def _destroy(self, known: _Known, number: int, vm: str) -> None:
        self._host.guests[vm].reason = "its memory was on a host that crashed"
        self._host.destroy(vm)
        self._send(Report.DESTROYED, (number,))

    def _round(self, known: _Known, number: int, vm: str, round_: int, pages: int) -> None:
        if not self._is_new(known, number, round_):
            return
        side = self._host.arrivals if known.holding is Holding.KEEPS else self._host.departures

        def done() -> None:
            known.said = self._send("through", (number, round_, self._host.spec.name))

        side.copy(vm, pages, done)

    def _stop(self, known: _Known, number: int, vm: str, since_ns: int, ahead: bool) -> None:
        known.said = None
        reads = tuple(self._host.departures.reads(vm)) if ahead else ()

        def failed(why: str) -> None:
            known.said = self._send("stays", (number, _NAMES.get(why, _unnamed(why)), why))

        def done(stopped: Stopped | None) -> None:
            if not known.has(_STANDS, number):
                return
            if stopped is None:
                known.said = self._send("ended", (number,))
                return
            state = stopped.state
            known.said = self._send(
                _STOPPED,
                (
                    number, Stream(state, known.peer), PageDigests(state.pages), stopped.books.body(),
                    stopped.written_pages, stopped.stopped_ns, stopped.unsent_pages, reads,
                ),
            )  # fmt: skip

        self._host.departures.stop(vm, since_ns, done, failed)

    def _stay(self, known: _Known, number: int, vm: str, answer: bool) -> None:
        self._host.departures.cancel(vm)
        if answer:
            self._send(Report.STAYED, (number,))

    def _leave(self, known: _Known, number: int, vm: str, answer: bool) -> None:
        self._host.departures.finish(vm)
        if answer:
            self._send(Report.LEFT, (number,))

    # In.

    def _keep_place(self, known: _Known, number: int, vm: str, source: str, body: GuestBody | bytes) -> None:
        spec = guest_of(body)
        known.lost = -1
        known.peer = _new(StreamName, (number, vm, source, self._host.spec.name))
        platform = self._platform(spec)

        def told(wrong: str | None, certificates: bytes) -> None:
            if not known.has(_KEEPS, number):
                return  # It is not awaited any more.
            if certificates and is_attested(spec):
                certificates = agent_certified(certificates, self._host.board.psp, self._laboratory)
            elif certificates and spec.sev_policy & LegacyPolicy.SEV:
                from cluster.platform_certificates import certified  # noqa: PLC0415 - few guests ask for AMD's

                certificates = certified(certificates, self._host.board.psp.legacy.keys.chip)
            known.said = self._send(_PLACE, (number, wrong, certificates, platform))

        self._host.arrivals.prepare(spec, told)

    def _open(self, known: _Known, number: int, vm: str, session: bytes) -> None:
        if not self._is_new(known, number, _KEYS):
            return

        def told(wrong: str | None) -> None:
            if known.has(_KEEPS, number):
                known.said = self._send("opened", (number, wrong))

        self._host.arrivals.open(vm, session, told)

    def _platform(self, spec: GuestSpec) -> tuple[object, ...]:
        """What a VM whose memory firmware carries needs to find again, and what it shares; nothing for others."""
        if spec.generation not in SEALED and not is_attested(spec):
            return ()
        product, version = self._host.spec.product, self._host.board.psp.firmware.current.version
        return (product.line.name, product.c_bit, product.reduced_bits, version, spec.memory.shared.length)

    def _come(
        self, known: _Known, number: int, vm: str, frames: Stream | tuple[bytes, ...], digests: PageDigests | bytes,
        books: tuple[Any, ...],
    ) -> None:  # fmt: skip
        known.said = None
        before = self._host.arrivals.pages_checked

        def told(wrong: str | None) -> None:
            if not known.has(_WHOLE, number):
                return  # It is not awaited any more.
            if wrong is None:
                known.said = self._send(_CAME, (number, self._host.arrivals.pages_checked - before))
            else:
                report = hand_over.gave_up(known)
                known.rest()
                self._host.arrivals.abandon(vm)
                self._send(report, (number, wrong))

        self._host.arrivals.complete(vm, frames, digests, GuestBooks.parse(books), told, known.peer)

    def _go(self, known: _Known, number: int, vm: str) -> None:
        if not self._host.arrivals.is_whole(vm):
            self._host.arrivals.abandon(vm)
            self._send(Report.NEVER, (number, None))
            return
        spec = self._host.guests[vm].spec
        if spec.devices:

            def settled(trusted: int) -> None:
                self._send("settled", (number, self._host.now_ns, trusted.bit_count(), len(spec.devices)))

            self._host.arrivals.await_devices(vm, settled)
        self._host.arrivals.start(vm)
        self._send(_STARTED, (number, self._host.now_ns))

    def _give_place_back(self, known: _Known, number: int, vm: str, answer: bool) -> None:
        self._host.arrivals.abandon(vm)
        if answer:
            self._send(Report.GIVEN, (number,))

    # Tables.

    DONE: ClassVar[Mapping[str, Callable[..., None]]] = {
        Command.BEGIN: _migrate,
        Command.STOP: _stop,
        Command.STAY: _stay,
        Command.LEAVE: _leave,
        Command.KEEP: _keep_place,
        Command.COME: _come,
        Command.GO: _go,
        Command.DESTROY: _destroy,
        Command.GIVE_BACK: _give_place_back,
    }
    """What carries a command out: takes what is known of the VM, the move's number, the VM, and what else is said."""
    BETWEEN: ClassVar[Mapping[str, Callable[..., None]]] = {
        "seal": _seal, "open": _open, "round": _round, "slow": _slow, "ahead": _ahead, "stall": _stall,
    }  # fmt: skip
    """What is asked of both hosts between the rows of the hand-over, of the move that they are in."""


def _unnamed(why: str) -> str:
    """What is told of a stop that went wrong in a way that has no name: what memory it lacked."""
    return why if why.startswith(OutOfMemory.SAYS) else "NOT_SENT"


def is_attested(spec: GuestSpec) -> bool:
    """Whether those who move a VM show each other reports: agents, or handlers in it."""
    return spec.migration_agent or spec.migration_handler


_NAMES = {one.value: one.name for one in MigrationRefusal}


_ON_REQUEST = frozenset({Command.STAY, Command.LEAVE, Command.GIVE_BACK})
"""Commands that say whether they want to be answered."""

_STEPS: Mapping[tuple[Holding, str], _Row] = {
    (had, command): (row.to, REMEMBERED.get(row.report), MigrationPort.DONE[command], command is Command.GO)
    for (had, command), row in HOST.items() if row.to is not had and command is not Command.DESTROY
}  # fmt: skip
"""The rows by which a move begins or goes on. What is destroyed is in no move any more."""

_KINDS = frozenset({*MigrationPort.DONE, *MigrationPort.BETWEEN})
"""Of messages that are of moves."""
