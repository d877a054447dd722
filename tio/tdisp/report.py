"""The device interface report: what a TDI may do, and where its memory is.

Source: PCI Express base specification 6.x, 11.3.11 (table 11-16). Pages are of 4 KiB; their numbers have the
reporting offset of the lock added, so that no guest learns host addresses.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag

PAGE_SHIFT = 12
RANGE = struct.Struct("<QIHH")
_HEAD = struct.Struct("<HxxHHII")
_LENGTH = struct.Struct("<I")
_PAGE_NUMBERS = 1 << 64 - PAGE_SHIFT
MOST_RANGES = 64


class InterfaceInfo(IntFlag):
    """INTERFACE_INFO."""

    NO_FW_UPDATE = 1 << 0
    DMA_WITHOUT_PASID = 1 << 1
    DMA_WITH_PASID = 1 << 2
    ATS = 1 << 3
    PRS = 1 << 4


class RangeAttributes(IntFlag):
    """Attributes of an MMIO range."""

    MSIX_TABLE = 1 << 0
    MSIX_PBA = 1 << 1
    IS_NON_TEE_MEM = 1 << 2
    IS_MEM_ATTR_UPDATABLE = 1 << 3


class ReportError(ValueError):
    """Bytes that are no interface report."""

    def __init__(self, field: str, expected: str, found: str) -> None:
        super().__init__(f"interface report {field}: expected {expected}, found {found}")
        self.field = field


@dataclass(frozen=True, slots=True)
class MmioRange:
    """``pages`` of 4 KiB from page number ``first_page`` on; ``range_id`` is the BAR."""

    first_page: int
    pages: int
    attributes: int
    range_id: int

    def pack(self) -> bytes:
        """16 bytes."""
        return RANGE.pack(self.first_page, self.pages, self.attributes, self.range_id)

    def moved(self, offset_bytes: int) -> MmioRange:
        """The range with a reporting offset added."""
        page = (self.first_page + (offset_bytes >> PAGE_SHIFT)) % _PAGE_NUMBERS
        return MmioRange(page, self.pages, self.attributes, self.range_id)


@dataclass(frozen=True, slots=True)
class InterfaceReport:
    """What a TDI reports while it is locked. MSI-X and TPH control read 0 unless the table is locked."""

    info: int
    ranges: tuple[MmioRange, ...]
    msix_control: int = 0
    lnr_control: int = 0
    tph_control: int = 0
    specific: bytes = b""

    def pack(self) -> bytes:
        """The report's bytes."""
        head = _HEAD.pack(self.info, self.msix_control, self.lnr_control, self.tph_control, len(self.ranges))
        return head + b"".join([one.pack() for one in self.ranges]) + _LENGTH.pack(len(self.specific)) + self.specific


def parse_report(data: bytes) -> InterfaceReport:
    """The report that ``data`` is. Raises ReportError: its reader trusts nobody who carried it."""
    if len(data) < _HEAD.size + _LENGTH.size:
        raise ReportError("length", f"at least {_HEAD.size + _LENGTH.size} bytes", str(len(data)))
    info, msix, lnr, tph, count = _HEAD.unpack_from(data)
    if count > MOST_RANGES:
        raise ReportError("MMIO_RANGE_COUNT", f"at most {MOST_RANGES}", str(count))
    end = _HEAD.size + count * RANGE.size
    if len(data) < end + _LENGTH.size:
        raise ReportError("length", f"{count} ranges", f"{len(data)} bytes")
    ranges = tuple(MmioRange(*RANGE.unpack_from(data, _HEAD.size + at * RANGE.size)) for at in range(count))
    (length,) = _LENGTH.unpack_from(data, end)
    specific = data[end + _LENGTH.size :]
    if len(specific) != length:
        raise ReportError("DEVICE_SPECIFIC_INFO_LEN", f"{len(specific)} as received", str(length))
    return InterfaceReport(info, ranges, msix, lnr, tph, bytes(specific))
