"""Entries of the secure device table, 64 bytes for each TDI: what a guest lets a trusted device do.

The guest writes some of it through the firmware, which adds the rest; the hypervisor neither reads nor writes any.
Places of fields beyond those a guest writes were not at hand. Source: ``spec/tio/iommu.md``, section 6.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

ENTRY_BYTES = 64
VTOM_BYTES = 2 << 20
"""The unit of vTOM."""
ALL_PRIVATE = 0x7FFF_FFFF
"""vTOM's rest value: everything is below it."""
_WORDS = struct.Struct("<8Q")
_VALID, _READ, _WRITE = 1 << 0, 1 << 61, 1 << 62
_VMPL_SHIFT, _VMPL = 49, 0b11
_VTOM_ENABLE, _VTOM_SHIFT = 1 << 0, 1
_GUESTS = {0: _VALID | _READ | _WRITE, 3: _VMPL << _VMPL_SHIFT, 5: _VTOM_ENABLE | ALL_PRIVATE << _VTOM_SHIFT}
"""What a guest may set, by quad word."""


class ReservedBits(ValueError):
    """A guest set bits that are not its own."""


@dataclass(frozen=True, slots=True)
class SecureDeviceEntry:
    """The guest's part. ``vtom`` counts 2 MiB; addresses from there on are shared, if ``vtom_enabled``."""

    valid: bool = False
    read: bool = False
    write: bool = False
    vmpl: int = 0
    vtom_enabled: bool = False
    vtom: int = ALL_PRIVATE

    def is_private(self, gpa: int) -> bool:
        """Whether an address is the guest's private memory to its device."""
        return not self.vtom_enabled or self.vtom == ALL_PRIVATE or gpa < self.vtom * VTOM_BYTES

    def pack(self) -> bytes:
        """The entry's bytes as a guest gives them."""
        words = [0] * 8
        words[0] = self.valid * _VALID | self.read * _READ | self.write * _WRITE
        words[3] = self.vmpl << _VMPL_SHIFT
        words[5] = self.vtom_enabled * _VTOM_ENABLE | self.vtom << _VTOM_SHIFT
        return _WORDS.pack(*words)

    @classmethod
    def parse(cls, data: bytes) -> SecureDeviceEntry:
        """What a guest gave, 64 bytes. Raises ReservedBits."""
        words = _WORDS.unpack(data)
        if any(word & ~_GUESTS.get(number, 0) for number, word in enumerate(words)):
            raise ReservedBits
        low, vtom = words[0], words[5]
        return cls(
            bool(low & _VALID),
            bool(low & _READ),
            bool(low & _WRITE),
            words[3] >> _VMPL_SHIFT & _VMPL,
            bool(vtom & _VTOM_ENABLE),
            vtom >> _VTOM_SHIFT,
        )


NOBODYS = SecureDeviceEntry()
"""Of a TDI whose guest has not written any: all trusted DMA faults."""
