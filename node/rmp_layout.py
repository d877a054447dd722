"""Where the RMP lies in memory: one flat array, or segments that a table names.

Flat: RMP_BASE (MSR C001_0132) and RMP_END (C001_0133) give the first and the last
byte; 16 KiB of bookkeeping, then 16 bytes for each 4 KiB page. Segmented (RMP_CFG,
C001_0136; Turin on): 16 KiB of bookkeeping, then the RMP segment table of 512 words,
each with the place and the reach of one segment's array. Cores cache what it says (CPUID
8000_0025 EBX[9:0]: for how many segments); when they read it again is not known. Here
they do when SNP_EN is set, so what is written there afterwards changes nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from node.rmp_entry import ENTRY_BYTES
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

BOOKKEEPING_BYTES = 16 << 10
COUNTERS = 2048
"""Per-ASID counters at the start of the bookkeeping, 64 bits each (AMD sev-tool)."""

SEGMENT_TABLE_BYTES = 4096
SEGMENTS = SEGMENT_TABLE_BYTES // 8
RMP_CFG_64_GIB = 0x2401
"""RMP_CFG as hosts have it: bit 0 enabled, bits 13:8 log2 of the segment size."""

_ADDRESS = (1 << 52) - (1 << 13)
_LOW_BITS = (1 << 13) - 1
_GIB = 1 << 30
_REACH = (1 << 20) - 1
_ARRAY_ADDRESS = (1 << 52) - (1 << 20)
_ARRAY_ALIGNMENT = 1 << 20
_GIB_PAGES = _GIB // PAGE_BYTES
_SMALLEST_SEGMENT, _LARGEST_SEGMENT = 30, 51


@dataclass(frozen=True, slots=True)
class EntryArray:
    """Entries of ``pages`` pages from ``first_page``, one after another from ``spa``."""

    first_page: int
    pages: int
    spa: int

    @property
    def end(self) -> int:
        """Address after the last entry."""
        return self.spa + self.pages * ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class RmpLayout:
    """Bookkeeping at ``base`` and arrays of entries, in order of the pages they cover.

    ``header_bytes`` is bookkeeping with the segment table. ``segment_pages`` is zero for a flat table.
    """

    base: int
    arrays: tuple[EntryArray, ...]
    segment_pages: int = 0

    @classmethod
    def flat(cls, rmp_base: int, rmp_end: int) -> RmpLayout:
        """The table that the two MSRs describe. Raises ValueError for one that holds no entry."""
        base, end = rmp_base & _ADDRESS, (rmp_end | _LOW_BITS) + 1
        pages = (end - base - BOOKKEEPING_BYTES) // ENTRY_BYTES
        if pages <= 0:
            raise ValueError(f"RMP_END: expected room for entries after {base:#x}, got {rmp_end:#x}")
        return cls(base, (EntryArray(0, pages, base + BOOKKEEPING_BYTES),))

    @classmethod
    def segmented(cls, rmp_base: int, rmp_cfg: int, segment_table: bytes) -> RmpLayout:
        """The table that RMP_CFG and the segment table describe. Raises ValueError naming what cannot be."""
        size_bits = rmp_cfg >> 8 & 0x3F
        if not rmp_cfg & 1 or not _SMALLEST_SEGMENT <= size_bits <= _LARGEST_SEGMENT:
            raise ValueError(f"RMP_CFG: expected segments of at least 1 GiB, enabled, got {rmp_cfg:#x}")
        segment_pages = (1 << size_bits) // PAGE_BYTES
        arrays = []
        for number, (word,) in enumerate(struct.iter_unpack("<Q", segment_table[:SEGMENT_TABLE_BYTES])):
            reach = word & _REACH
            if reach * _GIB_PAGES > segment_pages:
                raise ValueError(f"RMP segment {number}: expected at most a segment, got {reach} GiB")
            if reach:
                arrays.append(EntryArray(number * segment_pages, reach * _GIB_PAGES, word & _ARRAY_ADDRESS))
        return cls(rmp_base & _ADDRESS, tuple(arrays), segment_pages)

    @property
    def header_bytes(self) -> int:
        """Bytes at ``base`` before any entry."""
        return BOOKKEEPING_BYTES + (SEGMENT_TABLE_BYTES if self.segment_pages else 0)

    def segment_table(self) -> bytes:
        """The segment table of these arrays; empty for a flat table."""
        if not self.segment_pages:
            return b""
        words = [0] * SEGMENTS
        for array in self.arrays:
            words[array.first_page // self.segment_pages] = array.spa | array.pages // _GIB_PAGES
        return struct.pack(f"<{SEGMENTS}Q", *words)

    def ranges(self) -> tuple[tuple[int, int], ...]:
        """Every part of memory that the table takes, as (SPA, length)."""
        if not self.segment_pages:
            return ((self.base, self.arrays[0].end - self.base),)
        return ((self.base, self.header_bytes), *((one.spa, one.end - one.spa) for one in self.arrays))

    def array_of(self, page: int) -> EntryArray | None:
        """The array that has a page's entry; None for a page that is not covered."""
        for array in self.arrays:
            if array.first_page <= page < array.first_page + array.pages:
                return array
        return None

    def covers(self, first: int, stop: int) -> bool:
        """Whether each page of [first, stop) has an entry."""
        while first < stop:
            array = self.array_of(first)
            if array is None:
                return False
            first = array.first_page + array.pages
        return True

    def entry_spa(self, page: int) -> int:
        """Where a covered page's entry lies."""
        array = self.array_of(page)
        assert array is not None, f"page {page:#x}: expected to be covered"
        return array.spa + (page - array.first_page) * ENTRY_BYTES

    def stretches(self, first: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Covered pages cut where their entries do not follow each other, as (first page, stop, SPA of its entry)."""
        for array in self.arrays:
            low, high = max(first, array.first_page), min(stop, array.first_page + array.pages)
            if low < high:
                yield low, high, array.spa + (low - array.first_page) * ENTRY_BYTES

    def pages_at(self, spa: int, length: int) -> Iterator[tuple[int, int]]:
        """Pages whose entries a part of memory touches, as [first, stop)."""
        for array in self.arrays:
            low, high = max(spa, array.spa), min(spa + length, array.end)
            if low < high:
                first = array.first_page
                yield first + (low - array.spa) // ENTRY_BYTES, first - (array.spa - high) // ENTRY_BYTES


@lru_cache(maxsize=256)
def at_end_of_memory(memory_bytes: int, *, segmented: bool, mmio: tuple[int, int] = (0, 0)) -> RmpLayout:
    """Where a host's firmware reserves the table: at the end of memory, large enough to cover all of it.

    ``mmio`` is a window above memory that it covers too, as (SPA, length): a flat table reaches up to its end, a
    segmented one has segments for it. Raises ValueError for a window that meets memory, or needs more than there is.
    """
    first_mmio, end_mmio = mmio[0] // PAGE_BYTES, -(-sum(mmio) // PAGE_BYTES)
    pages = memory_bytes // PAGE_BYTES
    if mmio[1] and (first_mmio < pages or mmio[1] < 0):
        raise ValueError(f"MMIO: expected a window above memory, got one at {mmio[0]:#x}")
    if not segmented:
        covered = max(pages, end_mmio if mmio[1] else 0)
        size = -(-(BOOKKEEPING_BYTES + covered * ENTRY_BYTES) // LARGE_PAGE_BYTES) * LARGE_PAGE_BYTES
        return RmpLayout.flat(_place(memory_bytes - size), memory_bytes - 1)
    segment_pages = (1 << (RMP_CFG_64_GIB >> 8)) // PAGE_BYTES
    if end_mmio > SEGMENTS * segment_pages:
        raise ValueError(f"RMP: expected room for MMIO in {SEGMENTS} segments")
    ends = {first: min(first + segment_pages, pages) for first in range(0, pages, segment_pages)}
    for first in range(first_mmio // segment_pages * segment_pages, end_mmio if mmio[1] else 0, segment_pages):
        ends[first] = min(first + segment_pages, end_mmio)
    reaches = [(first, -(-(end - first) // _GIB_PAGES) * _GIB_PAGES) for first, end in ends.items()]
    at = memory_bytes
    arrays = []
    for first, covered in reversed(reaches):
        at -= -(-covered * ENTRY_BYTES // _ARRAY_ALIGNMENT) * _ARRAY_ALIGNMENT
        arrays.append(EntryArray(first, covered, at))
    base = (at - BOOKKEEPING_BYTES - SEGMENT_TABLE_BYTES) // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES
    return RmpLayout(_place(base), tuple(reversed(arrays)), segment_pages)


def _place(base: int) -> int:
    if base < 0:
        raise ValueError("RMP: expected room for it in memory")
    return base
