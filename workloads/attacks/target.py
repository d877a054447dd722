"""What an attacker knows from the start: the hypervisor's books, and what page tracing would tell."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from node.operations import Answer, GuestOperation, HypervisorOperation, Wbinvd
from node.rmp_layout import RmpLayout
from workloads.attacks.chip_operations import ChipOperation
from workloads.attacks.claims import Claim, WorkedOut
from workloads.attacks.dimm_operations import DimmOperation
from workloads.attacks.elsewhere import OtherHostOperation
from workloads.attacks.given_card import GivenCard
from workloads.attacks.hypervisor_books import BookOperation
from workloads.attacks.move_operations import MoveOperation
from workloads.attacks.owner_operations import OwnerOperation
from workloads.attacks.single_step import Step
from workloads.attacks.slot_operations import SlotOperation
from workloads.attacks.target_page import Page

AttackBatch = (
    tuple[HypervisorOperation, ...] | tuple[GuestOperation, ...] | tuple[DimmOperation, ...]
    | tuple[OwnerOperation, ...] | tuple[ChipOperation, ...] | tuple[OtherHostOperation, ...]
    | tuple[Claim, ...] | tuple[WorkedOut, ...] | tuple[BookOperation, ...]
    | tuple[Step, ...] | tuple[SlotOperation, ...] | tuple[MoveOperation, ...]
)  # fmt: skip
Attack = Generator[AttackBatch, tuple[Answer, ...], None]
"""A running attack. ``yield ()`` waits until the victim has done another round and rests."""

LET_IT_RUN: AttackBatch = ()
WRITE_BACK: AttackBatch = (Wbinvd(),)
"""Empty the caches, so that DRAM is what everybody sees. It changes nothing on a host without any."""


@dataclass(frozen=True, slots=True)
class Household:
    """A VM as its hypervisor knows it: name, ASID, firmware handles (0 for none), and pages of a ``Vault``.

    ``c_bit`` says that the hypervisor maps its memory with the C-bit, for the host's key.
    """

    vm: str
    asid: int
    gctx: int
    handle: int
    c_bit: bool
    secret: Page
    value: Page
    other: Page
    decision: Page
    answer: Page
    request: Page
    code: Page
    inbox: Page
    outbox: Page
    stack: Page
    """Of a ``Service``: where its handlers find what interrupted them."""
    save_area: int = 0
    """SPA of its first vCPU's."""
    generation: str = ""
    """As its control block says."""
    registers_in_the_clear: bool = False
    doorbell: Page | None = None
    """The #HV doorbell that it registered."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What the hypervisor knows before anybody runs on its host, and before SNP starts.

    An attack that begins there is handed this. While it yields ``LET_IT_RUN`` the firmware initialises SNP.
    """

    rmp: RmpLayout
    """Where the table was reserved; on a part without SNP, where it would be."""
    log: int
    """SPA of a free frame that the victim's value will lie right above; 0 for attacks that begin later."""


@dataclass(frozen=True, slots=True)
class Target:
    """A victim, a tenant on the same host whom the attacker commands, and frames that belong to nobody."""

    victim: Household
    tenant: Household
    spare: tuple[int, ...]
    """SPAs of free 4 KiB frames."""
    command_page: int
    """SPA of a frame for command buffers."""
    c_bit: int
    """The bit of an address that asks for the host's key, where the host has that (CPUID 8000_001F)."""
    ghost_line: int
    """An address line that is clear in all frames of guests and of the RMP: above it lies nothing but the host's."""
    free_asid: int
    """An ASID for SNP guests that nobody has."""
    ground: Ground
    card: GivenCard | None = None
    """The victim's, where it has one."""

    @property
    def device(self) -> GivenCard:
        """The victim's card, of which there is one."""
        assert self.card is not None
        return self.card
