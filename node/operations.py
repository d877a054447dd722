"""Operations that programs yield and the board executes in virtual time.

An operation carries no key, ASID, VMPL or identity: the board takes those from
the core that executes. Operations travel in batches (tuples); a batch takes
effect, in order and at one instant, when the time of all of it has passed.
What must be seen half done goes in separate batches.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.block_endings import Await, Compute, Shutdown, Sleep
from node.branch_operations import Arithmetic, Branch, HostBranch, HostReadCounter, IndirectBranch
from node.device_operations import (
    MOST_WORDS,
    CardDebug,
    CardUpdate,
    ConfigIn,
    ConfigOut,
    ConfigRead,
    ConfigWrite,
    DeviceRead,
    DevicesTold,
    DeviceWrite,
    MmioLoad,
    MmioRead,
    MmioStore,
    MmioWrite,
    NicRead,
    NicWrite,
)
from node.event_operations import (
    LoadIdt,
    ReadFlags,
    SoftwareInterrupt,
    TraceFaults,
    VmcbLoad,
    VmcbStore,
    VmKick,
    WriteFlags,
)
from node.intercepted_operations import PortIn, PortInString, PortOut, PortOutString, Rdmsr, WriteBackCaches, Wrmsr
from node.memory_operations import MOST_BYTES, Copy, Read, UpkeepRead, UpkeepWrite, Write
from node.operation_answers import (
    Answer,
    CpuidResult,
    Fault,
    FaultKind,
    PspAnswer,
    PValidateResult,
    RmpQueryResult,
    RmpReadResult,
    Runs,
)
from node.owner_operations import AskLaunchOwner, FetchCertificates
from node.stack_operations import StackMove
from node.svsm_operations import Clear, GuestWork
from node.swap_operations import AgentCall, HandlerCall, SwapRowIn, SwapRowOut
from node.tsc_operations import ReadRandom, ReadTsc
from psp.system_bus import RmpEntry

__all__ = [
    "AgentCall", "Answer", "Arithmetic", "AskLaunchOwner", "Await", "Branch", "CardDebug", "CardUpdate", "Clear",
    "Compute", "ConfigIn", "ConfigOut", "ConfigRead", "ConfigWrite", "Copy", "CpuidResult", "DeviceRead",
    "DeviceWrite", "DevicesTold", "Fault", "FaultKind", "FetchCertificates", "GuestWork", "HandlerCall", "HostBranch",
    "HostReadCounter", "IndirectBranch", "LoadIdt", "MOST_BYTES", "MOST_WORDS", "MmioLoad", "MmioRead", "MmioStore",
    "MmioWrite", "NicRead", "NicWrite", "PValidateResult", "PortIn", "PortInString", "PortOut", "PortOutString",
    "PspAnswer", "Rdmsr", "Read", "ReadFlags", "ReadRandom", "ReadTsc", "RmpQueryResult", "RmpReadResult", "Runs",
    "Shutdown", "Sleep", "SoftwareInterrupt", "StackMove", "SwapRowIn", "SwapRowOut", "TraceFaults", "UpkeepRead",
    "UpkeepWrite", "VmKick", "VmcbLoad", "VmcbStore", "Write", "WriteBackCaches", "WriteFlags", "Wrmsr",
]  # fmt: skip

MOST_VIRTUAL_BYTES = 4 << 20
"""Of one operation by virtual address, whose every page takes a walk of walks: 1,024 pages at most."""

# Operations of a guest's vCPU. Addresses are guest-physical.


@dataclass(frozen=True, slots=True)
class VirtualRead:
    """Load ``length`` bytes, at most ``MOST_VIRTUAL_BYTES``, by virtual address. Answer: bytes, or a Fault."""

    gva: int
    length: int


@dataclass(frozen=True, slots=True)
class VirtualWrite:
    """Store at most ``MOST_VIRTUAL_BYTES`` by virtual address. Answer: None, or a Fault with nothing stored."""

    gva: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Fetch:
    """Load code by virtual address, as instruction fetch does; otherwise as ``VirtualRead``."""

    gva: int
    length: int


@dataclass(frozen=True, slots=True)
class WriteControl:
    """MOV to CR0, CR3 or CR4, or WRMSR of EFER, by name. Answer: None, or a Fault."""

    register: str
    value: int


@dataclass(frozen=True, slots=True)
class InvalidatePage:
    """INVLPG: forget this core's translation of one virtual page. Answer: None, or a Fault."""

    gva: int


