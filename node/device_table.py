"""Entries of the device table, 32 bytes for each requester (AMD I/O virtualisation specification, section 2.2.2)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

ENTRY_BYTES = 32
REQUESTERS = 1 << 16

_VALID, _TRANSLATES = 1 << 0, 1 << 1
_MODE_SHIFT, _MODE = 9, 0b111
_ROOT = (1 << 52) - (1 << 12)
_READ, _WRITE = 1 << 61, 1 << 62
_RESERVED = 0b11_1110 << 1 | 0b11 << 7 | ((1 << 61) - (1 << 52)) | 1 << 63
"""Reserved bits, and those of features that this IOMMU does not report: HAD, PPR, guest translation."""
_LONGEST_WALK = 6


@dataclass(frozen=True, slots=True)
class DeviceTableEntry:
    """What the IOMMU does with one requester's accesses.

    ``levels`` is Mode: 0 passes addresses untranslated. ``root`` is the host page
    table's address and may carry the C-bit. Interrupt remapping is not modelled.
    """

    valid: bool = True
    translates: bool = True
    levels: int = 0
    root: int = 0
    read: bool = True
    write: bool = True
    domain: int = 0
    reserved: bool = False
    """A reserved bit is set, or that of a feature which is not there."""

    @property
    def level_is_legal(self) -> bool:
        """Mode 7 is reserved."""
        return self.levels <= _LONGEST_WALK

    def pack(self) -> bytes:
        """The entry's bytes."""
        low = (
            self.valid * _VALID | self.translates * _TRANSLATES | self.levels << _MODE_SHIFT | self.root
            | self.read * _READ | self.write * _WRITE
        )  # fmt: skip
        return struct.pack("<4Q", low, self.domain, 0, 0)

    @classmethod
    def parse(cls, data: bytes) -> DeviceTableEntry:
        """Whatever lies in the table."""
        low, second, _, _ = struct.unpack("<4Q", data)
        return cls(
            valid=bool(low & _VALID),
            translates=bool(low & _TRANSLATES),
            levels=low >> _MODE_SHIFT & _MODE,
            root=low & _ROOT,
            read=bool(low & _READ),
            write=bool(low & _WRITE),
            domain=second & 0xFFFF,
            reserved=bool(low & _RESERVED),
        )
