"""Ranges of memory whose owners hold what lies there in another form, until someone looks or writes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable

Touch = Callable[[int, int], None]
"""Told (SPA, length) of an access to memory that its owner keeps elsewhere, before the access: time to write it out."""


class KeptRanges:
    """Ranges that do not overlap, each with whom to tell."""

    def __init__(self, end: int) -> None:
        self._end = end
        self.first = end
        """Where the lowest range begins; the end of memory if there is none."""
        self._starts: list[int] = []
        self._ranges: list[tuple[int, int, Touch]] = []

    def keep(self, spa: int, length: int, touch: Touch) -> None:
        """Add a range. Raises ValueError where it meets another."""
        if length <= 0:
            return
        at = bisect_left(self._starts, spa)
        if (at < len(self._starts) and self._starts[at] < spa + length) or (at and self._ranges[at - 1][1] > spa):
            raise ValueError(f"{spa:#x}: kept by another already")
        self._starts.insert(at, spa)
        self._ranges.insert(at, (spa, spa + length, touch))
        self.first = self._starts[0]

    def let_go(self, spa: int) -> None:
        """Take out the range that begins at ``spa``; where none does, nothing."""
        at = bisect_left(self._starts, spa)
        if self._starts[at : at + 1] == [spa]:
            del self._starts[at], self._ranges[at]
            self.first = self._starts[0] if self._starts else self._end

    def covers(self, spa: int) -> bool:
        """Whether an address is in a range."""
        at = bisect_right(self._starts, spa) - 1
        return at >= 0 and spa < self._ranges[at][1]

    def meets(self, spa: int, length: int) -> bool:
        """Whether any of so many bytes is in a range."""
        at = bisect_left(self._starts, spa + length) - 1
        return at >= 0 and length > 0 and spa < self._ranges[at][1]

    def tell(self, spa: int, length: int) -> None:
        """Tell the owners of the ranges that an access meets."""
        at = bisect_right(self._starts, spa)
        if (not at or self._ranges[at - 1][1] <= spa) and (at == len(self._starts) or self._starts[at] >= spa + length):
            return  # As nearly always.
        at = max(0, at - 1)
        met = []
        while at < len(self._starts) and self._starts[at] < spa + length:
            start, end, touch = self._ranges[at]
            low, high = max(spa, start), min(spa + length, end)
            if low < high:
                met.append((low, high - low, touch))
            at += 1
        for low, size, touch in met:  # owners may let go meanwhile
            touch(low, size)
