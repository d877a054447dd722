"""A hypervisor that moves its victim to another host of the attacker's, with the machinery that every host has.

It does each step of a move when it is told to, and no other. What its chips answer the boards' taps see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgpack

from cluster.agent_certificates import agent_certified
from cluster.laboratory.bad_hypervisor import BadHypervisor
from cluster.platform_certificates import certified
from node.departures import Stopped
from node.generation import CAPABILITIES
from node.guest import GuestSpec, GuestState
from node.guest_books import GuestBooks
from node.host import Host
from node.hypervisor_port import LaunchRefused
from node.migration_frames import frames_of, page_digests
from node.migration_refusal import MigrationRefusal
from node.operations import Answer
from node.packing import packed
from workloads.attacks import move_operations as op
from workloads.attacks.stream import opened
from workloads.attacks.target import Household


@dataclass(slots=True)
class MoveHands:
    """Of one victim. ``make`` is the other host, made when it is first needed; ``run`` lets the victim on one run."""

    here: Host
    victim: Household
    make: Callable[[], Host] = field(repr=False)
    run: Callable[[Host], None] = field(repr=False)
    _there: Host | None = None
    _books: GuestBooks | None = None
    """The victim's, which travel with it."""

    def act(self, batch: tuple[op.MoveOperation, ...]) -> tuple[Answer, ...]:
        """Do each as told."""
        return tuple([self._ways[type(one)](one) for one in batch])

    @property
    def _ways(self) -> Mapping[type, Callable[..., Answer]]:
        return {
            op.KeepPlace: lambda _: self._keep_place(),
            op.Agree: self._agree,
            op.OpenThere: self._open,
            op.TakeOut: lambda _: self._take_out(),
            op.LayThere: self._lay,
            op.RunThere: lambda _: self._run_there(),
            op.StayHere: lambda _: self._stay(),
            op.GoOnHere: self._go_on,
        }

    @property
    def there(self) -> Host:
        """The other host."""
        if self._there is None:
            self._there = self.make()
        return self._there

    @property
    def _spec(self) -> GuestSpec:
        return self.here.guests[self.victim.vm].spec

    @property
    def _is_awaited(self) -> bool:
        guest = self.there.guests.get(self.victim.vm)
        return guest is not None and guest.state is GuestState.ARRIVING

    def _keep_place(self) -> Answer:
        told: list[tuple[str | None, bytes]] = []
        there, name = self.there, self.victim.vm
        if self._is_awaited:
            there.arrivals.abandon(name)
        else:
            there.destroy(name)
        there.arrivals.prepare(self._spec, lambda *what: told.append(what))
        _wait(there, lambda: bool(told))
        ((_, shown),) = told
        if not shown:
            return b""
        if self._spec.migration_agent:
            return agent_certified(shown, there.board.psp)
        return certified(shown, there.board.psp.legacy.keys.chip)

    def _agree(self, one: op.Agree) -> Answer:
        here, name = self.here, self.victim.vm
        told: list[tuple[str | None, bytes]] = []
        begun = here.departures.begin(name, lambda _: None)
        if isinstance(begun, MigrationRefusal):
            return None
        if not CAPABILITIES[self._spec.generation].key_per_vm:
            return b""  # The host reads all of it: there is nobody to agree with.
        here.departures.seal(name, one.shown, lambda *what: told.append(what))
        _wait(here, lambda: bool(told))
        ((wrong, session),) = told
        if wrong is None and self._spec.migration_agent:
            return agent_certified(session, here.board.psp)
        return None if wrong is not None else session

    def _open(self, one: op.OpenThere) -> Answer:
        if not one.session or not self._is_awaited:
            return None
        told: list[str | None] = []
        self.there.arrivals.open(self.victim.vm, one.session, told.append)
        _wait(self.there, lambda: bool(told))
        return _said(told[0])

    def _take_out(self) -> Answer:
        told: list[Stopped | None] = []
        failed: list[str] = []
        self.here.departures.stop(self.victim.vm, 0, told.append, failed.append)
        _wait(self.here, lambda: bool(told or failed))
        if not told or told[0] is None:
            return None
        self._books = told[0].books
        return packed(frames_of(told[0].state))

    def _lay(self, one: op.LayThere) -> Answer:
        there = self.there
        told: list[str | None] = []
        if self._books is None or not self._is_awaited:
            return b"nothing left, or no place was kept"
        there.clock.env.run(until=max(there.now_ns + 1, self.here.now_ns))
        frames = msgpack.unpackb(one.stream, use_list=False)
        digests = page_digests(opened(self.victim, one.stream).pages)
        there.arrivals.complete(self.victim.vm, frames, digests, self._books, told.append)
        _wait(there, lambda: bool(told))
        if told[0] is not None:
            there.arrivals.abandon(self.victim.vm)
            return _said(told[0])
        there.arrivals.start(self.victim.vm)
        return None

    def _run_there(self) -> Answer:
        guest = self.there.guests.get(self.victim.vm)
        if guest is not None and guest.state is GuestState.RUNNING:
            self.run(self.there)
        return None

    def _stay(self) -> Answer:
        self.here.departures.cancel(self.victim.vm)
        _wait(self.here, lambda: self.here.guests[self.victim.vm].state is not GuestState.PAUSED)
        return None

    def _go_on(self, one: op.GoOnHere) -> Answer:
        here, name = self.here, self.victim.vm
        if self._spec.migration_agent:
            hypervisor = here.hypervisor
            assert isinstance(hypervisor, BadHypervisor)
            try:
                here.tasks.at_once(hypervisor.lay_back(name, opened(self.victim, one.stream)))
            except LaunchRefused as refused:
                return _said(str(refused))
            here.board.residents.settle(here.board.vmcb(name, 0))
        here.resume(name)
        return None


def _wait(host: Host, condition: Callable[[], bool]) -> None:
    while not condition():
        host.clock.env.step()


def _said(wrong: str | None) -> bytes | None:
    return None if wrong is None else wrong.encode()
