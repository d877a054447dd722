"""A host's side of live migration in messages: commands from the control plane, answers to it.

Which command means something, and what is answered, is in the tables of ``cluster.hand_over``; this calls the host's
departures and arrivals for it. What a migration needs besides the VM itself, its books and the digests of its
pages, travels beside the frames: frames cross the network, the rest is the control
plane's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cluster import hand_over
from cluster.agent_certificates import agent_certified
from cluster.guest_body import GuestBody, guest_of
from cluster.hand_over import Command, Heard, Holding, Mine, Report
from node.departures import Stopped
from node.dirty_rates import Pool
from node.guest import GuestSpec, GuestState
from node.guest_books import GuestBooks
from node.host import Host
from node.migration_frames import PageDigests, Stream, StreamName
from node.migration_refusal import MigrationRefusal
from node.sealed_transfer import SEALED
from psp.policy import LegacyPolicy
from psp.system_bus import PAGE_BYTES

Send = Callable[[str, tuple[object, ...]], None]
"""Sends a message of a kind with these fields to the control plane."""

_HERE = (GuestState.RUNNING, GuestState.PAUSED, GuestState.STOPPED)
_NEW = Heard()
_COMMANDS: Mapping[str, Command] = {command.value: command for command in Command}
_new = tuple.__new__
"""As in ``cluster.host_entity``."""
_KEYS = 0
"""The step before the first round."""


class MigrationPort:
    """Turns messages into calls of a host's departures and arrivals, and back."""

    def __init__(self, host: Host, send: Send, laboratory: int = 0) -> None:
        self._host = host
        self._laboratory = laboratory
        """Whose root keys certify what a migration agent shows."""
        self._send = send
        self._heard: dict[str, Heard] = {}
        """What this host wrote down of each VM; a crash does not take it away."""
        self._moves: dict[str, tuple[Holding, int]] = {}
        """VMs that are on their way, and under which number."""
        self._lost: dict[str, int] = {}
        """VMs that stood still here when the host crashed, and under which move: they may run elsewhere."""
        self._peers: dict[str, StreamName] = {}
        """The names of the streams that they travel as."""
        self._asked: dict[str, int] = {}
        """What between the rows was begun last for each of them: 0 for the agreement on keys, else a round's number."""
        self._paced: dict[str, tuple[int, int]] = {}
        """Of which move, and since when, what was told last is of how far each of them stands still."""
        self._said: dict[str, tuple[str, tuple[object, ...]]] = {}
        """What was said of each of these last, to be said again."""
        self._done: Mapping[Command, Callable[..., None]] = {
            Command.BEGIN: self._migrate,
            Command.STOP: self._stop,
            Command.STAY: self._stay,
            Command.LEAVE: self._leave,
            Command.KEEP: self._keep_place,
            Command.COME: self._come,
            Command.GO: self._go,
            Command.DESTROY: self._destroy,
            Command.GIVE_BACK: self._give_place_back,
        }

        self._between: Mapping[str, Callable[..., None]] = {
            "seal": self._seal, "open": self._open, "round": self._round, "slow": self._slow,
            "ahead": self._ahead, "stall": self._stall,
        }  # fmt: skip
        """What is asked of both hosts between the rows of the hand-over, of the move that they are in."""

    def receive(self, kind: str, fields: tuple[Any, ...]) -> None:
        """Do what a message asks."""
        command = _COMMANDS.get(kind)
        if command is None:
            self._between[kind](*fields)
            return
        number, vm = fields[:2]
        if command is Command.GO and self._host.arrivals.is_laying(vm):
            self._send("busy", (number,))  # What comes of that will be said, and answered.
            return
        before = self._mine(vm)
        after, report = hand_over.told(before, command, number)
        if report is None:
            if before.holding is Holding.NOTHING:
                self._miss(number, command)
            return
        if 0 <= before.number != after.number >= 0:
            # A newer move says that the older one is over, though nobody told so.
            (self._host.departures.cancel if command is Command.BEGIN else self._host.arrivals.abandon)(vm)
            self._keep(vm, before._replace(number=-1))
        if after.number < 0:
            self._keep(vm, after)
        else:
            self._heard[vm], self._moves[vm] = after[2], after[:2]
        if after[:2] != before[:2]:
            self._done[command](*fields)
        elif before.number == number:
            self._say_again(number, vm)
        else:
            self._pass(report, number, command, fields[2:])

    def crash(self) -> None:
        """Forget what was under way; what was written down stays."""
        self._lost |= {vm: number for vm, (holding, number) in self._moves.items() if holding is Holding.STANDS}
        self._moves.clear()
        self._peers.clear()
        self._asked.clear()
        self._said.clear()

    def standing(self, vm: str) -> int:
        """Under which move a VM stands still here, and may run elsewhere by now; -1 for one that does not."""
        holding, number = self._moves.get(vm, (Holding.NOTHING, -1))
        return number if holding is Holding.STANDS else self._lost.get(vm, -1)

    def _mine(self, vm: str) -> Mine:
        heard = self._heard.get(vm, _NEW)
        move = self._moves.get(vm)
        if move is not None:
            return _new(Mine, (*move, heard))
        guest = self._host.guests.get(vm)
        return Mine(Holding.RUNS if guest is not None and guest.state in _HERE else Holding.NOTHING, -1, heard)

    def _keep(self, vm: str, mine: Mine) -> None:
        self._heard[vm] = mine.heard
        if mine.number < 0:
            self._moves.pop(vm, None)
            self._said.pop(vm, None)
            self._peers.pop(vm, None)
            self._asked.pop(vm, None)
        else:
            self._moves[vm] = mine[:2]

    def _say(self, vm: str, kind: str, fields: tuple[object, ...]) -> None:
        self._said[vm] = (kind, fields)
        self._send(kind, fields)

    def _miss(self, number: int, command: Command) -> None:
        """Say that there is nothing to begin with: no VM, or a move that was begun before a crash."""
        if command is Command.BEGIN:
            missing = MigrationRefusal.NO_SUCH_VM
            self._send("stays", (number, missing.name, missing.value))
        else:
            self._send("gone", (number, self._host.spec.name))

    def _say_again(self, number: int, vm: str) -> None:
        """What was asked before is done, and was said, or the host is at it still."""
        self._send(*self._said.get(vm, ("busy", (number,))))

    def _is_new(self, number: int, vm: str, step: int) -> bool:
        """Whether something between the rows is to be begun: not what was, and nothing of who is not here."""
        if vm not in self._moves or self._moves[vm][1] != number:
            self._send("gone", (number, self._host.spec.name))
            return False
        asked = self._asked.get(vm, -1)
        if step <= asked:
            if step == asked:
                self._say_again(number, vm)
            return False
        self._asked[vm] = step
        self._said.pop(vm, None)
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

    def _migrate(self, number: int, vm: str, destination: str, let_go_within_ns: int, looks: bool) -> None:
        found = self._host.departures.begin(vm, lambda pools: self._send("dirty", (number, _bodies(pools))))
        if isinstance(found, MigrationRefusal):
            del self._moves[vm]
            self._send("stays", (number, found.name, found.value))
            return
        guest = self._host.guests[vm]
        self._peers[vm] = StreamName(number, vm, self._host.spec.name, destination)
        if not guest.spec.devices:
            self._ready(number, vm, found, looks=looks)
            return

        def told(wrong: str | None) -> None:
            if self._moves.get(vm) != (Holding.LEAVING, number):
                return  # It was called off meanwhile.
            if wrong is not None:
                self._say(vm, "stays", (number, _NAMES[wrong], wrong))
                return
            self._send("let-go", (number, self._host.now_ns))
            self._ready(number, vm, self._host.departures.statement(vm), looks=looks)

        self._host.departures.ask_devices(vm, let_go_within_ns, told)

    def _ready(self, number: int, vm: str, pools: tuple[Pool, ...], *, looks: bool) -> None:
        """The VM may be copied."""
        spec = self._host.guests[vm].spec
        image = self._host.images[spec.firmware]
        memory_bytes = spec.memory_bytes + -(-len(image.data) // PAGE_BYTES) * PAGE_BYTES
        held = self._host.departures.zero_pages(vm) if looks else (0, 0)
        self._say(vm, Report.READY, (number, memory_bytes, _bodies(pools), self._platform(spec), *held))

    def _seal(self, number: int, vm: str, certificates: bytes) -> None:
        if not self._is_new(number, vm, _KEYS):
            return

        def told(wrong: str | None, session: bytes) -> None:
            if self._moves.get(vm) != (Holding.LEAVING, number):
                return  # It was called off meanwhile.
            name = None if wrong is None else _NAMES.get(wrong, wrong)
            if session and is_attested(self._host.guests[vm].spec):
                session = agent_certified(session, self._host.board.psp, self._laboratory)
            self._say(vm, "sealed", (number, name, session))

        self._host.departures.seal(vm, certificates, told)

    def _slow(self, number: int, vm: str, standing_still: float, most_bytes_per_s: float) -> None:
        if self._moves.get(vm) == (Holding.LEAVING, number):
            self._host.departures.slow(vm, standing_still, most_bytes_per_s)

    def _ahead(self, number: int, vm: str) -> None:
        if self._moves.get(vm) == (Holding.STANDS, number):
            self._host.departures.hand_on(vm)

    def _stall(self, number: int, vm: str, since: int, standing_still: float, answer: bool) -> None:
        if self._heard.get(vm, _NEW).started == number and (number, since) > self._paced.get(vm, (-1, -1)):
            self._paced[vm] = number, since
            if vm in self._host.guests and vm not in self._moves:
                self._host.arrivals.slow(vm, standing_still)
        if answer:
            self._send(Report.PACED, (number, since))

    def _destroy(self, number: int, vm: str) -> None:
        self._host.guests[vm].reason = "its memory was on a host that crashed"
        self._host.destroy(vm)
        self._send(Report.DESTROYED, (number,))

    def _round(self, number: int, vm: str, round_: int, pages: int) -> None:
        if not self._is_new(number, vm, round_):
            return
        side = self._host.arrivals if self._moves[vm][0] is Holding.KEEPS else self._host.departures

        def done() -> None:
            self._say(vm, "through", (number, round_, self._host.spec.name))

        side.copy(vm, pages, done)

    def _stop(self, number: int, vm: str, since_ns: int) -> None:
        self._said.pop(vm, None)

        def failed(why: str) -> None:
            self._say(vm, "stays", (number, _NAMES.get(why, "NOT_SENT"), why))

        def done(stopped: Stopped | None) -> None:
            if self._moves.get(vm) != (Holding.STANDS, number):
                return
            if stopped is None:
                self._say(vm, "ended", (number,))
                return
            state = stopped.state
            self._say(
                vm, Report.STOPPED,
                (
                    number, Stream(state, self._peers[vm]), PageDigests(state.pages), stopped.books.body(),
                    stopped.written_pages, stopped.stopped_ns,
                ),
            )  # fmt: skip

        self._host.departures.stop(vm, since_ns, done, failed)

    def _stay(self, number: int, vm: str, answer: bool) -> None:
        self._host.departures.cancel(vm)
        if answer:
            self._send(Report.STAYED, (number,))

    def _leave(self, number: int, vm: str, answer: bool) -> None:
        self._host.departures.finish(vm)
        if answer:
            self._send(Report.LEFT, (number,))

    # In.

    def _keep_place(self, number: int, vm: str, source: str, body: GuestBody | bytes) -> None:
        spec = guest_of(body)
        self._lost.pop(vm, None)
        self._peers[vm] = StreamName(number, vm, source, self._host.spec.name)
        platform = self._platform(spec)

        def told(wrong: str | None, certificates: bytes) -> None:
            if self._moves.get(vm) != (Holding.KEEPS, number):
                return  # It is not awaited any more.
            if certificates and is_attested(spec):
                certificates = agent_certified(certificates, self._host.board.psp, self._laboratory)
            elif certificates and spec.sev_policy & LegacyPolicy.SEV:
                from cluster.platform_certificates import certified  # noqa: PLC0415 - few guests ask for AMD's

                certificates = certified(certificates, self._host.board.psp.legacy.keys.chip)
            self._say(vm, Report.PLACE, (number, wrong, certificates, platform))

        self._host.arrivals.prepare(spec, told)

    def _open(self, number: int, vm: str, session: bytes) -> None:
        if not self._is_new(number, vm, _KEYS):
            return

        def told(wrong: str | None) -> None:
            if self._moves.get(vm) == (Holding.KEEPS, number):
                self._say(vm, "opened", (number, wrong))

        self._host.arrivals.open(vm, session, told)

    def _platform(self, spec: GuestSpec) -> tuple[object, ...]:
        """What a VM whose memory firmware carries needs to find again, and what it shares; nothing for others."""
        if spec.generation not in SEALED and not is_attested(spec):
            return ()
        product, version = self._host.spec.product, self._host.board.psp.firmware.current.version
        return (product.line.name, product.c_bit, product.reduced_bits, version, spec.memory.shared.length)

    def _come(
        self, number: int, vm: str, frames: Stream | tuple[bytes, ...], digests: PageDigests | bytes,
        books: tuple[Any, ...],
    ) -> None:  # fmt: skip
        self._said.pop(vm, None)
        before = self._host.arrivals.pages_checked

        def told(wrong: str | None) -> None:
            if self._moves.get(vm) != (Holding.WHOLE, number):
                return  # It is not awaited any more.
            if wrong is None:
                self._say(vm, Report.WHOLE, (number, self._host.arrivals.pages_checked - before))
            else:
                mine, report = hand_over.gave_up(self._mine(vm))
                self._keep(vm, mine)
                self._host.arrivals.abandon(vm)
                self._send(report, (number, wrong))

        self._host.arrivals.complete(vm, frames, digests, GuestBooks.parse(books), told, self._peers[vm])

    def _go(self, number: int, vm: str) -> None:
        if not self._host.arrivals.is_whole(vm):
            self._host.arrivals.abandon(vm)
            self._send(Report.NEVER, (number, None))
            return
        spec = self._host.guests[vm].spec
        if spec.devices:
            devices, host = len(spec.devices), self._host
            host.arrivals.await_devices(
                vm, lambda trusted: self._send("settled", (number, host.now_ns, trusted.bit_count(), devices))
            )
        self._host.arrivals.start(vm)
        self._send(Report.RUNS, (number, self._host.now_ns))

    def _give_place_back(self, number: int, vm: str, answer: bool) -> None:
        self._host.arrivals.abandon(vm)
        if answer:
            self._send(Report.GIVEN, (number,))


def is_attested(spec: GuestSpec) -> bool:
    """Whether those who move a VM show each other reports: agents, or handlers in it."""
    return spec.migration_agent or spec.migration_handler


_NAMES = {one.value: one.name for one in MigrationRefusal}


def _bodies(pools: tuple[Pool, ...]) -> tuple[tuple[int, float], ...]:
    return tuple([(pool.working_set_bytes, pool.write_bytes_per_s) for pool in pools])


_ON_REQUEST = frozenset({Command.STAY, Command.LEAVE, Command.GIVE_BACK})
"""Commands that say whether they want to be answered."""
