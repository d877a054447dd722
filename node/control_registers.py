"""The registers of a vCPU that say how it translates addresses: loaded from its save area, changed by MOV and WRMSR.

Sources: APM volume 2, 3.1 (CR0, CR3, CR4, EFER, and which bits go together), 5.1 (paging modes),
14.6 (the order in which long mode comes on), 15.36.8 and table B-4 (SEV_FEATURES, VIRTUAL_TOM).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from node.page_table_entry import ADDRESS_BITS, LEGACY, LONG, LONG_57, PAE, PagingMode
from node.vmsa import SevFeature, read_field

CR0_PROTECTED = 1 << 0
CR0_WRITE_PROTECT = 1 << 16
CR0_PAGING = 1 << 31
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_GLOBAL = 1 << 7
CR4_LA57 = 1 << 12
CR4_SMEP = 1 << 20
CR4_SMAP = 1 << 21
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NXE = 1 << 11
RFLAGS_TF = 1 << 8
RFLAGS_IF = 1 << 9
RFLAGS_NT = 1 << 14
RFLAGS_RF = 1 << 16
RFLAGS_VM = 1 << 17
RFLAGS_AC = 1 << 18
_RFLAGS_ONE = 1 << 1
_RFLAGS = 0x3F_7FD5
"""The flags there are (APM volume 2, 3.1.4)."""

WRITABLE_REGISTERS = ("CR0", "CR3", "CR4", "EFER")
"""What ``WriteControl`` may name."""


class InvalidControl(Exception):
    """#GP: bits that must not be set, or not together."""


@dataclass(frozen=True, slots=True)
class ControlRegisters:
    """Fields of a save area, by their names there."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    rflags: int
    cpl: int
    sev_features: int
    virtual_tom: int

    @classmethod
    def of(cls, page: bytes) -> Self:
        """As VMRUN loads them."""
        names = ("CR0", "CR3", "CR4", "EFER", "RFLAGS", "CPL", "SEV_FEATURES", "VIRTUAL_TOM")
        return cls(*[read_field(page, name) for name in names])

    @property
    def mode(self) -> PagingMode | None:
        """How addresses are translated; None while paging is off."""
        if not self.cr0 & CR0_PAGING:
            return None
        if self.efer & EFER_LMA:
            return LONG_57 if self.cr4 & CR4_LA57 else LONG
        return PAE if self.cr4 & CR4_PAE else LEGACY

    @property
    def vtom(self) -> int | None:
        """Below it addresses are private and above it shared; None where entries say which."""
        return self.virtual_tom if self.sev_features & SevFeature.VTOM else None

    def written(self, name: str, value: int) -> ControlRegisters:
        """After a store to one of ``WRITABLE_REGISTERS``. Raises InvalidControl."""
        if not 0 <= value < 1 << 64:
            raise InvalidControl(name)
        return _WRITES[name](self, value)

    def flags_written(self, value: int) -> ControlRegisters:
        """After a store to RFLAGS: reserved bits stay as they always are. Raises InvalidControl."""
        if not 0 <= value < 1 << 64:
            raise InvalidControl("RFLAGS")
        return replace(self, rflags=value & _RFLAGS | _RFLAGS_ONE)

    def _cr0_written(self, value: int) -> ControlRegisters:
        if value >> 32 or (value & CR0_PAGING and not value & CR0_PROTECTED):
            raise InvalidControl("CR0")
        efer = self.efer & ~EFER_LMA
        if value & CR0_PAGING and self.efer & EFER_LME:
            if not self.cr4 & CR4_PAE:
                raise InvalidControl("CR0")
            efer |= EFER_LMA
        return replace(self, cr0=value, efer=efer)

    def _cr3_written(self, value: int) -> ControlRegisters:
        # Of bit 63 and the C-bit, no more than the processor that executes knows.
        if self.efer & EFER_LMA and value >> ADDRESS_BITS:
            raise InvalidControl("CR3")
        return replace(self, cr3=value)

    def _cr4_written(self, value: int) -> ControlRegisters:
        changed = self.cr4 ^ value
        if value >> 32 or (self.efer & EFER_LMA and changed & (CR4_PAE | CR4_LA57)):
            raise InvalidControl("CR4")
        return replace(self, cr4=value)

    def _efer_written(self, value: int) -> ControlRegisters:
        if value >> 32 or (self.cr0 & CR0_PAGING and (self.efer ^ value) & EFER_LME):
            raise InvalidControl("EFER")
        # LMA is the processor's own.
        return replace(self, efer=value & ~EFER_LMA | self.efer & EFER_LMA)


_WRITES = {
    "CR0": ControlRegisters._cr0_written,  # noqa: SLF001
    "CR3": ControlRegisters._cr3_written,  # noqa: SLF001
    "CR4": ControlRegisters._cr4_written,  # noqa: SLF001
    "EFER": ControlRegisters._efer_written,  # noqa: SLF001
}
