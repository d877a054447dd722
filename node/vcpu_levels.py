"""The VMPLs of one vCPU in time: what waits at one while another runs.

Software above VMPL0 asks for VMPL0 in the middle of a block, which goes on when it comes back: what its exit's
batch had still to do is done then. Software at VMPL0 begins a block anew whenever it runs again, at the RIP it set
before, so nothing of it waits; between two blocks of the program above, all there is of either is in save areas
and in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from node import operations as op

if TYPE_CHECKING:
    from node.program import Registers


@dataclass(frozen=True, slots=True)
class Waiting:
    """A block that has left: the registers it holds, what it was answered, and the rest of its batch."""

    registers: Registers
    answers: tuple[op.Answer, ...]
    rest: tuple[op.GuestOperation, ...]


@dataclass(slots=True)
class VcpuLevels:
    """What waits, by VMPL."""

    waiting: dict[int, Waiting] = field(default_factory=dict)

    @property
    def program(self) -> Registers | None:
        """Registers of a block that waits for its SVSM."""
        return next((one.registers for one in self.waiting.values()), None)
