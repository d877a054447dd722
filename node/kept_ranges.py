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
        self._ends: list[int] = []
        self._touches: list[Touch] = []

    def keep(self, spa: int, length: int, touch: Touch) -> None:
        """Add a range. Raises ValueError where it meets another."""
        if length > 0 and not self.keep_apart(spa, length, touch):
            raise ValueError(f"{spa:#x}: kept by another already")

    def keep_apart(self, spa: int, length: int, touch: Touch) -> bool:
        """Add a range that is not empty. True if it was added; one that meets another is not."""
        starts, ends = self._starts, self._ends
        at = bisect_left(starts, spa)
        if (at < len(starts) and starts[at] < spa + length) or (at and ends[at - 1] > spa):
            return False
        starts.insert(at, spa)
        ends.insert(at, spa + length)
        self._touches.insert(at, touch)
        self.first = starts[0]
        return True

    def let_go(self, spa: int) -> None:
        """Take out the range that begins at ``spa``; where none does, nothing."""
        starts = self._starts
        at = bisect_left(starts, spa)
        if at < len(starts) and starts[at] == spa:
            del starts[at], self._ends[at], self._touches[at]
            self.first = starts[0] if starts else self._end

    def covers(self, spa: int) -> bool:
        """Whether an address is in a range."""
        at = bisect_right(self._starts, spa) - 1
        return at >= 0 and spa < self._ends[at]

    def meets(self, spa: int, length: int) -> bool:
        """Whether any of so many bytes is in a range."""
        at = bisect_left(self._starts, spa + length) - 1
        return at >= 0 and length > 0 and spa < self._ends[at]

    def tell(self, spa: int, length: int) -> None:
        """Tell the owners of the ranges that an access meets, and of those that are added while others are told."""
        at = bisect_right(self._starts, spa)
        if (not at or self._ends[at - 1] <= spa) and (at == len(self._starts) or self._starts[at] >= spa + length):
            return  # As nearly always.
        told: list[Touch] = []
        while met := [one for one in self._met(spa, length) if one[2] not in told]:
            for low, size, touch in met:
                touch(low, size)
                told.append(touch)

    def _met(self, spa: int, length: int) -> list[tuple[int, int, Touch]]:
        """What of an access is in ranges, as (SPA, length, whom to tell)."""
        at, met = max(0, bisect_right(self._starts, spa) - 1), []
        while at < len(self._starts) and self._starts[at] < spa + length:
            low, high = max(spa, self._starts[at]), min(spa + length, self._ends[at])
            if low < high:
                met.append((low, high - low, self._touches[at]))
            at += 1
        return met
