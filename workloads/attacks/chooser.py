"""The victim of side channels: each round it decides something, and branches by it.

It loads from one page or another by it, computes with it, tells nobody, stores nothing, and rests. R13 counts the
rounds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from node.operations import Arithmetic, Branch, IndirectBranch, Read, Sleep
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from workloads.attacks.vault import OTHER, OUTBOX, PAGE_BYTES, VALUE
from workloads.block_outcome import FAULTED, faulted

DECISIONS = 64
"""After which it begins anew."""
CHOOSE_RIP = 0x40_0000
SITE, CALLEE, GADGET = 0x40_0100, 0x40_0200, 0x40_0300
"""Where it jumps through a register and whereto, and code of its own that loads by its decision if it is run there."""
PROBE_BYTES = 1024
"""How far apart in the shared page the two addresses lie which that code may load."""
TIMES = 1 << 20
"""How often it computes with what it decided, spread over a register."""
_ONES = (1 << 64) - 1
REST = Sleep(1_000_000_000)


@dataclass(frozen=True, slots=True)
class Chooser:
    """The program, without parameters."""

    placement: Placement

    entry = CHOOSE_RIP
    demands: tuple[Demand, ...] = ()

    @classmethod
    def build(cls, _: ProgramSpec, placement: Placement) -> Chooser:
        """The program of a specification."""
        return cls(placement)

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {CHOOSE_RIP: self._choose}

    @property
    def decisions(self) -> list[int]:
        """What it decides, from its first round on."""
        name = f"{self.placement.seed} {self.placement.vm} choices"
        bits = int.from_bytes(hashlib.shake_128(name.encode()).digest(DECISIONS // 8), "little")
        return [bits >> number & 1 for number in range(DECISIONS)]

    def _choose(self, registers: Registers) -> Block:
        decision = self.decisions[registers.r13 % DECISIONS]
        registers.r13 += 1
        probe = self.placement.shared_gpa + OUTBOX * PAGE_BYTES + decision * PROBE_BYTES
        chosen = self.placement.base_gpa + (VALUE, OTHER)[decision] * PAGE_BYTES
        answers = yield (
            Branch(bool(decision)), IndirectBranch(SITE, CALLEE, ((GADGET, probe),)), Read(chosen, 1),
            Arithmetic(_ONES if decision else 0, TIMES),
        )  # fmt: skip
        return FAULTED if faulted(answers) else REST
