"""Faults that a scenario has no word for, brought into the parts of a fleet that has been built.

Bytes that change on their way between hosts, a link that carries nothing one way and tells nobody, firmware that
answers with an error, agents and handlers that begin anew or say nothing any more, a record of hand-overs whose disk
is full, and a control plane that is killed while it writes to that. Each comes at a time, or with the first thing after
it that it can come with.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cluster.bench.moving_machines import VM, WAYS
from cluster.commit_record import CommitRecord
from cluster.control_plane import ControlPlane
from cluster.entity import NEVER, Message
from cluster.hand_over import Command, Record
from node.agent_transfer import AGENT
from node.guest import GuestState
from node.host import Host
from node.memory_controller import NoKey
from node.migration_frames import Stream
from node.migration_handler import STATE_GPA, Kept
from psp.commands import LegacyCommand, SnpCommand
from psp.status import PspError, Status
from psp.system_bus import PAGE_BYTES

SOURCE, TARGET = "host-1", "host-2"
_LASTS_NS = 300_000_000
_SOON_NS = 2_000_000
_TRIES = 500
RETURNS_NS = 4_000_000_000
"""When the VM goes back, if it came."""
_THERE = (GuestState.RUNNING, GuestState.PAUSED, GuestState.ARRIVING)
_SAID_BETWEEN_HOSTS = {"seal": 2, "open": 2, Command.COME.value: 2}
"""What goes from host to host, and which field of the message it is."""
_TRANSFER = frozenset({
    LegacyCommand.SEND_START, LegacyCommand.SEND_UPDATE_DATA, LegacyCommand.SEND_UPDATE_VMSA,
    LegacyCommand.RECEIVE_START, LegacyCommand.RECEIVE_UPDATE_DATA, LegacyCommand.RECEIVE_UPDATE_VMSA,
    LegacyCommand.RECEIVE_FINISH,
    SnpCommand.PAGE_MD_INIT, SnpCommand.PAGE_SWAP_OUT, SnpCommand.PAGE_SWAP_IN, SnpCommand.GUEST_REQUEST,
})  # fmt: skip
"""Commands that firmware carries a guest with."""
_BEFORE_IT_GOES = (GuestState.RUNNING, GuestState.ARRIVING)


class _KilledError(Exception):
    """The control plane is not there any more."""


class FaultyControl:
    """A control plane to which something is done at times, and that may be killed in the middle of a step."""

    def __init__(self, control: ControlPlane) -> None:
        self.real = control
        self.now_ns = 0
        self._timeline: list[tuple[int, int, Callable[[], None]]] = []

    def at(self, time_ns: int, action: Callable[[], None]) -> None:
        """Do something at a time, before anything else is done then."""
        heapq.heappush(self._timeline, (time_ns, len(self._timeline), action))

    def next_event_ns(self) -> int:
        """As any control plane's."""
        return min(self.real.next_event_ns(), self._timeline[0][0] if self._timeline else NEVER)

    def step(self, now_ns: int, messages: Sequence[Message]) -> tuple[Sequence[Message], int]:
        """As any control plane's; what had come by the time that it was killed, and was not looked at, is lost."""
        self.now_ns = now_ns
        while self._timeline and self._timeline[0][0] <= now_ns:
            heapq.heappop(self._timeline)[2]()
        try:
            said, _ = self.real.step(now_ns, messages)
        except _KilledError:
            self.real.migrations.restart(now_ns)
            said, _ = self.real.step(now_ns, ())
        return said, self.next_event_ns()


class Built(NamedTuple):
    """A fleet that has been built, and what is left to chance in it."""

    control: FaultyControl
    hosts: Mapping[str, Host]
    dice: random.Random


class InnerFault(NamedTuple):
    """How it is brought in, what else a scenario has with it, and for which ways to move there is such a thing."""

    bring: Callable[[Built, int], None]
    change: Callable[[int], dict[str, Any]] = lambda _: {}
    has_it: Callable[[str], bool] = lambda _: True
    ends: tuple[str, ...] = ()
    """How reasons begin with which the VM may end that nobody else has: where its move fails besides."""


# On the way between two hosts.

Spoil = Callable[[tuple[bytes, ...], random.Random], tuple[bytes, ...]]


def _flipped(data: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]


def _one_flipped(frames: tuple[bytes, ...], dice: random.Random) -> tuple[bytes, ...]:
    at = dice.randrange(len(frames))
    return (*frames[:at], _flipped(frames[at], dice), *frames[at + 1 :])


def _disordered(frames: tuple[bytes, ...], dice: random.Random) -> tuple[bytes, ...]:
    """One is lost, comes twice, or changes places with the next."""
    at = dice.randrange(len(frames))
    first, one, rest = frames[:at], frames[at], frames[at + 1 :]
    return dice.choice([(*first, *rest), (*first, one, one, *rest), (*first, *rest[:1], one, *rest[1:])])


