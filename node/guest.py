"""A virtual machine as its specification names it and as its host runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Generic, TypeVar

from node.boot_phases import BootPath
from node.device_notice import Told
from node.dirty_log import DirtyLog
from node.disk_books import DiskBooks
from node.event_log import Chain
from node.generation import Generation
from node.guest_memory_map import GuestMemoryMap, memory_map
from node.kernel_settings import CAREFUL, KernelSettings
from node.machine_spec import MachineSpec
from node.mechanism import Mechanism
from node.migration_refusal import REFUSALS, MigrationRefusal
from node.network_books import NetworkBooks
from node.operation_cost import GuestOperationCost
from node.phase_cost import PhaseCost
from node.program import Demand, ProgramSpec
from node.sealed_transfer import SEALED
from node.svsm_use import SvsmUse
from node.tenant import TenantPort
from node.vcpu import Vcpu, VcpuState
from node.vcpu_throttle import Throttle
from node.vmsa import SevFeature
from tio.device_identity import CardKind

if TYPE_CHECKING:
    from node.newcomer import Newcomer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """What a tenant ordered: enough to launch the VM and to rebuild its programs."""

    name: str
    generation: Generation
    vcpus: int
    memory_bytes: int
    program: ProgramSpec
    seed: int
    firmware: str = "auto"
    """Key of the firmware image among those the host was given."""
    disk: str = ""
    """Path of the file behind its disk; empty for a disk that is empty at first."""
    network: bool = False
    """Whether its vCPUs have network cards."""
    sev_features: int = 0
    """SEV_FEATURES that an SNP guest asks for beyond SNP itself."""
    svsm: bool = False
    """An SVSM runs below it, at VMPL0; SEV-SNP guests only."""
    kernel: KernelSettings = CAREFUL
    owned: bool = False
    """Somebody outside is its owner, and takes part in its launch if it is of SEV or SEV-ES."""
    sev_policy: int = 0
    """Bits of its policy beyond NODBG and ES, if it is of SEV or SEV-ES."""
    devices: tuple[CardKind, ...] = ()
    """Cards of its host's that it is given."""
    migration_agent: bool = False
    """Its policy lets a migration agent move it, and it is launched with its host's; SEV-SNP guests only."""
    migration_handler: bool = False
    """Its SVSM has a migration handler, which moves it."""
    cpu_model: str = ""
    """The processor that it is shown, of ``node.cpu_model``; empty for the one of the host that launched it."""
    launched_on: str = ""
    """What that host shows (``shown_by``), for one that may be elsewhere by now; empty for the host that it is on."""
    machine: MachineSpec = field(init=False, repr=False, compare=False)
    """The part of it that concerns the hypervisor."""
    moves_sealed: bool = field(init=False, repr=False, compare=False)
    """Firmware, agents or a handler seal what of it moves: no stream at the pace of a link copies it."""
    stays: MigrationRefusal | None = field(init=False, repr=False, compare=False)
    """Why no host may move it, if none may."""

    def __post_init__(self) -> None:
        machine = MachineSpec(
            self.name, self.generation, self.vcpus, self.memory_bytes, self.firmware, self.sev_features,
            self.svsm, self.owned, self.sev_policy, self.devices, self.migration_agent,
            self.migration_handler, self.cpu_model, self.launched_on, self.kernel.boot is BootPath.DIRECT,
        )
        object.__setattr__(self, "machine", machine)
        sealed = self.generation in SEALED or self.migration_agent or self.migration_handler
        object.__setattr__(self, "moves_sealed", sealed)
        object.__setattr__(self, "stays", self._stays())

    def _stays(self) -> MigrationRefusal | None:
        if self.devices and not (self.migration_agent or self.migration_handler):
            return MigrationRefusal.DEVICE_ASSIGNED
        if self.migration_agent:
            if self.sev_features & SevFeature.SECURE_TSC:
                return MigrationRefusal.SECURE_TSC
        elif self.generation in REFUSALS and not self.migration_handler:
            return REFUSALS[self.generation]
        return None

    @property
    def memory(self) -> GuestMemoryMap:
        """The guest's memory layout; raises ValueError for impossible sizes."""
        return memory_map(self.memory_bytes, self.vcpus)


class GuestState(StrEnum):
    """The life of a VM on a host."""

    LAUNCHING = "launching"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    """It powered itself off."""
    DESTROYED = "destroyed"
    REFUSED = "refused"
    ARRIVING = "arriving"
    """Its place is kept; it comes from another host."""
    DEPARTED = "departed"
    """It lives on another host, which has its books."""


