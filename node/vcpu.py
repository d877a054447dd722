"""One vCPU of a guest: registers, and what it waits for."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from node.identity_cache import IdentityCache
from node.mechanism import Mechanism
from node.neighbour_ledger import Owner
from node.operations import Answer, GuestOperation
from node.program import FORGOTTEN, Demand, Registers

if TYPE_CHECKING:
    from node.contention import PhaseAccount
    from node.guest import Guest
    from node.vcpu_levels import VcpuLevels

SLEEPING = 0xFFFF_FFFF
"""Value of R14 while R15 holds what is left of a ``Sleep`` in nanoseconds."""
AWAITING = 0xFFFF_FFFE
"""Value of R14 while R15 holds what is left of an ``Await``."""
HALTED = (SLEEPING, AWAITING)
_MOST_FREE_BATCHES = 1000


class VcpuState(StrEnum):
    """What a vCPU does at the moment."""

    WAITING = "waiting"
    """Not started: an application processor before the boot processor is done."""
    BLOCK = "block"
    COMPUTING = "computing"
    SLEEPING = "sleeping"
    HELD = "held"
    """In the middle of a block, at an operation that faults in the nested tables: its hypervisor is to see to that."""
    IN_RESET = "in reset"
    """In the middle of a block, at an exit that comes back when another vCPU starts it."""
    PAUSED = "paused"
    STOPPED = "stopped"


HALFWAY = (VcpuState.HELD, VcpuState.IN_RESET)
"""States in the middle of a block, without a thread; what is left of its batch is in ``Vcpu.held``."""


class Vcpu:
    """A vCPU while it is on its host; everything a move needs is in ``registers`` and memory.

    ``epoch`` voids timers that were set before the vCPU was paused or stopped. What stands at the class is how each
    begins.
    """

    registers: Registers = FORGOTTEN
    state: VcpuState = VcpuState.WAITING
    slot: int = -1
    slept_from_ns: int = 0
    epoch: int = 0
    pause_wanted: bool = False
    held: tuple[tuple[GuestOperation, ...], tuple[Answer, ...]] = ((), ())
    """While it is halfway: what is left of its batch, and the answers that it has so far."""
    out: bool = False
    """Its hypervisor interrupted it and nobody has entered it since: its registers are those of its save area."""
    vc_code: int | None = None
    """The code of a #VC that its kernel meets at its next instruction."""
    called: bool = False
    """Its network card has had something since it last awoke from an ``Await``."""
    free_batches: int = 0
    """Batches in a row that cost nothing, the last of them at ``last_free``."""
    last_free: int = -2
    elapsed_ns: int = 0
    """Virtual time in phases and blocks, without sleep."""
    moved_instructions: Mapping[int, float] = MappingProxyType({})
    """Retired instructions on hosts that it came from, by number of the demand; their prices are booked already."""
    loaded_ns: float = 0.0
    core_wait_ns: float = 0.0
    smt_ns: float = 0.0
    llc_ns: float = 0.0
    slowed: bool = False
    """Its present phase is held to a rate while its VM moves."""
    levels: VcpuLevels | None = None
    """Where it has several save areas, one for each VMPL."""

    def __init__(self, guest: Guest, index: int, save_area_spa: int) -> None:
        self.guest = guest
        self.index = index
        self.save_area_spa = save_area_spa
        self.thread = index
        """Number of the software that runs on it now: its own, but where an SVSM has one of its own."""
        self.instructions: dict[int, float] = {}
        """Retired instructions by number of the demand, for demands that it made here."""
        self.phases: dict[int, int] = {}
        """Completed phases by number of the demand."""

    @property
    def threads(self) -> tuple[int, ...]:
        """Numbers of all software that runs on it."""
        return (self.index,) if self.levels is None else (self.index, self.index + len(self.guest.vcpus))

    @property
    def phase(self) -> Owner:
        """Whose phase it is that it runs or is about to."""
        return Owner(self.guest.spec.name, names_of(self.guest.demands[self.index])[self.registers.r14])

    def patience_ns(self, now_ns: int) -> int:
        """What a batch takes that costs nothing: nothing, but a nanosecond after many of them without a pause."""
        if now_ns > self.last_free + 1:
            self.free_batches = 0
        self.last_free = now_ns
        self.free_batches += 1
        return int(self.free_batches > _MOST_FREE_BATCHES)

    def book(self, account: PhaseAccount) -> None:
        """Add the time of a phase that has ended or was cut."""
        _, _, elapsed_ns, loaded_ns, core_wait_ns, smt_ns, llc_ns = account
        self.elapsed_ns += elapsed_ns
        self.loaded_ns += loaded_ns
        self.core_wait_ns += core_wait_ns
        self.smt_ns += smt_ns
        self.llc_ns += llc_ns
        if self.slowed:
            self.slowed = False
            self.guest.lost_ns[Mechanism.MIGRATION] += self._stood_still_ns(account)

    def _stood_still_ns(self, account: PhaseAccount) -> float:
        """What a phase took beyond its parts, what it lost to others, and what its own cap let it rest."""
        cost, done = self.guest.phase_costs[self.index][self.registers.r14], account.instructions
        busy_ns = done * sum([ns for _, ns in cost.parts]) + account.loaded_ns + account.smt_ns + account.llc_ns
        wanted_ns = max(busy_ns, done / cost.load.cap_per_ns) if cost.load.cap_per_ns else busy_ns
        return max(0.0, account.elapsed_ns - account.core_wait_ns - wanted_ns)

    @property
    def units_of_work(self) -> int:
        """R13 of its program, also while an SVSM runs for it."""
        held = None if self.levels is None else self.levels.program
        return (self.registers if held is None else held).r13


names_of = IdentityCache[tuple[Demand, ...], tuple[str, ...]](lambda demands: tuple(one.name for one in demands))
"""The names of a program's demands: one object for all vCPUs of the same."""
