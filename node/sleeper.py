"""A VM that came to its host asleep, of which nobody has asked for more than that it is there.

What a VM has on its host (vCPUs, software, prices, books) follows from what came of it, whenever it is made. One that
comes in the middle of a sleep often goes on to another host before that is over. So it is put up when the sleep ends or
somebody asks, and where nobody did, what came is handed on. Nobody has looked at its memory either by then: it is one
of ``node.unlaid_vms``, which has whoever looks ask here first.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from node.event_log import ChainEnd
from node.guest import Guest
from node.guest_books import GuestBooks
from node.host_events import HostEvent
from node.hypervisor_port import Entered
from node.program import Demand
from node.tenant import TenantPort
from node.vcpu import SLEEPING, VcpuState
from node.vm_state import VmState
from node.vmsa import registers_in

if TYPE_CHECKING:
    from node.host import Host

_ASLEEP, _OUT, _PARKED = VcpuState.SLEEPING, VcpuState.PAUSED, HostEvent.PAUSED
"""As in ``node.vcpu_runner``, lest each move looks them up in their enumerations."""


def sleeps_left_ns(state: VmState) -> list[int]:
    """What is left of the sleep of each vCPU of a VM that is to go on; nothing where any of them does not sleep."""
    left: list[int] = []
    for area, started in zip(state.save_areas, state.started, strict=True):
        *_, r14, r15 = registers_in(area)
        if not started or r14 != SLEEPING or not r15:
            return []
        left.append(r15)
    return left


class Sleeper:
    """What came of such a VM, whose vCPUs begin to sleep here and now."""

    __slots__ = ("_books", "_entered", "_guest", "_host", "_since_ns", "_software", "_stopped", "started")

    def __init__(
        self, host: Host, guest: Guest, entered: Entered, state: VmState, books: GuestBooks, left_ns: list[int]
    ) -> None:
        self._host = host
        self._guest = guest
        self._entered = entered
        self._books = books
        self._since_ns = host.clock.now_ns
        self._software: TenantPort | None = None
        self._stopped = False
        self.started = state.started
        guest.asleep = self
        guest.launched = state.launched
        guest.boot_rips = guest.reset_rips = state.reset_rips
        host.vcpus.seats.take(state.vm, len(left_ns))
        host.board.unlaid.run(state.vm)
        for vcpu, ns in enumerate(left_ns):
            host.clock.after(ns, partial(_wake, host, guest, vcpu))

    @property
    def sleeps(self) -> bool:
        """Whether nobody has stopped it."""
        return not self._stopped

    @property
    def demands(self) -> tuple[tuple[Demand, ...], ...]:
        """What its programs ask for: of all that it has, its software is made for that."""
        if self._software is None:
            self._software = self._host.software(self._guest)
        return self._software.demands

    def stop(self) -> None:
        """Take it off its cores: what is left of each sleep goes to a save area."""
        host, guest = self._host, self._guest
        now_ns, vm = host.clock.now_ns, guest.spec.name
        self._stopped = True
        host.board.unlaid.sleep(vm, now_ns - self._since_ns)
        guest.chain = host.log.enter(vm, self._books.chain)
        for vcpu in range(len(self.started)):
            guest.chain.record(now_ns, _PARKED, vcpu, vcpu=vcpu)

    def books(self, chain: ChainEnd) -> GuestBooks:
        """Its books when it goes on, with its digest chain at ``chain``: sleep costs nothing."""
        return self._books.at(chain)

    def leave(self) -> None:
        """It lives on another host, and nobody has asked for it here."""
        self._guest.asleep = None
        self._host.vcpus.seats.free(self._guest.spec.name)
        if self._software is not None:
            self._software.close()

    def put_up(self) -> None:
        """Somebody asks for it: make what would have been made when it came, as the time since has left it."""
        host, guest = self._host, self._guest
        guest.asleep = None
        areas = host.board.unlaid.areas(guest.spec.name)
        if not self._stopped:
            host.log.enter(guest.spec.name, self._books.chain)
        host.put_up(guest, self._entered._replace(save_areas=areas), guest.boot_rips, self._software)
        self._books.open(guest)
        for vcpu in guest.vcpus:
            if self._stopped:
                vcpu.state = _OUT
                vcpu.epoch += 1
                guest.software.forget(vcpu.index)
            else:
                vcpu.state, vcpu.slept_from_ns = _ASLEEP, self._since_ns
                host.vcpus.load(vcpu)


def _wake(host: Host, guest: Guest, index: int) -> None:
    """The sleep in which a vCPU came is over, if nobody has ended it before."""
    if guest.asleep is not None and guest.asleep.sleeps:
        guest.asleep.put_up()
    if guest.asleep is None and guest.vcpus and not guest.vcpus[index].epoch:
        host.vcpus.awake(guest.vcpus[index])