@dataclass(frozen=True, slots=True)
class PValidate:
    """PVALIDATE every page of a range. Answer: ``PValidateResult``, or a Fault.

    Each page is an instruction of its own: those before one that fails keep what was done to them. Where the range
    leads is found first, in at most ``nested_page_table.MOST_WALKS`` walks.
    """

    gpa: int
    length: int
    large: bool
    validate: bool = True


@dataclass(frozen=True, slots=True)
class RmpAdjust:
    """RMPADJUST every page of a range: permission bits of VMPL ``target``, and whether it is a save area.

    Bounded and stopped as ``PValidate`` is. Answer: RMP code, or a Fault.
    """

    gpa: int
    length: int
    large: bool
    target: int
    permissions: int
    vmsa: bool = False


@dataclass(frozen=True, slots=True)
class RmpQuery:
    """RMPQUERY one page: what VMPL ``target`` may do there. Answer: ``RmpQueryResult``, or a Fault."""

    gpa: int
    target: int


@dataclass(frozen=True, slots=True)
class PageStateChange:
    """A whole exchange of ``VmgExit`` and page state lists, for programs without a GHCB. Answer: 0, or an error."""

    gpa: int
    length: int
    shared: bool


@dataclass(frozen=True, slots=True)
class VmgExit:
    """Write ``msr`` to the GHCB MSR and execute VMGEXIT. Answer: what the MSR holds then, or a Fault.

    ``instead`` where it stands for an instruction that exits in a plain VM, too: part of what it costs is that.

    #UD without encrypted registers, where the instruction is another (VMMCALL) that no guest here uses.
    """

    msr: int
    instead: bool = False


@dataclass(frozen=True, slots=True)
class ReadSevStatus:
    """RDMSR of SEV_STATUS (C001_0131), which never exits. Answer: int, or a Fault (#GP) in a plain VM."""


@dataclass(frozen=True, slots=True)
class ReadDr7:
    """MOV from DR7, intercepted with encrypted registers unless the core swaps it. Answer: int, or a Fault (#VC)."""


@dataclass(frozen=True, slots=True)
class WriteDr7:
    """MOV to DR7; as ``ReadDr7``. Answer: None, or a Fault: #GP for more than 32 bits, #VC where it is intercepted."""

    value: int


@dataclass(frozen=True, slots=True)
class Cpuid:
    """CPUID, which every hypervisor intercepts. Answer: ``CpuidResult``, or a Fault (#VC) with encrypted registers."""

    function: int
    index: int = 0


@dataclass(frozen=True, slots=True)
class Clflush:
    """CLFLUSH every line of a range; ``private`` is the C-bit. Answer: None, or a Fault."""

    gpa: int
    length: int
    private: bool = True


@dataclass(frozen=True, slots=True)
class TimedRead:
    """Load one byte between two RDTSCP. Answer: nanoseconds, or a Fault."""

    gpa: int
    private: bool = True


BLOCK_BYTES = 4096
"""Logical block size of a VM's disk."""
MOST_BLOCKS = MOST_BYTES // BLOCK_BYTES
"""Of one request of a guest to its disk; a longer one has an invalid field."""


@dataclass(frozen=True, slots=True)
class BlockRead:
    """Read at most ``MOST_BLOCKS`` from the VM's disk into shared memory. Answer: NVMe status, 0 is success."""

    lba: int
    blocks: int
    gpa: int


@dataclass(frozen=True, slots=True)
class BlockWrite:
    """Write at most ``MOST_BLOCKS`` to the VM's disk from shared memory. Answer: NVMe status, 0 is success."""

    lba: int
    blocks: int
    gpa: int


# Operations of the hypervisor. Addresses are system-physical.


@dataclass(frozen=True, slots=True)
class HostRead:
    """Load at most ``MOST_BYTES`` through a host mapping; ``encrypted`` is its C-bit. Answer: bytes, or a Fault.

    Where the host has no C-bit it is an address bit, and no memory is that far up: #MC.
    """

    spa: int
    length: int
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class HostReadWritten:
    """Load, through a host mapping, the pages of a range that somebody wrote. Answer: ``Runs``, or a Fault.

    What a hypervisor finds that reads all and skips pages of zeros, at the cost of the pages it keeps.
    """

    spa: int
    length: int
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class HostWrite:
    """Store through a host mapping. Answer: None, or a Fault."""

    spa: int
    data: bytes
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class PaidRead(HostRead):
    """A load that is paid with something else: of a buffer of a mailbox command, whose figure holds it."""


