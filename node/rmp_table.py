"""The RMP's entries: bytes in the host's DRAM, and the only truth about who owns a page.

Large regular stretches that nobody has looked at are held as runs of entries
which differ by an advancing GPA. Whoever reads or writes their bytes in DRAM, by
whatever route, has them written out first; from then on the bytes are what
counts, decoded anew at each check. So are regions of 2 MiB with so many runs that
bytes are smaller. What is in no run is as DRAM has it where nobody wrote: zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from node.dram import CHUNK_BYTES, Dram, Words
from node.extent_map import ExtentMap
from node.rmp_entry import (
    ASID,
    ASID_SHIFT,
    ASSIGNED,
    ENTRY_BYTES,
    HIGHEST_ASID,
    LOCK,
    PAGE_SIZE,
    SUBPAGE_COUNT,
    SUBPAGE_SHIFT,
    decoded,
    encoded,
)
from node.rmp_layout import BOOKKEEPING_BYTES, COUNTERS, RmpLayout
from node.rmp_memory import RmpMemory, WordCipher
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

LARGE_PAGES = LARGE_PAGE_BYTES // PAGE_BYTES
BLOCK_BYTES = LARGE_PAGES * ENTRY_BYTES
"""Bytes of the entries of 2 MiB: a block."""

MOST_RUNS = 48
"""In one block: with more, its 8 KiB of bytes are the smaller form."""

FEW_RUNS = 1024
"""In the whole table: so many cost less than it would take to look into bytes."""

_FEW = 4
_COUNTER_FULL = (1 << 64) - 1
SLICE_BLOCKS = 128
"""Blocks worked on at once: 1 MiB of entries, which stays in the cache."""

DEFAULT_ENTRY = RmpEntry()

Blocks = NDArray[np.uint64]
"""Entries as (block, page in it, word)."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run of entries, by the first one's; with None its bytes in DRAM say what they are."""

    entry: RmpEntry | None

    def advanced(self, distance: int) -> Self:
        entry = self.entry
        if not distance or entry is None or not entry.asid:
            return self
        return type(self)(replace(entry, gpa=entry.gpa + distance * PAGE_BYTES))


IN_DRAM = Run(None)

Changed = Callable[[int, int], None]
"""Told the memory [SPA, end) whose entries an instruction or firmware changes: cores hold verdicts on it."""

LARGE = ASSIGNED | PAGE_SIZE
"""Bits of a first entry that speaks for its whole block."""


