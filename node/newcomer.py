"""A VM that came in the middle of sleeps or phases, and of which nobody has asked for more than that it is there.

What a VM has on its host (software, books, and vCPUs as far as they only sleep) follows from what came of it, whenever
it is made. One that comes often goes on to another host before a sleep or a phase of its has ended. So it is put up
when that happens or somebody asks, and where nobody did, its books are those that came, and what its phases added.
Nobody has looked at its memory either by then: it is one of ``node.unlaid_vms``, and whoever looks has it put up first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from node.dirty_rates import Pool, pools_at_rest
from node.event_log import ChainEnd
from node.guest import Guest, GuestSpec
from node.guest_books import GuestBooks
from node.host_events import HostEvent
from node.hypervisor_port import Entered
from node.identity_cache import RecordsById
from node.program import FORGOTTEN, Demand
from node.tenant import TenantPort
from node.vcpu import AWAITING, SLEEPING, Vcpu, VcpuState
from node.vm_state import VmState
from node.vmsa import GENERAL_REGISTERS, StoredArea, load_registers, registers_in

if TYPE_CHECKING:
    from node.host import Host

_ASLEEP, _OUT, _PARKED = VcpuState.SLEEPING, VcpuState.PAUSED, HostEvent.PAUSED
"""As in ``node.vcpu_runner``, lest each move looks them up in their enumerations."""
_R14 = GENERAL_REGISTERS.index("R14")
_Demands = tuple[tuple[Demand, ...], ...]
_Known = tuple[GuestSpec, _Demands, tuple[Pool, ...], object]
_known = RecordsById[_Known]()
"""What software asks for by a VM's specification, the pools that it has at rest, and where it is from."""