@dataclass(frozen=True, slots=True)
class PaidWrite(HostWrite):
    """A store that is paid with something else: as ``PaidRead``; and of tables, which cost a launch nothing more."""


@dataclass(frozen=True, slots=True)
class HostClear:
    """Zero whole pages through a host mapping. Answer: None, or a Fault."""

    spa: int
    length: int
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class PaidClear(HostClear):
    """The same of pages that a machine takes beside its memory: tables, save areas, a context."""


@dataclass(frozen=True, slots=True)
class HostWork:
    """Time the hypervisor spends outside any other operation: one row of the cost table. Answer: None."""

    cost: str


@dataclass(frozen=True, slots=True)
class RmpUpdate:
    """RMPUPDATE on ``length`` bytes from ``spa``; the GPA advances with the page. Answer: RMP code."""

    spa: int
    length: int
    entry: RmpEntry


@dataclass(frozen=True, slots=True)
class PSmash:
    """PSMASH one 2 MiB entry. Answer: RMP code."""

    spa: int


@dataclass(frozen=True, slots=True)
class RmpRead:
    """RMPREAD one entry. Answer: ``RmpReadResult``."""

    spa: int


@dataclass(frozen=True, slots=True)
class NestedFrames:
    """Give pages of memory for the tables of a VM's nested page table, the first as its root. Answer: None, or a Fault.

    Before its first mapping; more may follow. What lay in the pages is lost. ``encrypted``, which the first
    decides for all, is the C-bit of the root and of entries that lead to tables.
    """

    vm: str
    spa: int
    length: int
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class NestedMap:
    """Point the nested page table of a VM at memory: the stores of entries that it takes.

    ``encrypted`` is the entries' C-bit: the host's key where the guest does not use its own. Pages are of 2 MiB
    where addresses let them be, of 4 KiB with ``large`` off. Answer: None; how many pages for tables it lacks
    (then nothing changed); or a Fault.
    """

    vm: str
    gpa: int
    spa: int
    length: int
    encrypted: bool = False
    large: bool = True


@dataclass(frozen=True, slots=True)
class NestedBuild:
    """``NestedFrames`` of each (SPA, length), then ``NestedMap`` of each (GPA, SPA, length).

    Answer: the first of theirs that is not None, and what would come after it is not done; else None.
    """

    vm: str
    frames: tuple[tuple[int, int], ...]
    maps: tuple[tuple[int, int, int], ...]
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class NestedUnmap:
    """Take a range out of the nested page table of a VM. Answer: as ``NestedMap``."""

    vm: str
    gpa: int
    length: int


@dataclass(frozen=True, slots=True)
class VmcbWrite:
    """Fill a vCPU's control block: ASID, what encryption it runs with, its save area, and what VMRUN flushes.

    ``nested_cr3`` is the root, with its C-bit, of tables that the hypervisor wrote itself; -1 for those that
    ``NestedMap`` built.
    Answer: None, or a Fault: #UD for a generation that there is none of, and the block stays as it was.
    """

    vm: str
    vcpu: int
    asid: int
    generation: str
    save_area_spa: int
    nested_cr3: int = -1
    tlb_control: int = 0


@dataclass(frozen=True, slots=True)
class VmRun:
    """Enter a vCPU on hardware thread ``core``. Answer: 0, or the exit code: VMEXIT_INVALID or VMEXIT_BUSY.

    It runs, and its save area is in use, until the thread executes another VMRUN, for which it must have exited, or
    until somebody preempts it.
    """

    vm: str
    vcpu: int
    core: int = 0


@dataclass(frozen=True, slots=True)
class VmPreempt:
    """Interrupt the hardware thread that a vCPU runs on, so that it exits. Answer: None.

    One that the host's scheduler runs stays out until its next block or batch of operations, for which that enters it
    anew. Its registers lie in its save area meanwhile.
    """

    vm: str
    vcpu: int


@dataclass(frozen=True, slots=True)
class VmcbClear:
    """Forget a VM's control blocks and nested page table, whose pages are zero then. Answer: None."""

    vm: str


@dataclass(frozen=True, slots=True)
class DiskRead:
    """Load the written blocks of a VM's disk. Answer: ``Runs``, by logical block."""

    vm: str


@dataclass(frozen=True, slots=True)
class DiskWrite:
    """Store blocks of a VM's disk. Answer: None, or the NVMe status of the refusal: part of a block, or none there."""

    vm: str
    lba: int
    data: bytes