class RmpTable:
    """Entries by page number. ``count_skips_first`` is a switch of ``RmpSwitches``.

    The table lies in DRAM through ``cipher``, its entries through ``form`` if there is one, which then
    holds the cipher too.

    The per-ASID counters of the bookkeeping are held the same way. A counter never
    leaves its 64 bits, whatever was done to it or to the entries behind its back.
    """

    def __init__(
        self,
        dram: Dram,
        layout: RmpLayout,
        *,
        count_skips_first: bool,
        cipher: WordCipher | None = None,
        form: WordCipher | None = None,
    ) -> None:
        self.layout = layout
        self.runs: ExtentMap[Run] = ExtentMap()
        self._dram = dram
        self._memory = RmpMemory(dram, form or cipher)
        self._books = RmpMemory(dram, cipher)
        self._first_counted = 1 if count_skips_first else 0
        self._counters: dict[int, int] = {}
        self._counters_in_dram = False
        self._any_in_dram = False
        self.changed: Changed | None = None
        if layout.segment_pages:
            fill = None if cipher is None else cipher.encrypt
            dram.lay(layout.base + BOOKKEEPING_BYTES, layout.segment_table(), fill)
        for spa, length in layout.ranges():
            dram.keep(spa, length, self._touched)

    def __len__(self) -> int:
        """Number of runs held."""
        return len(self.runs)

    def entry(self, page: int) -> RmpEntry:
        """The effective entry of a page; the hypervisor's own for a page that is not covered."""
        found = self.runs.find(page)
        if found is None:
            return DEFAULT_ENTRY
        entry = found[2].advanced(page - found[0]).entry
        return self._decoded(page) if entry is None else entry

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, int, RmpEntry | None]]:
        """[start, end) as (from, to, entry at from); None where bytes in DRAM say it."""
        for first, stop, run in self.runs.pieces(start, end):
            yield first, stop, DEFAULT_ENTRY if run is None else run.entry

    def decoded_pieces(self, start: int, end: int) -> Iterator[tuple[int, int, RmpEntry]]:
        """[start, end) as (from, to, entry at from), entry by entry where bytes say it.

        What was handed out may be replaced before the next is asked for.
        """
        for first, stop, entry in list(self.pieces(start, end)):
            if entry is not None:
                yield first, stop, entry
                continue
            at = first
            while at < stop:
                here = self._decoded(at)
                after = min(stop, (at // LARGE_PAGES + 1) * LARGE_PAGES) if here.large else at + 1
                yield at, after, here
                at = after

    def put(self, start: int, end: int, entry: RmpEntry) -> None:
        """Replace the entries of [start, end) by one and those that follow from it; 2 MiB entries fill blocks.

        Counters are left alone: who changes owners counts.
        """
        if self.changed is not None:
            self.changed(start * PAGE_BYTES, end * PAGE_BYTES)
        run = None if entry == DEFAULT_ENTRY else Run(entry)
        if not self._any_in_dram:
            self.runs.put(start, end, run)
        else:
            for first, stop, old in list(self.runs.pieces(start, end)):
                if old is IN_DRAM:
                    self._write(first, stop, replace(entry, gpa=_gpa_at(entry, first - start)))
                else:
                    self.runs.put(first, stop, run and run.advanced(first - start))
        if end - start < LARGE_PAGES and len(self.runs) > FEW_RUNS:
            block = start // LARGE_PAGES * LARGE_PAGES
            if self.runs.count(block, block + LARGE_PAGES) > MOST_RUNS:
                self._write_out(block, block + LARGE_PAGES)

    def clear(self) -> None:
        """Zero every entry and counter."""
        if self.changed is not None:
            self.changed(0, max(array.first_page + array.pages for array in self.layout.arrays) * PAGE_BYTES)
        self._counters.clear()
        # Nothing is written out under what is about to go.
        self._counters_in_dram = True
        for array in self.layout.arrays:
            self.runs.put(array.first_page, array.first_page + array.pages, IN_DRAM)
        for array in self.layout.arrays:
            self._dram.release(array.spa, array.end - array.spa)
        self._dram.release(self.layout.base, COUNTERS * 8)
        self.runs.clear()
        self._counters_in_dram = self._any_in_dram = False
        self._see_routes()

    def _see_routes(self) -> None:
        """Where the table's own addresses lead to other cells, or to none, only what is read there counts."""
        if not self._dram.has_routes:
            return
        for array in self.layout.arrays:
            if self._dram.leads_away(array.spa, array.end - array.spa):
                self._any_in_dram = True
                self.runs.put(array.first_page, array.first_page + array.pages, IN_DRAM)
        self._counters_in_dram = self._dram.leads_away(self.layout.base, COUNTERS * 8)

    # Counters.

    def pages_of_asid(self, asid: int) -> int:
        """An ASID's counter of 4 KiB pages."""
        if not self._counters_in_dram:
            return self._counters.get(asid, 0)
        return self._books.word(self.layout.base + asid * 8)

    def count(self, asid: int, pages: int) -> None:
        """Add to an ASID's counter; ASID 0 has none."""
        if not asid or not pages:
            return
        now = min(max(0, self.pages_of_asid(asid) + pages), _COUNTER_FULL)
        if self._counters_in_dram:
            self._books.set_word(self.layout.base + asid * 8, now)
        elif now:
            self._counters[asid] = now
        else:
            self._counters.pop(asid, None)

    def count_changes(self, before: Words, after: Words, changed: NDArray[np.bool_], pages: int) -> None:
        """Count owners that changed, from the low words of entries; each stands for ``pages``."""
        owners = HIGHEST_ASID + 1
        total = np.zeros(owners, np.int64)
        for words, sign in ((before, -pages), (after, pages)):
            owned = words[changed & (words & ASSIGNED != 0)]
            total += sign * np.bincount(((owned & ASID) >> ASID_SHIFT).astype(np.int64), minlength=owners)
        for asid in np.flatnonzero(total).tolist():
            self.count(asid, int(total[asid]))

    # Bytes.

    def blocks(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """[start, end), whose entries are bytes, in whole blocks or parts of one, as (from, to, SPA of the block)."""
        while start < end:
            block = start // LARGE_PAGES * LARGE_PAGES
            stop = min(end, block + LARGE_PAGES)
            if start == block and end >= block + LARGE_PAGES:
                stop = min(end // LARGE_PAGES * LARGE_PAGES, block + SLICE_BLOCKS * LARGE_PAGES)
            array = self.layout.array_of(block)
            assert array is not None, f"page {start:#x}: expected to be covered"
            spa = array.spa + (block - array.first_page) * ENTRY_BYTES
            # A chunk's end cuts no block: arrays begin at whole ones.
            room = (CHUNK_BYTES - spa % CHUNK_BYTES) // BLOCK_BYTES * LARGE_PAGES
            stop = min(stop, array.first_page + array.pages, block + room)
            yield start, stop, spa
            start = stop

    def read_blocks(self, start: int, end: int, spa: int) -> Blocks:
        """Entries of a part that ``blocks`` gave, whole blocks, to look at."""
        return self._memory.words(spa, _blocks_of(start, end) * BLOCK_BYTES).reshape(-1, LARGE_PAGES, 2)

    def writable_blocks(self, start: int, end: int, spa: int) -> Blocks:
        """The same to write to, and to hand to ``store_blocks`` then."""
        return self._memory.writable_words(spa, _blocks_of(start, end) * BLOCK_BYTES).reshape(-1, LARGE_PAGES, 2)

    def store_blocks(self, blocks: Blocks, spa: int) -> None:
        """Have what was changed in writable blocks in DRAM."""
        self._memory.store(spa, blocks)

    def counted(self, blocks: Blocks) -> Words:
        """For each block how many of the pages that SUBPAGE_COUNT counts are assigned."""
        total: Words = (blocks[:, self._first_counted :, 0] & ASSIGNED).sum(axis=1, dtype=np.uint64)
        return total

    def region_in_use(self, page: int) -> bool:
        """Whether any page of the 2 MiB around a covered page is assigned, as its first entry says."""
        block = page // LARGE_PAGES * LARGE_PAGES
        for first, _, entry in self.pieces(block, block + LARGE_PAGES):
            if entry is None:
                return self.words_at(first)[0] & (ASSIGNED | SUBPAGE_COUNT) != 0
            if entry.assigned:
                return True
        return False

    def first_assigned(self, start: int, end: int) -> int | None:
        """The first assigned page of [start, end), whose entries are bytes."""
        if end - start <= _FEW:
            return next((page for page in range(start, end) if self._decoded(page).assigned), None)
        for first, stop, spa in self.blocks(start, end):
            low = self.read_blocks(first, stop, spa)[:, :, 0]
            assigned = (low & ASSIGNED != 0) | (low[:, :1] & LARGE == LARGE)
            offset = first % LARGE_PAGES
            found = np.flatnonzero(assigned.reshape(-1)[offset : offset + stop - first])
            if len(found):
                return first + int(found[0])
        return None

    def is_locked(self, page: int) -> bool:
        """Whether a covered page's entry has LOCK set; no instruction leaves it so."""
        found = self.runs.find(page)
        return found is not None and found[2] is IN_DRAM and self.words_at(page)[0] & LOCK != 0

    def words_at(self, page: int) -> tuple[int, int]:
        """The two words of a covered page's own slot."""
        low, high = self._memory.words(self.layout.entry_spa(page), ENTRY_BYTES).tolist()
        return low, high

    def _decoded(self, page: int) -> RmpEntry:
        offset = page % LARGE_PAGES
        low, high = self.words_at(page - offset)
        if low & LARGE == LARGE:
            return decoded(low, high, large=True, offset=offset)
        return decoded(*(self.words_at(page) if offset else (low, high)), large=False)

    def _write(self, start: int, end: int, entry: RmpEntry) -> None:
        """Write entries as bytes, where bytes are what counts."""
        for first, stop, spa in self.blocks(start, end):
            blocks = self.writable_blocks(first, stop, spa)
            here = replace(entry, gpa=_gpa_at(entry, first - start))
            if entry.large:
                _fill(blocks, 0, here, stop - first)
            else:
                first_low = blocks[:, 0, 0]
                small = first_low & LARGE != LARGE
                uncounted = np.where(small, ((first_low & SUBPAGE_COUNT) >> SUBPAGE_SHIFT) - self.counted(blocks), 0)
                first_low &= ~np.uint64(PAGE_SIZE)
                _fill(blocks, first % LARGE_PAGES, here, stop - first)
                set_counts(blocks, uncounted + self.counted(blocks))
            self.store_blocks(blocks, spa)

    def _touched(self, spa: int, length: int) -> None:
        """Somebody is about to read or write the table's bytes."""
        for first, stop in self.layout.pages_at(spa, length):
            block, end = first // LARGE_PAGES * LARGE_PAGES, -(-stop // LARGE_PAGES) * LARGE_PAGES
            found = self.runs.find(block)
            if found is None or found[2].entry is not None or found[1] < end:
                self._write_out(block, end)
        if spa < self.layout.base + COUNTERS * 8 and spa + length > self.layout.base and not self._counters_in_dram:
            self._counters_in_dram = True
            counters = np.zeros(COUNTERS, np.uint64)
            for asid, pages in self._counters.items():
                counters[asid] = pages
            self._counters.clear()
            self._books.make(self.layout.base, counters)

    def _write_out(self, start: int, end: int) -> None:
        """Make bytes of whole blocks that are held as runs."""
        runs: ExtentMap[Run] = ExtentMap()
        wanted: set[int] = set()
        for first, stop, run in list(self.runs.pieces(start, end)):
            runs.put(first, stop, run)
            # Zeros are what lies there where nobody wrote, unless they lie there encrypted.
            if run is not IN_DRAM and (run is not None or self._memory.encrypted):
                wanted.update(_slices(first, stop))
        self._any_in_dram = True
        self.runs.put(start, end, IN_DRAM)
        for block in sorted(wanted):
            for first, stop, spa in self.blocks(max(start, block), min(end, block + SLICE_BLOCKS * LARGE_PAGES)):
                self._render(runs, first, stop, spa)

    def _render(self, runs: ExtentMap[Run], start: int, end: int, spa: int) -> None:
        """Write whole blocks of runs as bytes; blocks that lie there already are left alone."""
        blocks = np.zeros((_blocks_of(start, end), LARGE_PAGES, 2), np.uint64)
        there = np.zeros(len(blocks), np.bool_)
        for first, stop, run in runs.pieces(start, end):
            number, offset = divmod(first - start, LARGE_PAGES)
            if run is IN_DRAM:
                there[number : _blocks_of(start, stop)] = True
            elif run is not None and run.entry is not None:
                _fill(blocks[number : _blocks_of(start, stop)], offset, run.entry, stop - first)
        set_counts(blocks, np.where(blocks[:, 0, 0] & PAGE_SIZE == 0, self.counted(blocks), 0))
        if not self._memory.encrypted:
            there |= ~blocks.any(axis=(1, 2))
        for number in np.flatnonzero(~there).tolist():
            self._memory.make(spa + number * BLOCK_BYTES, blocks[number].reshape(-1))


def _blocks_of(start: int, end: int) -> int:
    return -(-end // LARGE_PAGES) - start // LARGE_PAGES


def _slices(start: int, end: int) -> range:
    size = SLICE_BLOCKS * LARGE_PAGES
    return range(start // size * size, end, size)


def set_counts(blocks: Blocks, counts: Words) -> None:
    """Set SUBPAGE_COUNT of each block, as much of it as fits."""
    blocks[:, 0, 0] = blocks[:, 0, 0] & ~np.uint64(SUBPAGE_COUNT) | counts << SUBPAGE_SHIFT & SUBPAGE_COUNT


def _gpa_at(entry: RmpEntry, distance: int) -> int:
    return entry.gpa + distance * PAGE_BYTES if entry.asid else entry.gpa


def _fill(blocks: Blocks, offset: int, entry: RmpEntry, pages: int) -> None:
    """Set ``pages`` entries of adjacent blocks from the ``offset``-th on; of a 2 MiB entry only the first slot."""
    low, high = encoded(entry)
    step = PAGE_BYTES if entry.asid else 0
    if entry.large:
        blocks[:] = 0
        blocks[:, 0, 0] = np.uint64(low) + np.arange(len(blocks), dtype=np.uint64) * np.uint64(step * LARGE_PAGES)
        blocks[:, 0, 1] = high
        return
    slots = blocks.reshape(-1, 2)[offset : offset + pages]
    slots[:, 0] = np.uint64(low) + np.arange(pages, dtype=np.uint64) * np.uint64(step)
    slots[:, 1] = high
