"""The victim of a launch that was tampered with: a guest that runs its firmware, round by round.

No instruction set is interpreted: to run is to load from the page where the code lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from node.operations import Read
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from workloads.attacks.vault import REST
from workloads.block_outcome import FAULTED, faulted

FIRMWARE_GPA, FIRMWARE_BYTES = "firmware_gpa", "firmware_bytes"
"""Its parameters."""
RUN_RIP = 0x40_0000


@dataclass(frozen=True, slots=True)
class Booted:
    """R13 counts the rounds."""

    gpa: int
    length: int

    entry = RUN_RIP
    demands: tuple[Demand, ...] = ()

    @classmethod
    def build(cls, spec: ProgramSpec, _: Placement) -> Booted:
        """The program of a specification."""
        told = dict(spec.parameters)
        return cls(int(told[FIRMWARE_GPA]), int(told[FIRMWARE_BYTES]))

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {RUN_RIP: self._run}

    def _run(self, registers: Registers) -> Block:
        # First it rests: who is to check how it was launched does so before it runs.
        if registers.r13:
            answers = yield (Read(self.gpa, self.length),)
            if faulted(answers):
                return FAULTED
        registers.r13 += 1
        return REST
