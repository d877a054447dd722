"""The range list of SNP_INIT_EX: memory that stays the host's and can be given to nobody (HV-Fixed)."""

from __future__ import annotations

import struct

from psp.firmware_pages import Ranges
from psp.host_memory import HostMemory
from psp.status import PspError, Status
from psp.system_bus import PAGE_BYTES, SystemBus

_HEAD, _RANGE = struct.Struct("<II"), struct.Struct("<QII")
MOST_RANGES = (PAGE_BYTES - _HEAD.size) // _RANGE.size
"""As many as fit one page; no text names a bound."""


def fixed_ranges(bus: SystemBus, memory: HostMemory, address: int, taken: Ranges) -> Ranges:
    """The list at an address, as far as there is memory and firmware has not ``taken`` it for itself.

    Addresses above memory are left out, because they have no entries: hosts list holes for MMIO too. Raises
    PspError: INVALID_ADDRESS where no list can be, INVALID_PARAM for one that is malformed, or
    memory without RMP entries. Both are the laboratory's choice.
    """
    count, reserved = _HEAD.unpack(memory.read(address, _HEAD.size))
    if reserved or count > MOST_RANGES:
        raise PspError(Status.INVALID_PARAM)
    listed = memory.read(address + _HEAD.size, count * _RANGE.size)
    found: list[tuple[int, int]] = []
    for base, pages, rest in _RANGE.iter_unpack(listed):
        if rest or base % PAGE_BYTES:
            raise PspError(Status.INVALID_PARAM)
        end = min(base + pages * PAGE_BYTES, bus.dram_bytes // PAGE_BYTES * PAGE_BYTES)
        if base < end:
            if not (bus.rmp_covers(base) and bus.rmp_covers(end - PAGE_BYTES)):
                raise PspError(Status.INVALID_PARAM)
            found += _without(base, end, taken)
    return tuple(found)


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
