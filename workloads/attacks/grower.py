"""The victim that takes more memory: a guest whose hypervisor may add a page while it runs, and says where.

It keeps a book in a page of its own, and reads it back each round. When its inbox names an address, it accepts the page
there and begins a new book in it. Nothing tells it whether that page is new but PVALIDATE: one that is in use
already was valid before. ``CHECKS_CARRY`` is the check of its kernel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from node.ghcb_msr import LinuxReason, ReasonSet
from node.guest_ghcb import termination
from node.kernel_settings import KernelSettings
from node.operations import PValidate, Read, Shutdown, Write
from node.page_acceptance import is_fresh
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from node.vc_handler import UNHANDLED
from workloads.attacks.vault import CONTENT_BYTES, INBOX, PAGE_BYTES, REST, VALUE
from workloads.block_outcome import FAULTED, faulted

OPEN_RIP, ROUND_RIP = 0x40_0000, 0x40_1000
CHECKS_CARRY = "checks_carry"
_ADDRESS_BYTES = 8


@dataclass(frozen=True, slots=True)
class Grower:
    """R13 counts the rounds, R12 holds the address that it was told last."""

    placement: Placement
    settings: KernelSettings

    entry = OPEN_RIP
    demands: tuple[Demand, ...] = ()

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> Grower:
        """The program of a specification."""
        return cls(placement, KernelSettings(checks_carry=bool(dict(spec.parameters)[CHECKS_CARRY])))

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {OPEN_RIP: self._open, ROUND_RIP: self._round}

    @property
    def book(self) -> int:
        """GPA of its book."""
        return self.placement.base_gpa + VALUE * PAGE_BYTES

    @property
    def entries(self) -> bytes:
        """What stands in the book, always."""
        name = f"{self.placement.seed} {self.placement.vm} keeps a book"
        return hashlib.shake_128(name.encode()).digest(CONTENT_BYTES)

    def _open(self, registers: Registers) -> Block:
        if faulted((yield (Write(self.book, self.entries),))):
            return FAULTED
        registers.rip = ROUND_RIP
        return REST

    def _round(self, registers: Registers) -> Block:
        inbox = self.placement.shared_gpa + INBOX * PAGE_BYTES
        answers = yield (Read(self.book, CONTENT_BYTES), Read(inbox, _ADDRESS_BYTES, private=False))
        if faulted(answers):
            return FAULTED
        assert isinstance(answers[1], bytes)
        told = int.from_bytes(answers[1], "little")
        registers.r13 += 1
        if told in (0, registers.r12) or told % PAGE_BYTES:
            return REST
        registers.r12 = told
        (found,) = yield (PValidate(told, PAGE_BYTES, large=False),)
        if not is_fresh(found, self.settings):
            yield (termination(ReasonSet.LINUX, LinuxReason.PVALIDATE),)
            return Shutdown(UNHANDLED)
        answers = yield (Write(told, bytes(CONTENT_BYTES)),)
        return FAULTED if faulted(answers) else REST