def _spoils(spoil: Spoil) -> Callable[[Built, int], None]:
    def bring(built: Built, at_ns: int) -> None:
        live = built.control.real.migrations
        honest, spoilt = live.send, False

        def send(host: str, kind: str, body: object) -> None:
            nonlocal spoilt
            where = _SAID_BETWEEN_HOSTS.get(kind)
            if where is not None and not spoilt and built.control.now_ns >= at_ns:
                assert isinstance(body, tuple)
                said = body[where]
                if isinstance(said, Stream):
                    said = said.made()
                if said:
                    spoilt = True
                    body = (*body[:where], _spoilt(said, spoil, built.dice), *body[where + 1 :])
            honest(host, kind, body)

        live.send = send

    return bring


def _spoilt(said: Any, spoil: Spoil, dice: random.Random) -> Any:
    """Frames, or what is shown before them, which is taken to be two."""
    if not isinstance(said, bytes):
        return spoil(said, dice)
    half = len(said) // 2
    return b"".join(spoil((said[:half], said[half:]), dice))


def _stands_still(built: Built, at_ns: int) -> None:
    """What goes from the source to the target; the other way, where nothing of a VM goes, there is no need of it."""
    fabric, control = built.control.real.fabric, built.control
    topology = fabric.topology
    link = topology.path(SOURCE, TARGET)[0]
    control.at(at_ns, lambda: fabric.change(link, 0.0, control.now_ns))
    control.at(at_ns + _LASTS_NS, lambda: fabric.change(link, topology.links[link].bytes_per_s, control.now_ns))


# At a host.


def _firmware_fails(name: str) -> Callable[[Built, int], None]:
    """The first command of a transfer, or one of the next, is answered with an error, and not carried out."""

    def bring(built: Built, at_ns: int) -> None:
        host, left = built.hosts[name], built.dice.choice((0, built.dice.randrange(8), built.dice.randrange(64)))
        psp, swap = host.board.psp, host.board.psp.snp.swap
        honest, out, back = psp.submit, swap.row_out, swap.row_in

        def fails() -> bool:
            nonlocal left
            if host.now_ns >= at_ns:
                left -= 1
            return host.now_ns >= at_ns and left == -1

        def submit(command: int, buffer_spa: int = 0) -> Status:
            return Status.HWERROR_PLATFORM if command in _TRANSFER and fails() else honest(command, buffer_spa)

        def row(one: Callable[..., int]) -> Callable[..., int]:
            def carried(*fields: Any, **more: Any) -> int:
                if fails():
                    raise PspError(Status.HWERROR_PLATFORM)
                return one(*fields, **more)

            return carried

        psp.submit, swap.row_out, swap.row_in = submit, row(out), row(back)  # type: ignore[method-assign]

    return bring


def _agent_restarts(name: str) -> Callable[[Built, int], None]:
    return lambda built, at_ns: built.hosts[name].clock.after(at_ns, built.hosts[name].restart_agent)


def _goes_silent(who: str, name: str) -> Callable[[Built, int], None]:
    """The memory that its code begins in goes bad, as soon as it is there: all it ever answers is a fault."""

    def bring(built: Built, at_ns: int) -> None:
        host, left = built.hosts[name], _TRIES

        def spoil() -> None:
            nonlocal left
            guest = host.guests.get(who)
            try:
                record = host.hypervisor.launched(who)  # type: ignore[attr-defined]  # it is in this process
                image = record.firmware if record.svsm is None else record.svsm
                spa = None if image is None else record.page_spa(image.gpa)
            except KeyError:
                spa = None
            if spa is not None and (guest is None or guest.state in _THERE):
                host.board.dram.write(spa, bytes(PAGE_BYTES))
                host.board.agents.forget(who)
            elif left:
                left -= 1
                host.clock.after(_SOON_NS, spoil)

        host.clock.after(at_ns, spoil)

    return bring


def _handler_restarts(name: str) -> Callable[[Built, int], None]:
    """Its code begins anew, and keeps nothing, in a VM that goes on, or that is still to come."""

    def bring(built: Built, at_ns: int) -> None:
        host, left = built.hosts[name], _TRIES

        def restart() -> None:
            nonlocal left
            guest = host.guests.get(VM)
            if guest is not None and guest.state in _BEFORE_IT_GOES and begin_anew(host, VM):
                return
            if left:
                left -= 1
                host.clock.after(_SOON_NS, restart)

        host.clock.after(at_ns, restart)

    return bring


