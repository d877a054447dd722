"""The guest's own start-up code: it shares the device pool, accepts its memory and enters the program.

A vCPU comes out of reset at the RIP of its save area. Blocks are named by RIP
like a program's, so a pause in the middle of start-up loses nothing. RBX counts
the ranges done so far.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from node.generation import Generation
from node.guest_memory_map import GuestMemoryMap, Range
from node.operations import PageStateChange, PValidate, PValidateResult, Shutdown
from node.phase_cost import RMP_CHECKED
from node.program import Block, Registers

BOOT_FAILED = 3
"""Shutdown code of a guest whose memory could not be shared or accepted."""

ACCEPT_RIP = 0x1000
"""Kernel code lies below every program's entry."""

RANGES_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """Start-up of one vCPU, rebuilt whole from the VM's specification.

    ``reset_rip`` is the RIP in the vCPU's initial save area; ``launched`` the
    GPAs that firmware measured at launch and thereby validated.
    """

    generation: Generation
    memory: GuestMemoryMap
    launched: tuple[int, ...]
    vcpu: int
    reset_rip: int
    program_entry: int

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        first = self._share_pool if self.vcpu == 0 else self._enter_program
        return {self.reset_rip: first, ACCEPT_RIP: self._accept}

    def _enter_program(self, registers: Registers) -> Block:
        yield ()
        registers.reset(self.program_entry)
        return None

    def _share_pool(self, registers: Registers) -> Block:
        if self.generation not in RMP_CHECKED:
            yield ()
            registers.reset(self.program_entry)
            return None
        pool = self.memory.shared
        (answer,) = yield (PageStateChange(pool.gpa, pool.length, shared=True),)
        if answer != 0:
            return Shutdown(BOOT_FAILED)
        registers.rbx = 0
        registers.rip = ACCEPT_RIP
        return None

    def _accept(self, registers: Registers) -> Block:
        ranges: tuple[Range, ...] = tuple(self.memory.private_ranges(self.launched))
        some = ranges[registers.rbx : registers.rbx + RANGES_AT_ONCE]
        answers = yield tuple(PValidate(part.gpa, part.length, part.large) for part in some)
        # A page that was valid before the guest asked is the mark of a replay.
        if any(not isinstance(answer, PValidateResult) or answer.code or answer.unchanged for answer in answers):
            return Shutdown(BOOT_FAILED)
        registers.rbx += len(some)
        if registers.rbx == len(ranges):
            registers.reset(self.program_entry)
        return None
