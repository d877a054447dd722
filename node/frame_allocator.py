"""The hypervisor's free memory: first fit over free runs, large pieces aligned to 2 MiB."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple

from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

_NOWHERE = -1
MOST_PUT_OFF = 64
"""Acts that wait at most; before one more they are carried out."""
_SHARE_OF_END = 64
"""The end of a run of free memory is so many parts of it: nested tables of 2 MiB pages need far less."""
Pieces = Sequence[tuple[int, int]]


class OutOfMemory(Exception):
    """The host has not that much free memory, or not as it is wanted: ``how`` says that."""

    SAYS = "memory: "
    """What its text begins with, wherever that goes on to."""

    def __init__(self, wanted_bytes: int, free_bytes: int, how: str = "") -> None:
        super().__init__(f"{self.SAYS}{wanted_bytes} bytes wanted{how}, {free_bytes} free")


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
        self._used_bytes = self._peak_bytes = 0
        """Before any act that waits."""
        self.returned: list[tuple[int, int]] | None = None
        """What came back otherwise than by an act that was put off, where somebody looks for that now and then."""
        self._acts: list[tuple[Callable[[], object], int]] = []
        """Those that wait, and bytes that each takes; fewer than none where it gives them back."""
        self.era = 0
        """Counts how often acts that waited were carried out."""
        self._room = -1
        """The longest free run before any act that waits, but for its end; -1 until it is asked for."""
        self._end_bytes = 0
        """That end: what is taken there leaves the rest of the run as it is."""
        self._low_pages = 0
        """Free pages below it that serve for nothing but single pages."""
        self._lasting = _NOWHERE
        self._held_bytes = self._held_runs = 0
        """What was taken in this era and is held, but for what came from the end of memory."""
        self._pages = self._last_bytes = 0
        """All that was taken in this era of single pages, and from the end of memory."""

    @property
    def used_bytes(self) -> int:
        """What somebody has, by acts that wait, too."""
        return self._used_bytes + sum([taken for _, taken in self._acts])

    @property
    def peak_bytes(self) -> int:
        """The most that it ever was."""
        return max(self._peak_bytes, *accumulate([taken for _, taken in self._acts], initial=self._used_bytes))

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

        The end of the longest run is for what is taken from the end of memory, all of an era, one piece below the
        other if need be. The pieces that acts hold cut the rest into gaps, one more than there are pieces. If no gap
        has room for a request, with what is lost to its alignment, the rest is no longer than the pieces and as many
        requests. So everybody finds room in the rest, first fit goes no higher, and nothing else comes to the end.
        Single pages come from behind a page that stays taken as long as there are some; beyond those each that was
        taken counts as a piece that is held.
        """
        if self._room < 0:
            self._measure()
        run, pages, last = wanted
        if self._last_bytes + last > self._end_bytes:
            return False
        gaps = self._held_runs + 1
        if self._pages + pages > self._low_pages:
            gaps += self._pages + pages
        return self._held_bytes + gaps * (run + LARGE_PAGE_BYTES) + pages * PAGE_BYTES < self._room

    def stays(self, spa: int) -> None:
        """A page that was taken is never given back: no run can begin before it in its 2 MiB and go on behind it."""
        self._lasting, self._room = spa, -1

    def _measure(self) -> None:
        lasting, behind = self._lasting, (self._lasting // LARGE_PAGE_BYTES + 1) * LARGE_PAGE_BYTES
        longest = low = 0
        for first, end in zip(self._starts, self._ends, strict=True):
            start = first
            if lasting < first < behind:
                low += (min(end, behind) - first) // PAGE_BYTES
                start = behind
            if end - start > longest:
                longest, self._low_pages = end - start, low
        self._end_bytes = longest // _SHARE_OF_END
        self._room = longest - self._end_bytes

    def take_later(self, act: Callable[[], object], wanted: Wanted, rest: int = 0) -> bool:
        """Have ``act`` take this once somebody asks where it is; False where it might not find the run in one piece.

        So many of the pages are not its to take, but counted for a later act (``take_rest_later``).
        """
        acts = self._acts
        if len(acts) >= MOST_PUT_OFF or not self.has_room(wanted):
            if not acts:
                return False
            self.settle()
            if not self.has_room(wanted):
                return False
        run, pages, last = wanted
        held = run + pages * PAGE_BYTES
        self._held_bytes += held
        self._held_runs += run > 0
        self._pages += pages
        self._last_bytes += last
        self._acts.append((act, held + last - rest * PAGE_BYTES))
        return True

    def take_rest_later(self, act: Callable[[], object], pages: int, era: int) -> bool:
        """Have ``act`` take pages that were counted in an era; False where they might not be there any more."""
        if era != self.era or len(self._acts) >= MOST_PUT_OFF:
            return self.take_later(act, Wanted(0, pages, 0))
        self._acts.append((act, pages * PAGE_BYTES))
        return True

    def give_later(self, act: Callable[[], object], wanted: Wanted, era: int) -> None:
        """Have ``act`` give this back before whoever asks for an address next; ``era`` is when it was taken."""
        if len(self._acts) >= MOST_PUT_OFF:
            self.settle()
        run, pages, last = wanted
        given = run + pages * PAGE_BYTES
        if era == self.era:
            self._held_bytes -= given
            self._held_runs -= run > 0
        self._acts.append((act, -given - last))

    def settle(self) -> None:
        """Carry out what was put off.

        Raises what the first act raised that could not be carried out, with a note that names it, once all others are.
        """
        if not self._acts:
            return
        acts, self._acts = self._acts, []
        returned, self.returned = self.returned, None
        self._held_bytes = self._held_runs = self._pages = self._last_bytes = 0
        self.era += 1
        wrong: list[Exception] = []
        for act, taken in acts:
            before = self._used_bytes
            try:
                act()
                came = self._used_bytes - before
                assert came == taken, f"{taken} bytes expected, {came} taken"
            except Exception as error:  # noqa: BLE001 - whatever it is, it is raised once the books agree
                error.add_note(f"put off: {act}")
                wrong.append(error)
        self.returned = returned
        if wrong:
            raise wrong[0]

    def allocate(self, length: int, alignment: int) -> list[tuple[int, int]]:
        """Take ``length`` bytes in aligned pieces, one piece if any free run has room. Raises OutOfMemory."""
        start = self.allocate_run(length, alignment)
        return self._scattered(length, alignment) if start is None else [(start, length)]

    def allocate_pages(self, count: int) -> tuple[int, ...]:
        """Take so many single pages, wherever they are. Raises OutOfMemory with nothing taken."""
        if count * PAGE_BYTES > self.free_bytes:
            raise OutOfMemory(count * PAGE_BYTES, self.free_bytes)
        return tuple([self.allocate(PAGE_BYTES, PAGE_BYTES)[0][0] for _ in range(count)])

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
        self._used_bytes = used = self._used_bytes + end - start
        if used > self._peak_bytes:
            self._peak_bytes = used

    def release(self, pieces: Pieces) -> None:
        """Give pieces back. Raises ValueError for an empty piece, and for memory that is free already.

        As long as acts wait this is one more of them, and whoever has it carried out is told.
        """
        if len(self._acts) >= MOST_PUT_OFF:
            self.settle()
        try:
            if self._acts:
                self._acts.append((partial(self._release, pieces), -sum([length for _, length in pieces])))
            else:
                self._release(pieces)
        finally:  # Of several pieces some may have come back.
            if self.returned is not None:
                self.returned += pieces

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
            self._used_bytes -= length
