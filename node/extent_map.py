"""Regular runs over a range of addresses: nested page tables and the RMP are mostly made of them.

A run has a start, an end and a value that stands for its first address; the
value at a later address follows from the distance. Runs never overlap and two
neighbours that continue each other are one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Generic, Protocol, Self, TypeVar


class Advancing(Protocol):
    """A value that knows what it is further on."""

    def advanced(self, distance: int) -> Self:
        """The value ``distance`` addresses later."""


V = TypeVar("V", bound=Advancing)


class ExtentMap(Generic[V]):
    """Runs sorted by start; memory and look-ups depend on the number of runs, not on their lengths."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        """Where each run begins; for others only to see whether there is any."""
        self._ends: list[int] = []
        self._values: list[V] = []

    def __len__(self) -> int:
        return len(self.starts)

    def find(self, address: int) -> tuple[int, int, V] | None:
        """(start, end, value at start) of the run that holds ``address``."""
        index = bisect_right(self.starts, address) - 1
        if index < 0 or address >= self._ends[index]:
            return None
        return self.starts[index], self._ends[index], self._values[index]

    def is_gap(self, start: int, end: int) -> bool:
        """Whether no run has an address in [start, end)."""
        index = bisect_left(self.starts, end)
        return not index or self._ends[index - 1] <= start

    def count(self, start: int, end: int) -> int:
        """Number of runs that begin in [start, end)."""
        return bisect_left(self.starts, end) - bisect_left(self.starts, start)

    def runs(self) -> Iterator[tuple[int, int, V]]:
        """Every run as (start, end, value at start), in order."""
        return zip(self.starts, self._ends, self._values, strict=True)

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, int, V | None]]:
        """[start, end) cut at the borders of runs: (from, to, value at from), None in gaps."""
        index = max(0, bisect_right(self.starts, start) - 1)
        at = start
        while at < end:
            while index < len(self.starts) and self._ends[index] <= at:
                index += 1
            if index == len(self.starts) or self.starts[index] >= end:
                yield at, end, None
                return
            first = self.starts[index]
            if first > at:
                yield at, first, None
                at = first
            stop = min(self._ends[index], end)
            yield at, stop, self._values[index].advanced(at - first)
            at = stop

    def put(self, start: int, end: int, value: V | None) -> None:
        """Replace whatever is in [start, end) by one run, or by nothing; an empty range changes nothing."""
        if start >= end:
            return
        starts, ends, values = self.starts, self._ends, self._values
        low, high = bisect_right(ends, start), bisect_left(starts, end)  # the runs that reach into the range
        if value is None and (low == high or (starts[low] >= start and ends[high - 1] <= end)):
            if low < high:  # whole runs go
                del starts[low:high], ends[low:high], values[low:high]
            return
        if low == high and value is not None and self._continues_none(low, low, start, end, value):
            starts.insert(low, start)
            ends.insert(low, end)
            values.insert(low, value)
            return
        if (
            high - low == 1 and value is not None and starts[low] == start and ends[low] == end
            and self._continues_none(low, high, start, end, value)
        ):  # fmt: skip
            values[low] = value
            return
        new: list[tuple[int, int, V]] = []
        if low < high and starts[low] < start:
            new.append((starts[low], start, values[low]))
        if value is not None:
            new.append((start, end, value))
        if low < high and ends[high - 1] > end:
            last = high - 1
            new.append((end, ends[last], values[last].advanced(end - starts[last])))
        if low > 0:
            low -= 1
            new.insert(0, (starts[low], ends[low], values[low]))
        if high < len(starts):
            new.append((starts[high], ends[high], values[high]))
            high += 1
        merged: list[tuple[int, int, V]] = []
        for run in new:
            if merged and merged[-1][1] == run[0] and merged[-1][2].advanced(run[0] - merged[-1][0]) == run[2]:
                merged[-1] = (merged[-1][0], run[1], merged[-1][2])
            else:
                merged.append(run)
        starts[low:high] = [run[0] for run in merged]
        ends[low:high] = [run[1] for run in merged]
        values[low:high] = [run[2] for run in merged]

    def _continues_none(self, low: int, high: int, start: int, end: int, value: V) -> bool:
        """Whether a run put in place of those from ``low`` to before ``high`` continues none and none continues it."""
        starts, values = self.starts, self._values
        if low and self._ends[low - 1] == start:
            before = low - 1
            if values[before].advanced(start - starts[before]) == value:
                return False
        if high < len(starts) and starts[high] == end:
            return value.advanced(end - start) != values[high]
        return True

    def clear(self) -> None:
        """Forget every run."""
        self.starts.clear()
        self._ends.clear()
        self._values.clear()
