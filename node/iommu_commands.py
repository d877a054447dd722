"""Commands that the host leaves in an IOMMU's command buffer (section 2.4): 16 bytes each, parsed into what to do."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum

COMMAND_BYTES = 16
_COMMAND = struct.Struct("<IIQ")


class CommandCode(IntEnum):
    """Bits 63:60 of a command."""

    COMPLETION_WAIT = 1
    INVALIDATE_DEVTAB_ENTRY = 2
    INVALIDATE_IOMMU_PAGES = 3
    INVALIDATE_IOTLB_PAGES = 4
    INVALIDATE_INTERRUPT_TABLE = 5
    PREFETCH_IOMMU_PAGES = 6
    COMPLETE_PPR_REQUEST = 7
    INVALIDATE_IOMMU_ALL = 8


@dataclass(frozen=True, slots=True)
class CompletionWait:
    """Everything before it is done; then store ``data`` at ``store``, if not None, and say so in the status."""

    store: int | None
    data: int
    interrupt: bool


@dataclass(frozen=True, slots=True)
class InvalidateDevice:
    """Forget a device table entry."""

    device: int


@dataclass(frozen=True, slots=True)
class InvalidatePages:
    """Forget a domain's translations of [start, end)."""

    domain: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class InvalidateAll:
    """Forget everything."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """A command about what this IOMMU does not keep: interrupt tables, and translations inside of devices."""


Command = CompletionWait | InvalidateDevice | InvalidatePages | InvalidateAll | Nothing

_STORE, _INTERRUPT = 1 << 0, 1 << 1
_STORE_LOW, _STORE_HIGH = 0xFFFF_FFF8, 0xF_FFFF
_SIZE, _GUEST = 1 << 0, 1 << 2
_PAGE = 1 << 12


def parse_command(data: bytes) -> Command | None:
    """A command of the buffer; None for one that is ILLEGAL_COMMAND: no such code, or a reserved bit set."""
    low, high, second = _COMMAND.unpack(data)
    parse = _PARSERS.get(high >> 28)
    return None if parse is None else parse(low, high & 0xFFF_FFFF, second)


def completion_wait(store: int | None = None, data: int = 0) -> bytes:
    """COMPLETION_WAIT that stores ``data``, or only waits."""
    at = 0 if store is None else store | _STORE
    return _pack(CommandCode.COMPLETION_WAIT, at & 0xFFFF_FFFF, at >> 32, data)


def invalidate_device(device: int) -> bytes:
    """INVALIDATE_DEVTAB_ENTRY."""
    return _pack(CommandCode.INVALIDATE_DEVTAB_ENTRY, device)


def invalidate_domain(domain: int) -> bytes:
    """INVALIDATE_IOMMU_PAGES for all that a domain has."""
    return _pack(CommandCode.INVALIDATE_IOMMU_PAGES, 0, domain, (1 << 63) - _PAGE | _SIZE)


def invalidate_all() -> bytes:
    """INVALIDATE_IOMMU_ALL."""
    return _pack(CommandCode.INVALIDATE_IOMMU_ALL)


def _pack(code: CommandCode, low: int = 0, high: int = 0, second: int = 0) -> bytes:
    return _COMMAND.pack(low, high | code << 28, second)


def _completion_wait(low: int, high: int, second: int) -> Command | None:
    if high & ~_STORE_HIGH:
        return None
    store = (high << 32 | low & _STORE_LOW) if low & _STORE else None
    return CompletionWait(store, second, bool(low & _INTERRUPT))


def _invalidate_device(low: int, high: int, second: int) -> Command | None:
    return None if low >> 16 or high or second else InvalidateDevice(low)


def _invalidate_pages(low: int, high: int, second: int) -> Command | None:
    # PASIDs and guest translation are not reported, so their fields are reserved.
    if low or high >> 16 or second & (0xFF8 | _GUEST):
        return None
    at = second & ~(_PAGE - 1)
    if not second & _SIZE:
        return InvalidatePages(high, at, at + _PAGE)
    # The lowest zero among the address bits says how large the range is: 8 KiB if it is the first.
    size = (~(at >> 12) & (at >> 12) + 1) << 13
    start = at & ~(size - 1)
    return InvalidatePages(high, start, start + size)


def _invalidate_all(low: int, high: int, second: int) -> Command | None:
    return None if low or high or second else InvalidateAll()


def _about_devices(*_: int) -> Command | None:
    return Nothing()


_PARSERS: Mapping[int, Callable[[int, int, int], Command | None]] = {
    CommandCode.COMPLETION_WAIT: _completion_wait,
    CommandCode.INVALIDATE_DEVTAB_ENTRY: _invalidate_device,
    CommandCode.INVALIDATE_IOMMU_PAGES: _invalidate_pages,
    CommandCode.INVALIDATE_IOTLB_PAGES: _about_devices,
    CommandCode.INVALIDATE_INTERRUPT_TABLE: _about_devices,
    CommandCode.INVALIDATE_IOMMU_ALL: _invalidate_all,
}
"""PREFETCH and COMPLETE_PPR belong to features that are not reported: illegal."""
