"""An operating system above an SVSM that does what the hypervisor tells it.

Each round it looks into its shared inbox for the address of a page, has the SVSM validate it, and reads it. It
uses nothing but its own rights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from node.guest_svsm import SvsmUntrusted, calling_area, svsm_call
from node.laboratory_firmware import SECTIONS
from node.operations import Read, Sleep, Write
from node.ovmf import SectionType
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from node.svsm_call import BUFFER, CoreCall, PageEntry, Protocol, page_list
from workloads.attacks.vault import INBOX, PAGE_BYTES
from workloads.block_outcome import FAULTED

ROUND_RIP = 0x40_0000
REST = Sleep(1_000_000_000)
SECRETS_GPA = next(one.gpa for one in SECTIONS if one.section_type is SectionType.SECRETS)
SPARE_GPA = 0x0091_0000
"""A page of 4 KiB that it gives up: its kernel has no use for it."""


@dataclass(frozen=True, slots=True)
class Colluder:
    """R13 counts the rounds."""

    placement: Placement

    entry = ROUND_RIP
    demands: tuple[Demand, ...] = ()

    @classmethod
    def build(cls, _: ProgramSpec, placement: Placement) -> Colluder:
        """The program, which has no parameters."""
        return cls(placement)

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {ROUND_RIP: self._round}

    def _round(self, registers: Registers) -> Block:
        registers.r13 += 1
        (order,) = yield (Read(self.placement.shared_gpa + INBOX * PAGE_BYTES, 8, private=False),)
        page = int.from_bytes(order, "little") if isinstance(order, bytes) else 0
        if not page:
            return REST
        caa = yield from calling_area(SECRETS_GPA)
        yield (Write(caa + BUFFER, page_list([PageEntry(page)])),)
        try:
            yield from svsm_call(registers, caa, Protocol.CORE, CoreCall.PVALIDATE, caa + BUFFER)
        except SvsmUntrusted:
            return FAULTED
        yield (Read(page, PAGE_BYTES),)
        return REST