@dataclass(frozen=True, slots=True)
class PspCommand:
    """Ring the security processor's mailbox. Answer: ``PspAnswer``.

    ``buffer`` is the command buffer as bytes; the board lays it at ``spa`` in
    host memory first, as a driver would. An empty buffer leaves memory alone:
    for commands that take none, or whose page firmware owns already. The time of
    a ``paid`` one is charged elsewhere: by the page, for all that a migration copies. One ``with_rest`` is charged for
    what else of a launch by QEMU keeps others waiting, whoever does it.
    """

    command: int
    spa: int = 0
    buffer: bytes = b""
    paid: bool = False
    with_rest: bool = False


@dataclass(frozen=True, slots=True)
class Wbinvd:
    """WBINVD on all cores. Answer: None."""


@dataclass(frozen=True, slots=True)
class HostClflush:
    """CLFLUSH every line of a range through a host mapping; ``encrypted`` is its C-bit. Answer: None, or a Fault."""

    spa: int
    length: int
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class Invd:
    """INVD on all cores: their caches are empty, and what memory did not know is lost. Answer: None."""


@dataclass(frozen=True, slots=True)
class VmPageFlush:
    """Write VM_PAGE_FLUSH (MSR C001_011E): write back and drop a page's lines of an ASID. Answer: None, or a Fault.

    The MSR takes a virtual address; the host maps all memory one to one.
    """

    spa: int
    asid: int


@dataclass(frozen=True, slots=True)
class HostTimedRead:
    """Load one byte through a host mapping between two RDTSCP. Answer: nanoseconds, or a Fault."""

    spa: int
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class ReadMsr:
    """RDMSR on one core. Answer: int, or a Fault (#GP)."""

    core: int
    msr: int


@dataclass(frozen=True, slots=True)
class WriteMsr:
    """WRMSR on one core, or with None on every core. Answer: None, or a Fault (#GP) with no core changed."""

    core: int | None
    msr: int
    value: int


@dataclass(frozen=True, slots=True)
class FabricRoute:
    """Set the data fabric's MMIO routes so that pages reach nothing, or memory again. Answer: None, or a Fault.

    A locked fabric ignores it.
    """

    spa: int
    length: int
    to_memory: bool


@dataclass(frozen=True, slots=True)
class FabricDivert:
    """Turn the security processor's accesses to the page of an SPA to FASTREGCNTL and FASTREG; None ends it.

    Answer: None. It changes nothing on a product whose routes cannot be turned so.
    """

    spa: int | None


HypervisorOperation = (
    HostRead | HostReadWritten | HostWrite | PaidRead | PaidWrite | HostClear | PaidClear | HostWork | RmpUpdate
    | PSmash | RmpRead | NestedFrames | NestedMap | NestedBuild | NestedUnmap | VmcbWrite | VmRun | VmcbClear
    | PspCommand | Wbinvd | DiskRead | DiskWrite | HostClflush | Invd | VmPageFlush | HostTimedRead | VmPreempt
    | NicRead | NicWrite | ReadMsr | WriteMsr | MmioRead | MmioWrite | FabricRoute | FabricDivert
    | DeviceRead | DeviceWrite | ConfigRead | ConfigWrite | ConfigIn | ConfigOut | CardUpdate | CardDebug
    | VmcbLoad | VmcbStore | VmKick | TraceFaults | HostBranch | HostReadCounter | FetchCertificates | AskLaunchOwner
    | AgentCall | SwapRowOut | SwapRowIn | DevicesTold | HandlerCall
)  # fmt: skip
GuestOperation = (
    Read | Write | UpkeepRead | UpkeepWrite | Copy | VirtualRead | VirtualWrite | Fetch | WriteControl | InvalidatePage
    | PValidate | RmpAdjust | RmpQuery | PageStateChange | BlockRead | BlockWrite | Clflush | TimedRead | VmgExit
    | ReadSevStatus | Cpuid | ReadDr7 | WriteDr7 | MmioLoad | MmioStore | Clear | GuestWork | WriteBackCaches
    | StackMove | Arithmetic | LoadIdt | ReadFlags | WriteFlags | SoftwareInterrupt | Branch
    | IndirectBranch | Rdmsr | Wrmsr | PortIn | PortOut | ReadTsc | ReadRandom | PortInString | PortOutString
)  # fmt: skip
