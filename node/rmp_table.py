"""The RMP's entries: bytes in the host's DRAM, and the only truth about who owns a page.

What nobody has looked at is held as runs of entries which differ by an advancing
GPA. Whoever reads or writes their bytes in DRAM, by whatever route, has them
written out first; from then on the bytes are what counts, decoded anew at each
check. What is in no run is as DRAM has it where nobody wrote: zero. Where runs are
short, instructions on ranges work on words that are made of them and put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from node.dram import CHUNK_BYTES, Dram, Words
from node.entry_runs import IN_DRAM, Columns, EntryRuns, Run
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

FEW_RUNS = 64
"""In a range: so many are gone through faster one by one."""
_SHORT_PAGES = 16
"""Of runs that are shorter on average words are made."""

_FEW = 4
_COUNTER_FULL = (1 << 64) - 1
SLICE_BLOCKS = 128
"""Blocks worked on at once: 1 MiB of entries, which stays in the cache."""

DEFAULT_ENTRY = RmpEntry()

Blocks = NDArray[np.uint64]
"""Entries as (block, page in it, word)."""


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
        self.runs = EntryRuns(max((one.first_page + one.pages for one in layout.arrays), default=0) + 1)
        self._dram = dram
        self._memory = RmpMemory(dram, form or cipher)
        self._books = RmpMemory(dram, cipher)
        self._first_counted = 1 if count_skips_first else 0
        self._counters: dict[int, int] = {}
        self._counters_in_dram = False
        self.any_in_dram = False
        """Whether any entry may be."""
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

    def bulk_pieces(self, start: int, end: int) -> Iterator[tuple[int, int, RmpEntry | None]]:
        """The same; None, too, where runs are so short that ``blocks`` of their words are less work."""
        runs, size = self.runs, SLICE_BLOCKS * LARGE_PAGES
        if runs.count(start, end) <= FEW_RUNS:
            yield from self.pieces(start, end)
            return
        for slice_ in range(start // size * size, end, size):
            first, stop = max(start, slice_), min(end, slice_ + size)
            short = runs.count(first, stop) * _SHORT_PAGES > stop - first
            if short and not (self.any_in_dram and (runs.columns(first, stop).lows == IN_DRAM.low).any()):
                yield first, stop, None
            else:
                yield from self.pieces(first, stop)

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
        run = None if not entry.assigned and entry == DEFAULT_ENTRY else Run.of(entry)
        if not self.any_in_dram:
            self.runs.put(start, end, run)
        else:
            for first, stop, old in list(self.runs.pieces(start, end)):
                if old == IN_DRAM:
                    self._write(first, stop, replace(entry, gpa=_gpa_at(entry, first - start)))
                else:
                    self.runs.put(first, stop, run and run.advanced(first - start))

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
        self._counters_in_dram = self.any_in_dram = False
        self._see_routes()

    def _see_routes(self) -> None:
        """Where the table's own addresses lead to other cells, or to none, only what is read there counts."""
        if not self._dram.has_routes:
            return
        for array in self.layout.arrays:
            if self._dram.leads_away(array.spa, array.end - array.spa):
                self.any_in_dram = True
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
        """[start, end), whose entries are bytes or short runs, in whole blocks or parts of one.

        As (from, to, SPA of the block).
        """
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
        if not self._is_in_dram(start):
            return self._rendered(start, end)
        return self._memory.words(spa, _blocks_of(start, end) * BLOCK_BYTES).reshape(-1, LARGE_PAGES, 2)

    def writable_blocks(self, start: int, end: int, spa: int) -> Blocks:
        """The same to write to, and to hand to ``store_blocks`` then."""
        if not self._is_in_dram(start):
            return self._rendered(start, end)
        return self._memory.writable_words(spa, _blocks_of(start, end) * BLOCK_BYTES).reshape(-1, LARGE_PAGES, 2)

    def store_blocks(self, blocks: Blocks, start: int, spa: int) -> None:
        """Have what was changed in writable blocks from page ``start`` on where it came from: in DRAM, or in runs."""
        if self._is_in_dram(start):
            self._memory.store(spa, blocks)
            return
        first = start // LARGE_PAGES * LARGE_PAGES
        self.runs.replace(first, first + len(blocks) * LARGE_PAGES, _runs_of(blocks, first))

    def _is_in_dram(self, page: int) -> bool:
        found = self.runs.find(page)
        return found is not None and found[2] == IN_DRAM

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
        return self._is_in_dram(page) and self.words_at(page)[0] & LOCK != 0

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
            self._memory.store(spa, blocks)

    def _touched(self, spa: int, length: int) -> None:
        """Somebody is about to read or write the table's bytes."""
        for first, stop in self.layout.pages_at(spa, length):
            block, end = first // LARGE_PAGES * LARGE_PAGES, -(-stop // LARGE_PAGES) * LARGE_PAGES
            found = self.runs.find(block)
            if found is None or found[2] != IN_DRAM or found[1] < end:
                self._write_out(block, end)
        if spa < self.layout.base + COUNTERS * 8 and spa + length > self.layout.base and not self._counters_in_dram:
            self._counters_in_dram = True
            counters = np.zeros(COUNTERS, np.uint64)
            for asid, pages in self._counters.items():
                counters[asid] = pages
            self._counters.clear()
            self._books.make(self.layout.base, counters)

    def _write_out(self, start: int, end: int) -> None:
        """Make bytes of whole blocks that are held as runs; blocks that lie there already are left alone."""
        self.any_in_dram = True
        for first, stop in self._to_render(start, end):
            for low, high, spa in self.blocks(first, stop):
                there = np.zeros(_blocks_of(low, high), np.bool_)
                for at, until, run in self.runs.pieces(low, high) if self._is_any_in_dram(low, high) else ():
                    if run == IN_DRAM:
                        there[(at - low) // LARGE_PAGES : (until - low) // LARGE_PAGES] = True
                blocks = self._rendered(low, high)
                self.runs.put(low, high, IN_DRAM)
                if not self._memory.encrypted:
                    there |= ~blocks.any(axis=(1, 2))
                for number in np.flatnonzero(~there).tolist():
                    self._memory.make(spa + number * BLOCK_BYTES, blocks[number].reshape(-1))
        self.runs.put(start, end, IN_DRAM)

    def _to_render(self, start: int, end: int) -> list[tuple[int, int]]:
        """Slices of a range in which runs are; all where zeros do not lie there as zeros, because of a cipher."""
        size = SLICE_BLOCKS * LARGE_PAGES
        borders = range(start // size * size, end, size)
        slices = [(max(start, first), min(end, first + size)) for first in borders]
        return slices if self._memory.encrypted else [one for one in slices if not self.runs.is_gap(*one)]

    def _is_any_in_dram(self, start: int, end: int) -> bool:
        return bool((self.runs.columns(start, end).lows == IN_DRAM.low).any())

    def _rendered(self, start: int, end: int) -> Blocks:
        """Words of the runs of whole blocks, or of one around a part of it; zeros for what lies in DRAM."""
        first = start // LARGE_PAGES * LARGE_PAGES
        count = _blocks_of(start, end)
        slots = np.zeros((count * LARGE_PAGES, 2), np.uint64)
        runs = self.runs.columns(first, first + count * LARGE_PAGES)
        if (runs.lows == IN_DRAM.low).any():
            held = runs.lows != IN_DRAM.low
            runs = Columns(*(one[held] for one in runs))
        lengths = (runs.ends - runs.starts).astype(np.int64)
        stops = np.cumsum(lengths)
        within = np.arange(int(stops[-1]) if len(stops) else 0) - np.repeat(stops - lengths, lengths)
        steps = np.where(runs.lows & ASID != 0, np.uint64(PAGE_BYTES), np.uint64(0))
        at = np.repeat(runs.starts.astype(np.int64) - first, lengths) + within
        slots[at, 0] = np.repeat(runs.lows, lengths) + np.repeat(steps, lengths) * within.astype(np.uint64)
        slots[at, 1] = np.repeat(runs.highs, lengths)
        blocks: Blocks = slots.reshape(-1, LARGE_PAGES, 2)
        large = blocks[:, 0, 0] & LARGE == LARGE
        blocks[large, 1:] = 0
        set_counts(blocks, np.where(large, 0, self.counted(blocks)))
        return blocks


def _blocks_of(start: int, end: int) -> int:
    return -(-end // LARGE_PAGES) - start // LARGE_PAGES


def _runs_of(blocks: Blocks, first: int) -> Columns:
    """The runs of blocks from page ``first`` on; spoils the blocks."""
    large = np.flatnonzero(blocks[:, 0, 0] & LARGE == LARGE)
    blocks[:, 0, 0] &= ~np.uint64(SUBPAGE_COUNT)
    if len(large):
        # A 2 MiB entry stands for its whole block.
        heads = blocks[large, :1]
        steps = np.where(heads[:, :, 0] & ASID != 0, np.uint64(PAGE_BYTES), np.uint64(0))
        blocks[large, :, 0] = heads[:, :, 0] + steps * np.arange(LARGE_PAGES, dtype=np.uint64)
        blocks[large, :, 1] = heads[:, :, 1]
    low, high = (np.ascontiguousarray(blocks[:, :, word]).reshape(-1) for word in (0, 1))
    used = (low | high) != 0
    follows = low[:-1] + np.where(low[:-1] & ASID != 0, np.uint64(PAGE_BYTES), np.uint64(0))
    joined = np.zeros(len(low) + 1, np.bool_)
    joined[1:-1] = used[1:] & (low[1:] == follows) & (high[1:] == high[:-1])
    starts, ends = np.flatnonzero(used & ~joined[:-1]), np.flatnonzero(used & ~joined[1:]) + 1
    return Columns(
        (starts + first).astype(np.uint64), (ends + first).astype(np.uint64), low[starts], high[starts]
    )


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
