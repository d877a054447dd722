"""The victim of a #VC that nothing raised: a guest that lays its secret down anew each round, in its own memory.

Its kernel takes #VC and has no gates; which of its checks the kernel makes is the machine's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from node.operations import Write
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from workloads.attacks.vault import REST, SECRET, Vault
from workloads.block_outcome import FAULTED, faulted

KEEP_RIP = 0x40_0000


@dataclass(frozen=True, slots=True)
class Keeper:
    """Keeps the secret of a ``Vault`` where that does. R13 counts the rounds."""

    placement: Placement

    entry = KEEP_RIP
    demands: tuple[Demand, ...] = ()

    @classmethod
    def build(cls, _: ProgramSpec, placement: Placement) -> Keeper:
        """The program of a specification."""
        return cls(placement)

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {KEEP_RIP: self._keep}

    def _keep(self, registers: Registers) -> Block:
        vault = Vault(self.placement)
        registers.r13 += 1
        answers = yield (Write(vault.private(SECRET), vault.content(SECRET)),)
        return FAULTED if faulted(answers) else REST