def begin_anew(host: Host, vm: str) -> bool:
    """Have a handler forget all it knew, but not that its guest is not here any more; False for one that knows nothing.

    It is the guest's own code that does so: it writes with the guest's key, without which there is no guest that runs.
    """
    try:
        record = host.hypervisor.launched(vm)  # type: ignore[attr-defined]  # it is in this process
        spa = record.page_spa(STATE_GPA)
    except KeyError:
        return False
    if spa is None or not host.board.bus.rmp_entry(spa).validated:
        return False
    try:
        kept = Kept.parse(host.board.controller.read(spa, PAGE_BYTES, record.asid))
    except NoKey:
        return False
    if kept.handed_over:
        return False
    host.board.controller.write(spa, Kept().pack(), record.asid)
    return True


# The record.


def _is_full(built: Built, at_ns: int) -> None:
    """Somebody else has taken what was left of its disk, but for the room that is kept."""
    live = built.control.real.migrations

    def fill() -> None:
        record = live.record
        record.most_bytes = len(record.data) + record.reserved_bytes

    built.control.at(at_ns, fill)


def _is_killed_writing(built: Built, at_ns: int) -> None:
    """Of what it was writing down a part is there."""
    control, live = built.control, built.control.real.migrations
    record = live.record
    honest = record.append

    def append(number: int, decision: Record) -> None:
        whole = len(record.data)
        honest(number, decision)
        if control.now_ns >= at_ns:
            left = record.data[: built.dice.randrange(whole, len(record.data))]
            live.record = CommitRecord(left, record.most_bytes)
            raise _KilledError

    record.append = append  # type: ignore[assignment, method-assign]


def _crashes_again(at_ns: int) -> dict[str, Any]:
    """While the VM goes back: what was written behind the torn entry is read then."""
    return {"faults": [{"kind": "control-plane-crash", "at": f"{RETURNS_NS + at_ns % 400_000_000} ns"}]}


def _by_agents(way: str) -> bool:
    return bool(WAYS[way].hosts.get("migration_agent"))


def _by_handler(way: str) -> bool:
    return bool(WAYS[way].machine.get("migration_handler"))


_LOST_AGENT = "migration agent: ", "the migration agent does not answer", "migration_agent: this host has none"
"""It alone had the VM's context."""
_LOST_HANDLER = ("the migration handler does not answer",)
"""It alone knew which save areas are the VM's."""
_STAYS_OUT = ("SNP_PAGE_SWAP_IN: HWERROR_PLATFORM",)

INNER_FAULTS: Mapping[str, InnerFault] = {
    "a bit flips on the way": InnerFault(_spoils(_one_flipped)),
    "a frame is lost, doubled or out of order": InnerFault(_spoils(_disordered)),
    "nothing goes out of the source": InnerFault(_stands_still),
    "the source's firmware fails": InnerFault(
        _firmware_fails(SOURCE), has_it=lambda way: way != "PLAIN", ends=_STAYS_OUT
    ),
    "the target's firmware fails": InnerFault(
        _firmware_fails(TARGET), has_it=lambda way: way != "PLAIN", ends=_STAYS_OUT
    ),
    "the source's agent begins anew": InnerFault(_agent_restarts(SOURCE), has_it=_by_agents, ends=_LOST_AGENT),
    "the target's agent begins anew": InnerFault(_agent_restarts(TARGET), has_it=_by_agents, ends=_LOST_AGENT),
    "the source's agent says nothing any more": InnerFault(
        _goes_silent(AGENT, SOURCE), has_it=_by_agents, ends=_LOST_AGENT
    ),
    "the target's agent says nothing any more": InnerFault(
        _goes_silent(AGENT, TARGET), has_it=_by_agents, ends=_LOST_AGENT
    ),
    "the source's handler says nothing any more": InnerFault(
        _goes_silent(VM, SOURCE), has_it=_by_handler, ends=_LOST_HANDLER
    ),
    "the target's handler says nothing any more": InnerFault(
        _goes_silent(VM, TARGET), has_it=_by_handler, ends=_LOST_HANDLER
    ),
    "the source's handler begins anew": InnerFault(_handler_restarts(SOURCE), has_it=_by_handler),
    "the target's handler begins anew": InnerFault(_handler_restarts(TARGET), has_it=_by_handler),
    "the record is full": InnerFault(_is_full, lambda _: {"record": "64 KiB"}),
    "the record is full and the control plane crashes": InnerFault(
        _is_full,
        lambda at_ns: {"record": "64 KiB", "faults": [{"kind": "control-plane-crash", "at": f"{at_ns} ns"}]},
    ),
    "the control plane is killed while it writes": InnerFault(_is_killed_writing, _crashes_again),
}  # fmt: skip
"""By name."""
