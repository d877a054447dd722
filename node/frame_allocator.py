"""The hypervisor's free memory: first fit over free runs, large pieces aligned to 2 MiB."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

_NOWHERE = -1
MOST_PUT_OFF = 64
"""Acts that wait at most; before one more they are carried out."""
Pieces = Sequence[tuple[int, int]]


class OutOfMemory(Exception):
    """The host has not that much free memory."""

    def __init__(self, wanted_bytes: int, free_bytes: int) -> None:
        super().__init__(f"memory: {wanted_bytes} bytes wanted, {free_bytes} free")


def joined(pieces: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Pieces of memory, (SPA, length), by address, those that touch as one."""
    start = end = -1
    for spa, length in sorted(pieces):
        if spa == end:
            end += length
            continue
        if start < end:
            yield start, end - start
        start, end = spa, spa + length
    if start < end:
        yield start, end - start


class Wanted(NamedTuple):
    """What one act takes: bytes in one run aligned to 2 MiB, single pages, and bytes in one run from the end."""

    run: int
    pages: int
    last: int


class FrameAllocator:
    """Free runs of system memory as (SPA, length).

    An act that takes frames, or gives them back, may be put off until somebody asks for an address. Acts are carried
    out in their order, so that each comes to the frames that it would have come to at once; the books of bytes are
    always those of all acts.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        free = sorted((spa, spa + length) for spa, length in ranges if length > 0)
        self._starts = [start for start, _ in free]
        self._ends = [end for _, end in free]
        self._all_bytes = sum(end - start for start, end in free)
        self.used_bytes = 0
        self.peak_bytes = 0
        self.released: Callable[[Pieces], None] | None = None
        """Told of frames that came back otherwise than by an act that was put off."""
        self._acts: list[Callable[[], object]] = []
        """Those that wait."""
        self._ahead_bytes = 0
        """What they come to."""
        self.era = 0
        """Counts how often acts that waited were carried out."""
        self._room = -1
        """The longest free run before any act that waits, -1 until it is asked for."""
        self._low_pages = 0
        """Pages below it in runs that are too short for anything but pages."""
        self._held_bytes = self._held_runs = self._held_pages = 0
        """What was taken in this era and is held, but for what came from the end of memory."""
        self._pages = self._last_bytes = 0
        """All that was taken in this era of single pages, or of runs as short, and from the end of memory."""

    @property
    def free_bytes(self) -> int:
        """What nobody has."""
        return self._all_bytes - self.used_bytes

    def free_runs(self) -> list[tuple[int, int]]:
        """All of it, by address."""
        self.settle()
        return [(start, end - start) for start, end in zip(self._starts, self._ends, strict=True)]

    def has_room(self, wanted: Wanted) -> bool:
        """Whether there is room for all of it, each run in one piece, wherever the acts that wait find theirs.

        What they hold cuts the run that was the longest into gaps, one more than it has pieces, but for what
        they have taken from its end. If no gap has room for a request, with what is lost to its alignment, that run is
        no longer than the pieces and as many requests. Single pages come from below it as long as there are some.
        """
        if self._room < 0:
            self._measure()
        run, pages, last = wanted
        before, gaps = self._held_bytes, self._held_runs + 1
        if self._pages + pages > self._low_pages or run < LARGE_PAGE_BYTES:
            gaps += self._held_pages + pages
        used = before + gaps * (run + LARGE_PAGE_BYTES) + pages * PAGE_BYTES + self._last_bytes + last
        return used + (gaps + 1) * (last + LARGE_PAGE_BYTES) < self._room

    def _measure(self) -> None:
        longest = low = 0
        for start, end in zip(self._starts, self._ends, strict=True):
            if end - start > longest:
                longest, self._low_pages = end - start, low
            if end - start < LARGE_PAGE_BYTES:
                low += (end - start) // PAGE_BYTES
        self._room = longest

    def take_later(self, act: Callable[[], object], wanted: Wanted, rest: int = 0) -> bool:
        """Have ``act`` take this once somebody asks where it is; False where it might not find the run in one piece.

        So many of the pages are not its to take, but counted for a later act (``take_rest_later``).
        """
        if not self.has_room(wanted):
            if not self._acts:
                return False
            self.settle()
            if not self.has_room(wanted):
                return False
        run, pages, last = wanted
        self.put_off(act, run + (pages - rest) * PAGE_BYTES + last)
        self._held_bytes += run + pages * PAGE_BYTES
        self._held_runs += run > 0
        self._held_pages += pages
        self._pages += pages if run >= LARGE_PAGE_BYTES else pages + -(-run // PAGE_BYTES)
        self._last_bytes += last
        return True

    def take_rest_later(self, act: Callable[[], object], pages: int, era: int) -> bool:
        """Have ``act`` take pages that were counted in an era; False where they might not be there any more."""
        if era != self.era:
            return self.take_later(act, Wanted(0, pages, 0))
        self.put_off(act, pages * PAGE_BYTES)
        return True

    def give_later(self, act: Callable[[], object], wanted: Wanted, era: int) -> None:
        """Have ``act`` give this back before whoever asks for an address next; ``era`` is when it was taken."""
        run, pages, last = wanted
        given = run + pages * PAGE_BYTES
        if era == self.era:
            self._held_bytes -= given
            self._held_runs -= run > 0
            self._held_pages -= pages
        self.put_off(act, -given - last)

    def put_off(self, act: Callable[[], object], taken: int) -> None:
        """Have an act wait that takes so much, which is certain to be there, or gives it back where it is negative."""
        acts = self._acts
        acts.append(act)
        self._ahead_bytes += taken
        self.used_bytes = used = self.used_bytes + taken
        if used > self.peak_bytes:
            self.peak_bytes = used
        if len(acts) > MOST_PUT_OFF:
            self.settle()

    def settle(self) -> None:
        """Carry out what was put off."""
        if not self._acts:
            return
        acts, self._acts = self._acts, []
        used, told, self.released = self.used_bytes, self.released, None
        self.used_bytes -= self._ahead_bytes
        self._ahead_bytes = self._held_bytes = self._held_runs = self._held_pages = self._pages = self._last_bytes = 0
        self.era += 1
        for act in acts:
            act()
        self.released = told
        assert self.used_bytes == used, f"acts that were put off: {used} bytes expected, {self.used_bytes} held"

    def allocate(self, length: int, alignment: int) -> list[tuple[int, int]]:
        """Take ``length`` bytes in aligned pieces, one piece if any free run has room. Raises OutOfMemory."""
        start = self.allocate_run(length, alignment)
        return self._scattered(length, alignment) if start is None else [(start, length)]

    def allocate_row(self, lengths: Sequence[int], alignment: int) -> list[list[tuple[int, int]]]:
        """The same for each of several lengths, one behind the other if any free run has room for all.

        All but the last must be multiples of the alignment. Raises OutOfMemory with nothing taken.
        """
        start = self.allocate_run(sum(lengths), alignment)
        if start is not None:
            starts = accumulate(lengths[:-1], initial=start)
            return [[piece] for piece in zip(starts, lengths, strict=True)]
        row: list[list[tuple[int, int]]] = []
        try:
            for length in lengths:
                row.append(self.allocate(length, alignment))  # noqa: PERF401 - what was taken is given back
        except OutOfMemory:
            for pieces in row:
                self.release(pieces)
            raise
        return row

    def allocate_run(self, length: int, alignment: int) -> int | None:
        """Take a length in one piece; where it begins, in the first free run that has room, None if there is none."""
        if length <= 0:
            raise ValueError(f"length: expected more than zero, got {length}")
        if self._acts:
            self.settle()
        ends = self._ends
        for index, first in enumerate(self._starts):
            start = first + -first % alignment
            if start + length <= ends[index]:
                self._cut(index, start, start + length)
                return start
        return None

    def allocate_last(self, length: int, alignment: int) -> list[tuple[int, int]]:
        """The same from the end of memory, for what stays out of the way of large pieces. Raises OutOfMemory."""
        if length <= 0:
            raise ValueError(f"length: expected more than zero, got {length}")
        if self._acts:
            self.settle()
        index = len(self._starts)
        for end in reversed(self._ends):
            index -= 1
            start = (end - length) // alignment * alignment
            if start >= self._starts[index]:
                self._cut(index, start, start + length)
                return [(start, length)]
        return self._scattered(length, alignment)

    def _scattered(self, length: int, alignment: int) -> list[tuple[int, int]]:
        pieces: list[tuple[int, int]] = []
        left = length
        for first, end in zip(self._starts, self._ends, strict=True):
            start = -(-first // alignment) * alignment
            room = (end - start) // alignment * alignment
            if room > 0 and left > 0:
                pieces.append((start, min(room, left)))
                left -= pieces[-1][1]
        if left > 0:
            raise OutOfMemory(length, self.free_bytes)
        for start, size in pieces:
            self._cut(bisect_right(self._starts, start) - 1, start, start + size)
        return pieces

    def _cut(self, index: int, start: int, end: int) -> None:
        """Take what is from ``start`` to ``end``, all of which is in one free run."""
        starts, ends = self._starts, self._ends
        if starts[index] == start:
            if ends[index] == end:
                del starts[index], ends[index]
            else:
                starts[index] = end
        elif ends[index] == end:
            ends[index] = start
        else:
            starts.insert(index + 1, end)
            ends.insert(index, start)
        self._room = -1
        self.used_bytes = used = self.used_bytes + end - start
        if used > self.peak_bytes:
            self.peak_bytes = used

    def release(self, pieces: Pieces) -> None:
        """Give pieces back. Raises ValueError for an empty piece, and for memory that is free already.

        As long as acts wait this is one more of them, and raises when it is carried out.
        """
        if self._acts:
            self.put_off(lambda: self._release(pieces), -sum([length for _, length in pieces]))
        else:
            self._release(pieces)
        if self.released is not None:
            self.released(pieces)

    def _release(self, pieces: Pieces) -> None:
        self._room = -1
        starts, ends = self._starts, self._ends
        for spa, length in pieces:
            if length <= 0:
                raise ValueError(f"length: expected more than zero, got {length}")
            end = spa + length
            index = bisect_left(starts, spa)
            before = ends[index - 1] if index else _NOWHERE
            after = starts[index] if index < len(starts) else end + 1
            if before > spa or after < end:
                raise ValueError(f"{spa:#x}: released twice")
            if before == spa:
                if after == end:
                    del starts[index], ends[index - 1]
                else:
                    ends[index - 1] = end
            elif after == end:
                starts[index] = spa
            else:
                starts.insert(index, spa)
                ends.insert(index, end)
            self.used_bytes -= length
