"""Registers of an IOMMU (AMD I/O virtualisation specification, chapter 3), of 64 bits each, by their offsets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

PARKED = (1 << 64) - 1
"""What firmware leaves in the base register of a log that is off, so that nobody aims it later."""


class Register(IntEnum):
    """Offsets. The B logs' places are recollected; no text at hand gives them."""

    DEVICE_TABLE_BASE = 0x00
    COMMAND_BASE = 0x08
    EVENT_BASE = 0x10
    CONTROL = 0x18
    COMPLETION_BASE = 0x20
    """Exclusion base before SNP: the first page that COMPLETION_WAIT may store to."""
    COMPLETION_LIMIT = 0x28
    EXTENDED_FEATURE = 0x30
    PPR_BASE = 0x38
    PPR_B_BASE = 0xF0
    EVENT_B_BASE = 0xF8
    EXTENDED_FEATURE_2 = 0x1A0
    COMMAND_HEAD = 0x2000
    COMMAND_TAIL = 0x2008
    EVENT_HEAD = 0x2010
    EVENT_TAIL = 0x2018
    STATUS = 0x2020


MMIO_BASE = 0xFD0_0000_0000
"""Where the host finds them: above the memory of every product. On a real board ACPI's IVRS says it."""
MMIO_BYTES = 0x4000

# CONTROL.
IOMMU_ENABLE = 1 << 0
EVENT_LOG_ENABLE = 1 << 2
COMMAND_ENABLE = 1 << 12
PPR_LOG_ENABLE = 1 << 13

# EXTENDED_FEATURE.
SNP_SUPPORTED = 1 << 63

# EXTENDED_FEATURE_2.
TIO_SUPPORTED = 1 << 1
"""SEV-TIO; Linux calls it SNPIO."""

# STATUS.
EVENT_OVERFLOW = 1 << 0
COMPLETION_INTERRUPT = 1 << 2
EVENT_LOG_RUNS = 1 << 3
COMMANDS_RUN = 1 << 4
WRITE_ONE_TO_CLEAR = EVENT_OVERFLOW | COMPLETION_INTERRUPT

_ADDRESS = (1 << 52) - (1 << 12)
_TABLE_SIZE = (1 << 9) - 1
_RING_LENGTH = 0xF << 56
POINTER = (1 << 19) - (1 << 4)
"""Head and tail: an offset in whole records of 16 bytes."""

WRITABLE: Mapping[int, int] = {
    Register.DEVICE_TABLE_BASE: _ADDRESS | _TABLE_SIZE,
    Register.COMMAND_BASE: _ADDRESS | _RING_LENGTH,
    Register.EVENT_BASE: _ADDRESS | _RING_LENGTH,
    Register.CONTROL: IOMMU_ENABLE | EVENT_LOG_ENABLE | COMMAND_ENABLE | PPR_LOG_ENABLE,
    Register.COMPLETION_BASE: _ADDRESS,
    Register.COMPLETION_LIMIT: _ADDRESS,
    Register.PPR_BASE: _ADDRESS | _RING_LENGTH,
    Register.PPR_B_BASE: _ADDRESS | _RING_LENGTH,
    Register.EVENT_B_BASE: _ADDRESS | _RING_LENGTH,
    Register.COMMAND_HEAD: POINTER,
    Register.COMMAND_TAIL: POINTER,
    Register.EVENT_HEAD: POINTER,
    Register.EVENT_TAIL: POINTER,
    Register.STATUS: WRITE_ONE_TO_CLEAR,
}
"""Bits that software may change. Others stay as they are, so a base is never anything but a page's address."""

LOCKED_BY_SNP = frozenset({
    Register.DEVICE_TABLE_BASE, Register.COMMAND_BASE, Register.EVENT_BASE, Register.COMPLETION_BASE,
    Register.COMPLETION_LIMIT, Register.PPR_BASE, Register.PPR_B_BASE, Register.EVENT_B_BASE,
})  # fmt: skip
"""Stores to these are ignored from SNP_INIT on (section 2.12.2.1, as Linux tells of kernels started after a crash)."""

CONTROL_LOCKED_BY_SNP = IOMMU_ENABLE
"""Of CONTROL only this: rings may still be stopped and started."""

_SHORTEST_RING, _LONGEST_RING = 8, 15


@dataclass(frozen=True, slots=True)
class Ring:
    """A buffer of 16-byte records: where it begins, and its length, a power of two."""

    base: int
    length_bytes: int


def ring_of(register: int) -> Ring:
    """The buffer that a base register describes: 256 records for lengths below 8, which are reserved."""
    return Ring(register & _ADDRESS, 16 << max(_SHORTEST_RING, register >> 56 & 0xF))


def ring_register(base: int, length_bytes: int) -> int:
    """A base register for a buffer. Raises ValueError for one that no register can describe."""
    bits = (length_bytes // 16).bit_length() - 1
    if base & ~_ADDRESS or length_bytes != 16 << bits or not _SHORTEST_RING <= bits <= _LONGEST_RING:
        raise ValueError(f"ring: expected 4 KiB to 512 KiB at a page, got {length_bytes} bytes at {base:#x}")
    return base | bits << 56


def table_entries(register: int) -> int:
    """Entries of the device table that a base register describes: 128 for each 4 KiB."""
    return ((register & _TABLE_SIZE) + 1) * 128


def table_base(register: int) -> int:
    """Address of the device table, with whatever C-bit it carries."""
    return register & _ADDRESS


def table_register(base: int, pages: int) -> int:
    """A base register for a device table of 1 to 512 pages. Raises ValueError for another."""
    if base & ~_ADDRESS or not 1 <= pages <= _TABLE_SIZE + 1:
        raise ValueError(f"device table: expected 1 to 512 pages at a page, got {pages} at {base:#x}")
    return base | pages - 1
