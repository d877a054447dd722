"""RMPs without a host around them, for tests."""

from __future__ import annotations

from node.dram import Dram
from node.rmp import ReverseMapTable
from node.rmp_layout import BOOKKEEPING_BYTES, EntryArray, RmpLayout
from node.rmp_switches import RmpSwitches
from psp.system_bus import PAGE_BYTES

GIB = 1 << 30
SEGMENT_PAGES = 16 * GIB // PAGE_BYTES


def rmp_of(covered_bytes: int, switches: RmpSwitches | None = None) -> ReverseMapTable:
    """A flat RMP of so many bytes, right after them."""
    return flat_rmp(covered_bytes, switches)[0]


def flat_rmp(covered_bytes: int, switches: RmpSwitches | None = None) -> tuple[ReverseMapTable, Dram]:
    """The same with its memory."""
    end = covered_bytes + BOOKKEEPING_BYTES + covered_bytes // PAGE_BYTES * 16
    dram = Dram(end)
    return ReverseMapTable(dram, RmpLayout.flat(covered_bytes, end - 1), switches), dram


def segmented_rmp(switches: RmpSwitches | None = None) -> tuple[ReverseMapTable, Dram]:
    """Two segments of 16 GiB, the second's array before the first's; the second covers 1 GiB."""
    base = 32 * GIB
    first, second = base + (2 << 20) + (8 << 20), base + (2 << 20)
    dram = Dram(first + SEGMENT_PAGES * 16)
    arrays = (EntryArray(0, SEGMENT_PAGES, first), EntryArray(SEGMENT_PAGES, GIB // PAGE_BYTES, second))
    return ReverseMapTable(dram, RmpLayout(base, arrays, SEGMENT_PAGES), switches), dram