class Newcomer:
    """What came of a VM. What stands at the class is how each begins."""

    vcpus: Sequence[Vcpu] = ()
    """From when it goes on; none where all sleep, for nothing is asked of those."""
    demands: _Demands = ()
    """Of these."""
    stopped: bool = False
    """It stands still, and what it has is in its save areas."""
    _left: Sequence[tuple[int, int]] = ()
    """R14 and R15 of all of its vCPUs when it went on."""
    _since_ns: int = -1
    """And since when."""
    _software: TenantPort | None = None

    def __init__(self, host: Host, guest: Guest, entered: Entered, state: VmState, books: GuestBooks) -> None:
        self._host = host
        self._guest = guest
        self.entered = entered
        self.state = state
        self._books = books

    def goes_on(self) -> bool:
        """Let its vCPUs go on here and now; False, with nothing done, where it is to be put up for that."""
        host, guest, state = self._host, self._guest, self.state
        # Its hypervisor here may have stored others than came.
        areas = host.board.unlaid.save_areas(state, self.entered.save_areas)
        if areas is None or host.log.records is not None or not all(state.started):
            return False  # A log names the demands also of VMs that have left.
        if state.time_base != host.time_base:
            return False  # What is added to its counter has to be stored.
        left, computes = [], False
        for area in areas:
            r14, r15 = registers_in(area)[_R14:]
            if not r15 or r14 == AWAITING:
                return False
            left.append((r14, r15))
            computes = computes or r14 != SLEEPING
        if computes and not self._make_vcpus(left, areas):
            return False
        self._left, self._since_ns = left, host.clock.now_ns
        guest.newcomer = self
        guest.boot_rips = state.reset_rips
        host.vcpus.seats.take(state.vm, len(left))
        host.board.unlaid.run(state.vm)
        for vcpu, (r14, r15) in enumerate(left):
            if r14 == SLEEPING:
                host.clock.after(r15, partial(_wake, host, guest, vcpu))
            else:
                host.vcpus.compute(self.vcpus[vcpu])
        return True

    def _make_vcpus(self, left: Sequence[tuple[int, int]], areas: Sequence[bytes | StoredArea]) -> bool:
        host, guest = self._host, self._guest
        if host.contention.ledger is not None:
            return False  # Which asks for the name of each phase.
        demands = self._asked()[1]
        costs, vcpus = host.vcpus.phase_costs(guest.spec, demands), []
        for index, area in enumerate(areas):
            number, _ = left[index]
            if number != SLEEPING and number >= len(costs[index]):
                return False  # Somebody stored to the save area.
            vcpu = Vcpu(guest, index, self.entered.save_areas[index])
            vcpu.registers, vcpu.state = load_registers(area), _ASLEEP
            vcpu.slept_from_ns = host.clock.now_ns
            vcpus.append(vcpu)
        self._books.open_vcpus(vcpus)
        guest.phase_costs, self.vcpus, self.demands = costs, vcpus, demands
        return True

    @property
    def pools_at_rest(self) -> tuple[Pool, ...]:
        """Those that it writes, while all of it sleeps."""
        return self._asked()[2]

    def _asked(self) -> _Known:
        """What its software says, made for that where none of this specification from there was asked last."""
        spec, host = self._guest.spec, self._host
        found = _known.get(id(spec))
        if found is None or found[3] is not host.software_from:
            if self._software is None:
                self._software = host.software(spec, self.entered.launched_gpas, self.state.reset_rips)
            demands = self._software.demands
            found = _known.keep((spec, demands, pools_at_rest(demands), host.software_from))
        return found

    def stop(self) -> None:
        """Take it off its cores: what is left of sleeps and phases goes to save areas."""
        host, guest, vm = self._host, self._guest, self.state.vm
        now_ns, board = host.clock.now_ns, host.board
        self.stopped = True
        guest.chain = chain = host.log.enter(vm, self._books.chain)
        for index, (_, r15) in enumerate(self._left):
            if self.vcpus:
                vcpu = self.vcpus[index]
                host.vcpus.halt(vcpu, _OUT)
                left, vcpu.registers = vcpu.registers.r15, FORGOTTEN
            else:
                left = r15 - (now_ns - self._since_ns)
                board.leave(vm, index)
            board.unlaid.store_rest(vm, index, left)
            chain.record(now_ns, _PARKED, index, vcpu=index)

    def books(self, chain: ChainEnd) -> GuestBooks:
        """Those with which it goes on, its digest chain at ``chain``: sleep costs nothing."""
        if self.vcpus:
            return self._books.after(self.vcpus, self._guest.phase_costs, chain)
        return self._books.at(chain)

    def leave(self) -> None:
        """It lives on another host, and nobody has asked for it here."""
        guest = self._guest
        guest.newcomer = None
        self._host.vcpus.seats.free(self.state.vm)
        if self._software is not None:
            self._software.close()
        if self.vcpus:
            guest.phase_costs = {}

    def put_up(self) -> None:
        """Make all that a VM has, as the time since it went on has left it: somebody asks, or it is to go on."""
        host, guest, books, vm = self._host, self._guest, self._books, self.state.vm
        guest.newcomer = None
        entered = self.entered
        if self._left:
            areas = host.board.unlaid.areas(vm)[: len(self._left)]
            entered = entered._replace(save_areas=areas)
            for vcpu, spa in zip(self.vcpus, areas, strict=False):
                vcpu.save_area_spa = spa
        if not self.stopped:
            host.log.enter(vm, books.chain)
        host.put_up(guest, entered, self.state.reset_rips, self.vcpus, self._software)
        books.open(guest)
        if not self.vcpus:
            books.open_vcpus(guest.vcpus)
        for vcpu in guest.vcpus if self._left else ():
            if self.stopped:
                vcpu.state, vcpu.epoch = _OUT, 1
                guest.software.forget(vcpu.index)
            elif not self.vcpus:
                vcpu.state, vcpu.slept_from_ns = _ASLEEP, self._since_ns
                host.vcpus.load(vcpu)


def _wake(host: Host, guest: Guest, index: int) -> None:
    """The sleep in which a vCPU came is over, if nobody has ended it before."""
    newcomer = guest.newcomer
    if newcomer is not None and not newcomer.stopped:
        newcomer.put_up()
    if guest.newcomer is None and guest.vcpus and not guest.vcpus[index].epoch:
        host.vcpus.awake(guest.vcpus[index])
