"""The hypervisor's free memory: first fit over free runs, large pieces aligned to 2 MiB."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

_NOWHERE = -1


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


class FrameAllocator:
    """Free runs of system memory as (SPA, length)."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        free = sorted((spa, spa + length) for spa, length in ranges if length > 0)
        self._starts = [start for start, _ in free]
        self._ends = [end for _, end in free]
        self._all_bytes = sum(end - start for start, end in free)
        self.used_bytes = 0
        self.peak_bytes = 0

    @property
    def free_bytes(self) -> int:
        """What nobody has."""
        return self._all_bytes - self.used_bytes

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
        self.used_bytes = used = self.used_bytes + end - start
        if used > self.peak_bytes:
            self.peak_bytes = used

    def release(self, pieces: Iterable[tuple[int, int]]) -> None:
        """Give pieces back. Raises ValueError for an empty piece, and for memory that is free already."""
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
