"""The victim of a hypervisor that lies from the start: a guest that turns its paging on, and then writes its secret.

Whether what it writes is encrypted hangs on what it was told of the C-bit when it
came up. R12 is zero until then. It lives by virtual addresses, one to one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from node.encryption_setup import EncryptionMissing, EncryptionSetup
from node.generation import Generation
from node.ghcb_msr import GhcbReason, ReasonSet
from node.guest_ghcb import termination
from node.kernel_settings import KernelSettings
from node.operations import Shutdown, VirtualRead, VirtualWrite
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from workloads.attacks.vault import CONTENT_BYTES, PAGE_BYTES, REST, SECRET, Vault
from workloads.block_outcome import FAULTED, faulted

UP_RIP, KEEP_RIP, ROUND_RIP = 0x40_0000, 0x40_1000, 0x40_2000
GENERATION, CHECKS_STATUS, CHECKS_C_BIT = "generation", "checks_sev_status", "checks_c_bit"
"""Its parameters: as what it was built, and which of its kernel's checks it makes."""
_TABLES, _CANARY = 600, 602
"""Pages from the beginning of its private range, in another 2 MiB than the secret's."""


@dataclass(frozen=True, slots=True)
class Newcomer:
    """Keeps the secret where a ``Vault`` keeps it."""

    placement: Placement
    setup: EncryptionSetup

    entry = UP_RIP
    demands: tuple[Demand, ...] = ()

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> Newcomer:
        """The program of a specification."""
        told = dict(spec.parameters)
        settings = KernelSettings(
            checks_sev_status=bool(told[CHECKS_STATUS]), checks_c_bit=bool(told[CHECKS_C_BIT])
        )  # fmt: skip
        base = placement.base_gpa
        canary = Vault(placement).content(SECRET, part="canary")[:16]
        tables = base + _TABLES * PAGE_BYTES
        setup = EncryptionSetup(
            Generation[str(told[GENERATION])], settings, tables, canary_gpa(placement), canary
        )  # fmt: skip
        return cls(placement, setup)

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {UP_RIP: self._up, KEEP_RIP: self._keep, ROUND_RIP: self._round}

    def _up(self, registers: Registers) -> Block:
        try:
            registers.r12 = yield from self.setup.run()
        except EncryptionMissing:
            yield (termination(ReasonSet.GHCB, GhcbReason.GENERAL),)
            return Shutdown(FAULTED.code)
        registers.rip = KEEP_RIP
        return REST

    def _keep(self, registers: Registers) -> Block:
        answers = yield (VirtualWrite(self._place, Vault(self.placement).content(SECRET)),)
        registers.rip = ROUND_RIP
        return FAULTED if faulted(answers) else REST

    def _round(self, registers: Registers) -> Block:
        answers = yield (VirtualRead(self._place, CONTENT_BYTES),)
        registers.r13 += 1
        return FAULTED if faulted(answers) else REST

    @property
    def _place(self) -> int:
        return Vault(self.placement).private(SECRET)


def canary_gpa(placement: Placement) -> int:
    """Where it tries the C-bit out; nothing that it keeps lies above."""
    return placement.base_gpa + _CANARY * PAGE_BYTES
