"""What an IOMMU tells the host: records of 16 bytes (AMD I/O virtualisation specification, section 2.5)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

EVENT_BYTES = 16
_RECORD = struct.Struct("<IIQ")


class EventCode(IntEnum):
    """Bits 63:60 of a record."""

    ILLEGAL_DEV_TABLE_ENTRY = 0x1
    IO_PAGE_FAULT = 0x2
    DEV_TAB_HW_ERROR = 0x3
    PAGE_TAB_HW_ERROR = 0x4
    ILLEGAL_COMMAND = 0x5
    COMMAND_HW_ERROR = 0x6
    IOTLB_INV_TIMEOUT = 0x7
    INVALID_DEVICE_REQUEST = 0x8
    INVALID_PPR_REQUEST = 0x9
    EVENT_COUNTER_ZERO = 0xA
    GUEST_EVENT_FAULT = 0xB
    VIOMMU_HW_ERROR = 0xC
    RMP_PAGE_FAULT = 0xD
    RMP_HW_ERROR = 0xE


FLAG_PRESENT = 1 << 4
"""PR: an entry was there, and something of it forbade the access."""
FLAG_WRITE = 1 << 5
"""RW: a write. An RMP_PAGE_FAULT of a real host had flags 020."""
FLAG_PERMISSION = 1 << 6
"""PE: read or write not permitted."""
FLAG_RESERVED = 1 << 7
"""RZ: a reserved bit was set, or a level cannot be."""


@dataclass(frozen=True, slots=True)
class IommuEvent:
    """One record. ``tag`` is a DomainID, or the VM guard tag of an RMP event; ``rmp_flags`` are those of the latter."""

    code: EventCode
    device: int = 0
    flags: int = 0
    tag: int = 0
    address: int = 0
    rmp_flags: int = 0

    def pack(self) -> bytes:
        """The record's bytes."""
        return _RECORD.pack(
            self.device | self.rmp_flags << 16, self.tag | self.flags << 16 | self.code << 28, self.address
        )

    @classmethod
    def parse(cls, data: bytes) -> IommuEvent:
        """A record out of a log. Raises ValueError for a code that none has."""
        low, high, address = _RECORD.unpack(data)
        return cls(EventCode(high >> 28), low & 0xFFFF, high >> 16 & 0xFFF, high & 0xFFFF, address, low >> 16 & 0xFF)
