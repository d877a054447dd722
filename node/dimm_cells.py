"""The cells of a host's DIMMs: sparse, holding what the DIMMs would hold.

Memory is reserved in chunks of address space; the operating system backs a page
when someone writes it. Pages that nobody wrote read as zeros and cost nothing,
and a range inside a chunk moves as one array. Addresses are those of cells: the SPA
that reaches them unless ``node.dimm_routes`` leads elsewhere.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from node.extent_map import ExtentMap
from node.kept_ranges import KeptRanges, Touch
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

Octets = NDArray[np.uint8]
Words = NDArray[np.uint64]

CHUNK_BYTES = 64 << 20
WORD_BYTES = 8

_REGION_PAGES = LARGE_PAGE_BYTES // PAGE_BYTES
_WHOLE_REGION = (1 << _REGION_PAGES) - 1


class MachineCheck(Exception):
    """No memory answers at the address."""

    def __init__(self, spa: int, length: int) -> None:
        super().__init__(f"no memory at {spa:#x}, {length} bytes")
        self.spa = spa
        self.length = length


Fill = Callable[[Words, int, Words], None]
"""Makes what DRAM holds of what was written: (words, SPA, where to). ``MemoryCipher.encrypt`` is one.

Two are the same if they are equal: a bound method is made anew each time.
"""


Watcher = Callable[[int], None]
"""Told the number of a page that is about to change."""


class _Laid(NamedTuple):
    """A page that was written whole, as the bytes it was written from; made real when somebody looks.

    A firmware image lies in every guest's memory, encrypted with another key in
    each: until someone looks, all of them are one object and a key.
    """

    source: bytes | None
    """None for zeros: memory that was cleared through a key."""
    page: int
    fill: Fill | None
    until_flush: bool = False
    """Made real at ``settle`` at the latest: the source is nobody's but a guest's."""

    def advanced(self, distance: int) -> _Laid:
        return self if not distance or self.source is None else self._replace(page=self.page + distance)

    def octets(self, at: int, length: int) -> bytes:
        """Bytes of the source, ``at`` bytes after its page."""
        if self.source is None:
            return bytes(length)
        at += self.page * PAGE_BYTES
        return self.source[at : at + length]


class _Chunk:
    __slots__ = ("_huge", "begin", "memory", "octets", "words")

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, CHUNK_BYTES + LARGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # A huge page behind one written page would cost 2 MiB.
        self.memory.madvise(mmap.MADV_NOHUGEPAGE)
        octets: Octets = np.frombuffer(self.memory, np.uint8)
        self.begin = -octets.ctypes.data % LARGE_PAGE_BYTES
        self._huge = False
        """Where the chunk begins in ``memory``, from which bytes are copied in half the time that an array takes."""
        self.octets = octets[self.begin : self.begin + CHUNK_BYTES]
        self.words: Words = self.octets.view(np.uint64)

    def expect_whole(self, at: int) -> None:
        """All of a 2 MiB region is about to be written: of one page it is half as far away."""
        self.memory.madvise(mmap.MADV_HUGEPAGE, self.begin + at, LARGE_PAGE_BYTES)
        self._huge = True

    def release(self, at: int, length: int) -> None:
        """Give pages back, which read as zeros from now on."""
        self.memory.madvise(mmap.MADV_DONTNEED, self.begin + at, length)
        if self._huge:
            self.memory.madvise(mmap.MADV_NOHUGEPAGE, self.begin + at, length)


class DimmCells:
    """``size_bytes`` of memory from address zero."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._plain_end = size_bytes
        """Up to here nobody is told of accesses."""
        self._kept = KeptRanges(size_bytes)
        self._chunks: dict[int, _Chunk] = {}
        self._written: dict[int, int] = {}
        """For each 2 MiB region: bit n is set when someone wrote its page n. No region without a bit."""
        self._laid: ExtentMap[_Laid] = ExtentMap()
        self._unsettled = False
        self._watched: dict[int, Watcher] = {}

    @property
    def resident_pages(self) -> int:
        """Pages that someone wrote."""
        return sum(map(int.bit_count, self._written.values()))

    @property
    def resident_bytes(self) -> int:
        """Bytes of the pages that someone wrote."""
        return self.resident_pages * PAGE_BYTES

    def lay(self, spa: int, source: bytes, fill: Fill | None = None, *, until_flush: bool = False) -> None:
        """Write whole pages, made real when somebody looks, or by ``settle``. Raises MachineCheck outside of memory."""
        self._lay(spa, len(source), tuple.__new__(_Laid, (source, 0, fill, until_flush)))
        if until_flush:
            self._unsettled = True

    def settle(self) -> None:
        """Make real what was laid until a flush."""
        if self._unsettled:
            for start, end, laid in list(self._laid.runs()):
                if laid.until_flush:
                    self._make_real(start * PAGE_BYTES, (end - start) * PAGE_BYTES)
            self._unsettled = False

    def clear(self, spa: int, length: int, fill: Fill) -> None:
        """Write zeros through ``fill`` into whole pages, which count as never written until somebody looks.

        Raises MachineCheck outside of memory.
        """
        self._lay(spa, length, _Laid(None, 0, fill))

    def _lay(self, spa: int, length: int, laid: _Laid) -> None:
        if spa < 0 or spa + length > self._plain_end:
            self._check_far(spa, length)
        if self._watched:
            self._tell_watchers(spa, length)
        self._laid.put(spa // PAGE_BYTES, (spa + length) // PAGE_BYTES, laid)
        if self._written and self._any_written(spa, length):
            self._erase(spa, spa + length)

    def refill(self, spa: int, length: int, was: Fill | None, fill: Fill) -> list[tuple[int, int]]:
        """Have pages that were laid through ``was`` laid through ``fill`` instead; the others, as (SPA, length).

        Raises MachineCheck outside of memory.
        """
        self._check(spa, length)
        self._tell_watchers(spa, length)
        others = []
        for start, end, laid in list(self._laid.pieces(spa // PAGE_BYTES, (spa + length) // PAGE_BYTES)):
            if laid is not None and laid.source is not None and laid.fill == was:
                self._laid.put(start, end, _Laid(laid.source, laid.page, fill))
            else:
                others.append((start * PAGE_BYTES, (end - start) * PAGE_BYTES))
        return others

    def laid(self, spa: int, length: int, fill: Fill | None) -> bytes | None:
        """What a range was written from, if all of it lies in pages that nobody made real and went through ``fill``."""
        found = self._laid.find(spa // PAGE_BYTES)
        if found is None or spa + length > found[1] * PAGE_BYTES or found[2].fill != fill:
            return None
        return found[2].octets(spa - found[0] * PAGE_BYTES, length)

    def source(self, spa: int, length: int) -> tuple[bytes, int] | None:
        """As ``laid`` without a fill, as the whole object and where in it: for whoever remembers what is made of it."""
        found = self._laid.find(spa // PAGE_BYTES)
        if found is None or spa + length > found[1] * PAGE_BYTES:
            return None
        start, _, laid = found
        if laid.fill is not None or laid.source is None:
            return None
        if spa + length > self._plain_end and self._kept.meets(spa, length):
            return None
        return laid.source, laid.page * PAGE_BYTES + spa - start * PAGE_BYTES

    def keep(self, spa: int, length: int, touch: Touch) -> None:
        """Leave a range to an owner who may hold what lies there in another form until someone looks or writes.

        ``touch`` hears of every access first, its own too, and writes what it holds. Raises MachineCheck.
        """
        self._check(spa, length)
        if self._watched:
            self._tell_watchers(spa, length)
        self._kept.keep(spa, length, touch)
        self._plain_end = self._kept.first

    def keep_blank(self, spa: int, length: int, touch: Touch) -> bool:
        """``keep`` a range of whole pages of memory, if nobody has written there since it was cleared, or keeps it."""
        # As ``is_blank``, of memory in which mostly nothing was laid.
        if self._laid.starts and not self._laid.is_gap(spa // PAGE_BYTES, (spa + length) // PAGE_BYTES):
            return False
        if self._written and self._any_written(spa, length):
            return False
        if self._watched:
            if self._kept.meets(spa, length):
                return False
            self._tell_watchers(spa, length)
        kept = self._kept.keep_apart(spa, length, touch)
        self._plain_end = self._kept.first
        return kept

    def let_go(self, spa: int) -> None:
        """No longer tell the owner of the kept range that begins here."""
        self._kept.let_go(spa)
        self._plain_end = self._kept.first

    def let_go_all(self, starts: Iterable[int]) -> None:
        """The same of several ranges."""
        for spa in starts:
            self._kept.let_go(spa)
        self._plain_end = self._kept.first

    def watch(self, page: int, tell: Watcher) -> bool:
        """Tell of the next change to a page, once. False for one that is kept, whose bytes are not what counts."""
        if self._kept.covers(page * PAGE_BYTES):
            return False
        self._watched[page] = tell
        return True

    def is_blank(self, spa: int, length: int) -> bool:
        """Whether a range of whole pages is as it was when memory was cleared: nobody has written there since."""
        if self._laid.starts and not self._laid.is_gap(spa // PAGE_BYTES, (spa + length) // PAGE_BYTES):
            return False
        return not (self._written and self._any_written(spa, length))

    def touch(self, spa: int, length: int) -> None:
        """Tell the owners of kept ranges of an access that is about to come. Raises MachineCheck."""
        self._check(spa, length)

    def _make_real(self, spa: int, length: int) -> None:
        """Fill the laid pages that a range touches."""
        first, last = spa // PAGE_BYTES, -(-(spa + length) // PAGE_BYTES)
        if self._laid.is_gap(first, last):
            return
        for start, end, laid in list(self._laid.pieces(first, last)):
            if laid is not None:
                self._laid.put(start, end, None)
                self._fill(start, laid.octets(0, (end - start) * PAGE_BYTES), laid.fill)

    def _fill(self, page: int, data: bytes, fill: Fill | None) -> None:
        spa, source = page * PAGE_BYTES, np.frombuffer(data, np.uint64)
        for at, size in self.pieces(spa, len(data)):
            words = source[(at - spa) // WORD_BYTES : (at - spa + size) // WORD_BYTES]
            if fill is None:
                self.writable_words(at, size)[:] = words
            else:
                fill(words, at, self.writable_words(at, size))

    def read(self, spa: int, length: int) -> bytes:
        """Bytes as they lie in DRAM. Raises MachineCheck outside of memory."""
        page = spa // PAGE_BYTES
        if (
            self._written.get(page // _REGION_PAGES, 0) >> page % _REGION_PAGES & 1
            and 0 <= length <= PAGE_BYTES - spa % PAGE_BYTES and spa + length <= self._plain_end
        ):  # fmt: skip
            # Most loads are of a line in a page that somebody wrote, and no such page is laid.
            there = self._chunks[spa // CHUNK_BYTES]
            at = there.begin + spa % CHUNK_BYTES
            return there.memory[at : at + length]
        found = self._laid.find(page)
        if found is not None:
            first, last, laid = found
            if laid.fill is None and spa + length <= last * PAGE_BYTES:
                return laid.octets(spa - first * PAGE_BYTES, length)
            self._check(spa, length)
            self._make_real(spa, length)
        else:
            self._check(spa, length)
            if spa + length > (page + 1) * PAGE_BYTES:
                self._make_real(spa, length)
        number, at = divmod(spa, CHUNK_BYTES)
        if at + length <= CHUNK_BYTES:
            chunk = self._chunks.get(number)
            if chunk is None:
                return bytes(length)
            at += chunk.begin
            return chunk.memory[at : at + length]
        return b"".join([self.read(start, size) for start, size in self.pieces(spa, length)])

    def write(self, spa: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes. Raises MachineCheck outside of memory."""
        if type(data) is bytes:
            length, at, page = len(data), spa % CHUNK_BYTES, spa // PAGE_BYTES
            if (
                self._written.get(page // _REGION_PAGES, 0) >> page % _REGION_PAGES & 1
                and length <= PAGE_BYTES - spa % PAGE_BYTES and spa + length <= self._plain_end and not self._watched
            ):  # fmt: skip
                # As in ``read``.
                there = self._chunks[spa // CHUNK_BYTES]
                at += there.begin
                there.memory[at : at + length] = data
                return
            if 0 < length <= CHUNK_BYTES - at:
                self._check(spa, length)
                self._forget_laid(spa, length)
                chunk = self._chunk_to_write(spa, length)
                at += chunk.begin
                chunk.memory[at : at + length] = data
                return
        source = np.frombuffer(data, np.uint8)
        self._check(spa, len(source))
        self._forget_laid(spa, len(source))
        for start, size in self.pieces(spa, len(source)):
            at, done = start % CHUNK_BYTES, start - spa
            self._chunk_to_write(start, size).octets[at : at + size] = source[done : done + size]

    def pieces(self, spa: int, length: int) -> Iterator[tuple[int, int]]:
        """A range cut at the borders of chunks, as (SPA, length). Raises MachineCheck if any of it is outside."""
        self._check(spa, length)
        return _cut(spa, spa + length)

    def words(self, spa: int, length: int) -> Words | None:
        """The words of a range inside one chunk; None where nobody wrote anything near. Raises MachineCheck."""
        self._check(spa, length)
        if not self._laid.is_gap(spa // PAGE_BYTES, -(-(spa + length) // PAGE_BYTES)):
            self._make_real(spa, length)
        chunk = self._chunks.get(spa // CHUNK_BYTES)
        # Looking at pages that nobody wrote would have the operating system map each of them.
        if chunk is None or (length > PAGE_BYTES and not self._any_written(spa, length)):
            return None
        first = spa % CHUNK_BYTES // WORD_BYTES
        return chunk.words[first : first + length // WORD_BYTES]

    def writable_words(self, spa: int, length: int) -> Words:
        """The words of a range inside one chunk that is about to be written. Raises MachineCheck."""
        self._check(spa, length)
        if not self._laid.is_gap(spa // PAGE_BYTES, -(-(spa + length) // PAGE_BYTES)):
            self._make_real(spa, length)
        first = spa % CHUNK_BYTES // WORD_BYTES
        return self._chunk_to_write(spa, length).words[first : first + length // WORD_BYTES]

    def resident_runs(self, spa: int, length: int) -> list[tuple[int, int]]:
        """Runs of whole pages in a range that hold what someone wrote, as (SPA, length). Raises MachineCheck."""
        self._check(spa, length)
        first, last = spa // PAGE_BYTES, (spa + length) // PAGE_BYTES
        pages: set[int] = set()
        if not self._laid.is_gap(first, last):
            for start, end, laid in self._laid.pieces(first, last):
                if laid is not None and laid.source is not None:
                    pages.update(range(start, end))
        for region in self._written_in(first, last):
            bits, base = self._written[region], region * _REGION_PAGES
            while bits:
                page = base + (bits & -bits).bit_length() - 1
                if first <= page < last:
                    pages.add(page)
                bits &= bits - 1
        runs: list[tuple[int, int]] = []
        for page in sorted(pages):
            at = page * PAGE_BYTES
            if runs and at == runs[-1][0] + runs[-1][1]:
                runs[-1] = runs[-1][0], runs[-1][1] + PAGE_BYTES
            else:
                runs.append((at, PAGE_BYTES))
        return runs

    def release(self, spa: int, length: int) -> None:
        """Let a range read as zeros; its whole pages cost nothing any more. Raises MachineCheck outside of memory."""
        if spa < 0 or length < 0 or spa + length > self._plain_end:
            self._check_far(spa, length)
        if self._watched:
            self._tell_watchers(spa, length)
        if self._laid.starts:
            self._forget_laid(spa, length)
        if self._written and self._any_written(spa, length):
            self._erase(spa, spa + length)

    def _erase(self, spa: int, stop: int) -> None:
        """Zero what chunks hold of a range in which somebody wrote."""
        for number, start, end in self._used_pieces(spa, stop):
            chunk = self._chunks[number]
            first, last = -(-start // PAGE_BYTES) * PAGE_BYTES, end // PAGE_BYTES * PAGE_BYTES
            base = number * CHUNK_BYTES
            if first >= last:
                chunk.octets[start - base : end - base] = 0
                continue
            if self._forget(first // PAGE_BYTES, last // PAGE_BYTES):
                chunk.release(first - base, last - first)
            # What is left of the pages at the edges belongs to pages that stay.
            chunk.octets[start - base : first - base] = 0
            chunk.octets[last - base : end - base] = 0

    def _used_pieces(self, spa: int, end: int) -> list[tuple[int, int, int]]:
        """Parts of a range that chunks hold, as (chunk, SPA, end), looked for on the shorter side."""
        numbers = range(spa // CHUNK_BYTES, -(-end // CHUNK_BYTES))
        chunks = self._chunks
        if len(numbers) <= len(chunks):
            used = [number for number in numbers if number in chunks]
        else:
            used = [number for number in chunks if number in numbers]
        return [(one, max(spa, one * CHUNK_BYTES), min(end, (one + 1) * CHUNK_BYTES)) for one in used]

    def _forget_laid(self, spa: int, length: int) -> None:
        if (spa | length) % PAGE_BYTES:
            self._make_real(spa, length)
        elif not self._laid.is_gap(spa // PAGE_BYTES, (spa + length) // PAGE_BYTES):
            self._laid.put(spa // PAGE_BYTES, (spa + length) // PAGE_BYTES, None)

    def _check(self, spa: int, length: int) -> None:
        if spa < 0 or length < 0 or spa + length > self._plain_end:
            self._check_far(spa, length)

    def _check_far(self, spa: int, length: int) -> None:
        if spa < 0 or length < 0 or spa + length > self.size_bytes:
            raise MachineCheck(spa, length)
        self._kept.tell(spa, length)

    def _chunk_to_write(self, spa: int, length: int) -> _Chunk:
        if self._watched:
            self._tell_watchers(spa, length)
        number = spa // CHUNK_BYTES
        chunk = self._chunks.get(number)
        if chunk is None:
            chunk = self._chunks[number] = _Chunk()
        written = self._written
        first, last = spa // PAGE_BYTES, -(-(spa + length) // PAGE_BYTES)
        if last - first == 1 and written.get(first // _REGION_PAGES, 0) >> first % _REGION_PAGES & 1:
            return chunk  # As most stores are: into a page that somebody wrote before.
        for region in range(first // _REGION_PAGES, -(-last // _REGION_PAGES)):
            before = written.get(region, 0)
            if before == _WHOLE_REGION:
                continue
            pages = _part_of(region, first, last)
            if before | pages != before:
                written[region] = before | pages
                if pages == _WHOLE_REGION and not before:
                    chunk.expect_whole(region * LARGE_PAGE_BYTES % CHUNK_BYTES)
        return chunk

    def _tell_watchers(self, spa: int, length: int) -> None:
        watched = self._watched
        pages = range(spa // PAGE_BYTES, -(-(spa + length) // PAGE_BYTES))
        # Looked for on the shorter side.
        for page in [one for one in watched if one in pages] if len(watched) < len(pages) else pages:
            tell = watched.pop(page, None)
            if tell is not None:
                tell(page)

    def _any_written(self, spa: int, length: int) -> bool:
        """Whether somebody wrote any page that a range touches."""
        written = self._written
        first, last = spa // PAGE_BYTES, -(-(spa + length) // PAGE_BYTES)
        region = first // _REGION_PAGES
        if last <= (region + 1) * _REGION_PAGES:
            bits = written.get(region)
            # Those of the range, as ``_part_of`` has them.
            return bits is not None and bits >> first % _REGION_PAGES & (1 << last - first) - 1 != 0
        end = -(-last // _REGION_PAGES)
        if end - region > len(written):
            # Looked for on the shorter side, as in ``_written_in``; between the edges every page counts.
            for one, bits in written.items():
                if region <= one < end and (region < one < end - 1 or bits & _part_of(one, first, last)):
                    return True
            return False
        for one in range(region, end):  # noqa: SIM110 - a generator would cost more than all of it
            if one in written and written[one] & _part_of(one, first, last):
                return True
        return False

    def _written_in(self, first: int, last: int) -> list[int]:
        """Regions of pages [first, last) in which somebody wrote."""
        written = self._written
        touched = range(first // _REGION_PAGES, -(-last // _REGION_PAGES))
        # Looked for on the shorter side: a whole guest is released at once, and wrote little.
        if len(touched) > len(written):
            return [one for one in written if one in touched]
        return [one for one in touched if one in written]

    def _forget(self, first: int, last: int) -> bool:
        """Mark pages as never written; whether any of them was."""
        any_written = False
        written = self._written
        for region in self._written_in(first, last):
            before = written[region]
            pages = _part_of(region, first, last)
            if before & pages:
                any_written = True
                if before & ~pages:
                    written[region] = before & ~pages
                else:
                    del written[region]
        return any_written


def _cut(spa: int, end: int) -> Iterator[tuple[int, int]]:
    while spa < end:
        stop = min(end, (spa // CHUNK_BYTES + 1) * CHUNK_BYTES)
        yield spa, stop - spa
        spa = stop


def _part_of(region: int, first: int, last: int) -> int:
    """The bits of a region's pages in [first, last)."""
    base = region * _REGION_PAGES
    low, high = max(first - base, 0), min(last - base, _REGION_PAGES)
    return (1 << high) - (1 << low)
