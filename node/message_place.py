"""What a vCPU's software needs to speak to the security processor: its message key, and a GHCB page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node.guest_memory_map import GuestMemoryMap

SECRETS_VMPCKS, VMPCK_BYTES, VMPCKS = 0x20, 32, 4
"""Where the four keys are in the secrets page (SEV-SNP firmware ABI, table 70)."""
SECRETS_COUNTS, COUNT_BYTES = 0xA0, 4
"""Where Linux keeps the number of the last message under each key, in what the page has for the guest's own use."""
SECRETS_LOCKS = 0xB8
"""A byte for each key, behind that: whether a vCPU is waiting for an answer. It is the laboratory's."""


@dataclass(frozen=True)  # without slots: the page is kept once it was asked for
class MessagePlace:
    """Where an SNP guest's pages for it are. Its kernel runs at ``vmpl`` and exits with one GHCB page per vCPU.

    ``launched`` are the pages that firmware measured; ``own_ghcb`` is the kernel's page where that is no other's: above
    an SVSM.
    """

    secrets_gpa: int
    vmpl: int
    vcpu: int
    memory: GuestMemoryMap
    launched: tuple[int, ...]
    own_ghcb: int | None = None
    checks_answers: bool = True
    """The kernel's setting of that name."""

    @cached_property
    def ghcb_gpa(self) -> int:
        """The page that the kernel has registered for this vCPU."""
        if self.own_ghcb is not None:
            return self.own_ghcb
        return self.memory.ghcb_gpa(self.vcpu) if self.vcpu else self.memory.boot_ghcb_gpa(self.launched)

    @property
    def key_gpa(self) -> int:
        """The VMPCK of this VMPL."""
        return self.secrets_gpa + SECRETS_VMPCKS + VMPCK_BYTES * self.vmpl

    @property
    def count_gpa(self) -> int:
        """The number of the last message under that key."""
        return self.secrets_gpa + SECRETS_COUNTS + COUNT_BYTES * self.vmpl

    @property
    def lock_gpa(self) -> int:
        """Whether somebody waits for an answer under that key."""
        return self.secrets_gpa + SECRETS_LOCKS + self.vmpl
