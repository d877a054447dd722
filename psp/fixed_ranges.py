"""Range lists: memory that stays the host's and can be given to nobody (HV-Fixed).

SNP_INIT_EX takes one of memory that is nobody's yet, SNP_PAGE_SET_STATE one of pages that were lent to firmware. What
the second checks is that of the firmware which AMD has published (AMD-ASPFW, sev_rmp.c).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from psp.firmware_pages import Ranges
from psp.host_memory import HostMemory
from psp.page_state import PageState, page_state
from psp.status import PspError, Status
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry, SystemBus

_HEAD, _RANGE = struct.Struct("<II"), struct.Struct("<QII")
MOST_RANGES = (PAGE_BYTES - _HEAD.size) // _RANGE.size
"""As many as fit one page; no text names a bound."""


def fixed_ranges(bus: SystemBus, memory: HostMemory, address: int, taken: Ranges) -> Ranges:
    """The list at an address, as far as there is memory and firmware has not ``taken`` it for itself.

    Addresses above memory are left out, because they have no entries: hosts list holes for MMIO too. Raises
    PspError: INVALID_ADDRESS where no list can be, INVALID_PARAM for one that is malformed, or
    memory without RMP entries. Both are the laboratory's choice.
    """
    found: list[tuple[int, int]] = []
    for base, listed_end in _listed(memory, address, PAGE_BYTES):
        end = min(listed_end, bus.dram_bytes // PAGE_BYTES * PAGE_BYTES)
        if base < end:
            if not (bus.rmp_covers(base) and bus.rmp_covers(end - PAGE_BYTES)):
                raise PspError(Status.INVALID_PARAM)
            found += _without(base, end, taken)
    return tuple(found)


def lent_ranges(bus: SystemBus, memory: HostMemory, address: int) -> Ranges:
    """The list at an address, each page of it once, without the RMP's own; every page is lent to firmware, and unused.

    Ranges begin at borders of 2 MiB. Raises PspError: INVALID_PARAM for a malformed list, INVALID_ADDRESS where
    there is no memory or no RMP entry, INVALID_PAGE_STATE for a page in another state than Firmware, or of 2 MiB.
    """
    parts = [
        part
        for base, end in _listed(memory, address, LARGE_PAGE_BYTES)
        for part in _without(base, end, memory.pages.rmp)
    ]
    found: list[tuple[int, int]] = []
    for spa, length in sorted(parts):
        first = max(spa, sum(found[-1]) if found else 0)
        if first < spa + length:
            found.append((first, spa + length - first))
    for spa, length in found:
        if spa + length > bus.dram_bytes or not bus.rmp_covers(spa, length // PAGE_BYTES):
            raise PspError(Status.INVALID_ADDRESS)
    for spa, length in found:
        if not all(_is_lent(entry) for entry in _entries(bus, spa, length)) or memory.pages.in_use(spa, length):
            raise PspError(Status.INVALID_PAGE_STATE)
    return tuple(found)


def _listed(memory: HostMemory, address: int, alignment: int) -> Iterator[tuple[int, int]]:
    """The ranges of a list as (first byte, end). Raises PspError for a malformed one."""
    count, reserved = _HEAD.unpack(memory.read(address, _HEAD.size))
    if reserved or count > MOST_RANGES:
        raise PspError(Status.INVALID_PARAM)
    listed = memory.read(address + _HEAD.size, count * _RANGE.size)
    for base, pages, rest in _RANGE.iter_unpack(listed):
        if rest or base % alignment:
            raise PspError(Status.INVALID_PARAM)
        yield base, base + pages * PAGE_BYTES


def _entries(bus: SystemBus, spa: int, length: int) -> Iterator[RmpEntry]:
    """The entries of a range; of 2 MiB that are all alike one."""
    at, end = spa, spa + length
    while at < end:
        pages = min(end, (at // LARGE_PAGE_BYTES + 1) * LARGE_PAGE_BYTES) - at
        alike = bus.rmp_run(at, pages // PAGE_BYTES)
        if alike is not None:
            yield alike
        else:
            yield from (bus.rmp_entry(page) for page in range(at, at + pages, PAGE_BYTES))
        at += pages


def _is_lent(entry: RmpEntry) -> bool:
    return page_state(entry) is PageState.FIRMWARE and not entry.large


def _without(base: int, end: int, taken: Ranges) -> list[tuple[int, int]]:
    """What is left of [base, end), as (SPA, length) in whole pages."""
    parts = []
    for spa, length in sorted(taken):
        first, stop = spa // PAGE_BYTES * PAGE_BYTES, -(-(spa + length) // PAGE_BYTES) * PAGE_BYTES
        if first < end and base < stop:
            if base < first:
                parts.append((base, first - base))
            base = stop
    return parts + ([(base, end - base)] if base < end else [])
