"""Programs of tenants: frozen specifications made of short blocks.

Everything a program knows between two blocks is in its vCPU's registers and in
guest memory. So a paused VM can lose every Python object of its programs and
go on after they are rebuilt from their specification.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from node.message_place import MessagePlace
from node.operations import Answer, Await, Compute, GuestOperation, Shutdown, Sleep
from tio.device_identity import CardKind

Scalar = int | float | str


@dataclass(frozen=True, slots=True)
class Demand:
    """What a steady phase asks of a core and its memory.

    ``bytes_per_llc_miss`` counts the line and its share of write-backs.
    ``written_set_bytes`` is how much memory the phase writes all over, and
    ``written_bytes_per_kilo_instruction`` how fast, in whole pages touched:
    what a live migration has to send again. A phase without them writes
    nothing that matters to one.
    ``max_instructions_per_s`` caps the phase, 0 means as fast as the core goes.
    """

    name: str
    instructions_per_cycle: float
    llc_misses_per_kilo_instruction: float
    tlb_misses_per_kilo_instruction: float
    memory_level_parallelism: float
    bytes_per_llc_miss: float = 64.0
    exits_per_mega_instruction: float = 0.0
    max_instructions_per_s: float = 0.0
    written_set_bytes: int = 0
    written_bytes_per_kilo_instruction: float = 0.0
    large_pages: bool = False
    """Its memory lies in pages of 2 MiB of the guest's own tables, and its TLB misses are those of such pages."""
    llc_accesses_per_kilo_instruction: float = 0.0
    """Loads that its own caches do not hold: what would miss without an LLC. 0 for as many as miss with one."""
    llc_working_set_bytes: int = 0
    """Scale of its miss curve m(o) = m_inf + (m_0 - m_inf) exp(-o / this); 0 for one that no neighbour changes."""
    read_set_bytes: int = 0
    """How much memory it reads all over, a page at each TLB miss; what it writes all over lies in it."""
    reads_apart: bool = False
    """What it writes all over is other memory than what it reads."""


class Registers:
    """General registers of a vCPU as software sees them, 64-bit unsigned.

    R13 counts the program's completed units of work, R14 names the demand of
    an unfinished ``Compute`` and R15 holds what is left of it, so that a pause
    in the middle of a phase loses nothing. Programs own the others.
    """

    __slots__ = (
        "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
        "rax", "rbp", "rbx", "rcx", "rdi", "rdx", "rip", "rsi", "rsp",
    )  # fmt: skip

    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rax: int
    rbp: int
    rbx: int
    rcx: int
    rdi: int
    rdx: int
    rip: int
    rsi: int
    rsp: int

    def __init__(self, rip: int = 0) -> None:
        self.reset(rip)

    def reset(self, rip: int) -> None:
        """Clear every register and go on at ``rip``."""
        self.r8 = self.r9 = self.r10 = self.r11 = self.r12 = self.r13 = self.r14 = self.r15 = 0
        self.rax = self.rbp = self.rbx = self.rcx = self.rdi = self.rdx = self.rsi = self.rsp = 0
        self.rip = rip


class _Forgotten(Registers):
    __slots__ = ()

    def __init__(self) -> None:
        for name in Registers.__slots__:
            object.__setattr__(self, name, 0)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name}: a vCPU that is paused has its registers in its save area")


FORGOTTEN: Registers = _Forgotten()
"""Those of every vCPU whose own are in its save area alone: all zero, and nobody's to change."""


Ending = Compute | Sleep | Await | Shutdown | None
Block = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], Ending]


class Program(Protocol):
    """What one vCPU runs.

    ``entry`` is the RIP of the first block. ``blocks`` maps a RIP to the
    function that starts the block there; a block yields batches of operations,
    sets ``rip`` to the next block and ends by returning what follows: a
    ``Compute``, a ``Sleep``, an ``Await``, a ``Shutdown``, or None to go straight on.
    """

    @property
    def entry(self) -> int: ...

    @property
    def demands(self) -> tuple[Demand, ...]: ...

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]: ...


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a program finds itself: its VM, its vCPU and the memory that is its own.

    The range [``base_gpa``, ``base_gpa + length``) is private to this vCPU;
    [``shared_gpa``, ``shared_gpa + shared_length``) is shared with the host,
    for device buffers; devices reach those alone if ``bounces``, else all of the guest's memory. The book of
    what of them is lent out lies at ``book_gpa``, in private memory. ``seed`` is the scenario's.
    """

    vm: str
    vcpu: int
    base_gpa: int
    length: int
    shared_gpa: int
    shared_length: int
    seed: int
    book_gpa: int = 0
    bounces: bool = True
    messages: MessagePlace | None = None
    """How the vCPU reaches the security processor, in an SNP guest whose image has a secrets page."""
    disk_key: bytes = field(default=b"", repr=False)
    """With which the kernel encrypts the disk; empty where it does not."""
    devices: tuple[CardKind, ...] = ()
    """Cards that were given to the VM, if this is its first vCPU, which drives them."""
    trusts_devices: bool = False
    """Whether it can let them into its private memory."""
    devices_move: bool = False
    """Whether its hypervisor may ask for them, to move the VM (``node.device_notice``)."""


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """A program's name and parameters; with a ``Placement`` it rebuilds the program whole."""

    name: str
    parameters: tuple[tuple[str, Scalar], ...] = ()


ProgramFactory = Callable[[ProgramSpec, Placement], Program]
