"""The hypervisor's free memory: first fit over free runs, large pieces aligned to 2 MiB."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate


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
        self._free = sorted((spa, length) for spa, length in ranges if length > 0)
        self._all_bytes = sum(length for _, length in self._free)
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
        for index, (spa, free) in enumerate(self._free):
            start = spa + -spa % alignment
            if start + length <= spa + free:
                self._cut(index, start, length)
                return start
        return None

    def allocate_last(self, length: int, alignment: int) -> list[tuple[int, int]]:
        """The same from the end of memory, for what stays out of the way of large pieces. Raises OutOfMemory."""
        if length <= 0:
            raise ValueError(f"length: expected more than zero, got {length}")
        for index in range(len(self._free) - 1, -1, -1):
            spa, free = self._free[index]
            start = (spa + free - length) // alignment * alignment
            if start >= spa:
                self._cut(index, start, length)
                return [(start, length)]
        return self._scattered(length, alignment)

    def _scattered(self, length: int, alignment: int) -> list[tuple[int, int]]:
        pieces: list[tuple[int, int]] = []
        left = length
        for spa, free in self._free:
            start = -(-spa // alignment) * alignment
            room = (spa + free - start) // alignment * alignment
            if room > 0 and left > 0:
                pieces.append((start, min(room, left)))
                left -= pieces[-1][1]
        if left > 0:
            raise OutOfMemory(length, self.free_bytes)
        for start, size in pieces:
            index = bisect_left(self._free, (start + 1,)) - 1
            self._cut(index, start, size)
        return pieces

    def _cut(self, index: int, start: int, length: int) -> None:
        free = self._free
        spa, size = free[index]
        before, after = start - spa, spa + size - start - length
        if before and after:
            free[index : index + 1] = [(spa, before), (start + length, after)]
        elif before or after:
            free[index] = (spa, before) if before else (start + length, after)
        else:
            del free[index]
        self.used_bytes += length
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)

    def release(self, pieces: Iterable[tuple[int, int]]) -> None:
        """Give pieces back. Raises ValueError for an empty piece, and for memory that is free already."""
        for spa, length in pieces:
            if length <= 0:
                raise ValueError(f"length: expected more than zero, got {length}")
            free = self._free
            first = last = bisect_left(free, (spa,))
            start, end = spa, spa + length
            if first:
                before, size = free[first - 1]
                if before + size > spa:
                    raise ValueError(f"{spa:#x}: released twice")
                if before + size == spa:
                    first, start = first - 1, before
            if last < len(free):
                after, size = free[last]
                if end > after:
                    raise ValueError(f"{spa:#x}: released twice")
                if end == after:
                    last, end = last + 1, after + size
            free[first:last] = [(start, end - start)]
            self.used_bytes -= length