GONE = (GuestState.DESTROYED, GuestState.REFUSED, GuestState.DEPARTED)
"""A VM in one of these states has nothing on the host but its books."""


class _WhenPutUp(Generic[T]):
    """What a VM gets when it is put up; before, it is ``empty``. Asking for it puts up a newcomer.

    Nothing is kept of who asks before: what stood at the guest itself would hide that it is a newcomer.
    """

    def __init__(self, empty: Callable[[], T] | None = None) -> None:
        self._empty = empty

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, guest: Guest, _: type) -> T:
        """Only as long as the VM has none of its own."""
        own: dict[str, T] = vars(guest)
        if guest.newcomer is not None:
            guest.newcomer.put_up()
        if self._name in own:
            return own[self._name]
        if self._empty is None:
            raise AttributeError(f"{guest.spec.name}: {self._name}: expected once it runs")
        return self._empty()


class Guest:
    """The host's record of a VM. Times are virtual nanoseconds. What stands at the class is how each begins."""

    newcomer: Newcomer | None = None
    """What came of it, books and all, where it came from another host and nobody has asked for more."""
    vcpus = _WhenPutUp[list[Vcpu]](list)
    software = _WhenPutUp[TenantPort]()
    """Its start-up code and programs, from the moment it runs."""
    operation_cost = _WhenPutUp[GuestOperationCost]()
    """Prices of its operations on its host, from then on too."""
    chain = _WhenPutUp[Chain]()
    """What happens to it on its host, likewise."""
    demands = _WhenPutUp[tuple[tuple[Demand, ...], ...]](tuple)
    """What its vCPUs' programs ask for."""
    phase_costs = _WhenPutUp[dict[int, tuple[PhaseCost, ...]]](dict)
    """Costs of each vCPU's demands."""
    lost_ns = _WhenPutUp[dict[Mechanism, float]](dict)
    """vCPU time by mechanism that is not proportional to instructions: loaded latency, waits, operations."""
    row_ns = _WhenPutUp[dict[str, float]](dict)
    """Of the time in blocks, what is in proportion to rows of the cost table that have a sweep range."""
    when_parked: Callable[[], None] | None = None
    """Whom to tell when the last vCPU has come to rest for a pause."""
    asid: int = 0
    launched: tuple[int, ...] = ()
    """GPAs that firmware measured at launch."""
    reset_rips: tuple[int, ...] = ()
    """Where each vCPU comes out of reset."""
    boot_rips: tuple[int, ...] = ()
    """The same of its VMPL0."""
    launch_digest: str = ""
    launch_tcb: int | None = None
    """The TCB version that its firmware context keeps of its launch; None without one."""
    running_ns: int = -1
    ended_ns: int = -1
    psp_wait_ns: int = 0
    psp_service_ns: int = 0
    least_left_ns: int = 0
    """Service of the security processor that its launch still needs at least."""
    unwanted: bool = False
    """Destroyed before its launch was through: it goes as soon as it has come."""
    reason: str = ""
    powered_off: bool = False
    shutdown_code: int = 0
    """With which it powered itself off."""
    operation_ns: int = 0
    operations: int = 0
    faults: int = 0
    units_of_work: int = 0
    """Sum of the vCPUs' R13, set when the host's books are closed."""
    changed: Callable[[], None] | None = None
    """Whom to tell when a vCPU begins a phase or a sleep."""
    dirty_log: DirtyLog | None = None
    """While it migrates away."""
    throttle: Throttle | None = None
    """While it is slowed down for that."""
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_bounced: int = 0
    copies: int = 0
    """By which they were bounced."""
    disk: DiskBooks | None = None
    """Its requests, from the first one on."""
    svsm: SvsmUse | None = None
    """Of a VM that has one."""
    devices_told: tuple[Told, int] = (Told.NOTHING, 0)
    """What it said last of its devices, and those that it trusts, a bit for each."""
    network: NetworkBooks | None = None
    """What went through its network cards, if it has some."""

    def __init__(self, spec: GuestSpec, ordered_ns: int, state: GuestState = GuestState.LAUNCHING) -> None:
        self.spec = spec
        self.ordered_ns = ordered_ns
        self.state = state

    def tell_parked(self) -> None:
        """Call whoever waits for all of its vCPUs to be at rest, where they are."""
        if self.when_parked is None:
            return
        for vcpu in self.vcpus:
            if vcpu.state not in _AT_REST:
                return
        tell, self.when_parked = self.when_parked, None
        tell()


_AT_REST = (VcpuState.PAUSED, VcpuState.WAITING, VcpuState.IN_RESET, VcpuState.STOPPED)
