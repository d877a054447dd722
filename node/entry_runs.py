"""Runs of RMP entries in columns: what each run costs is known to the byte, however short the runs are.

A run is pages that follow each other with entries that do so too: alike, and if a guest owns them with GPAs that
advance. It is held by the two words of its first entry. Runs lie sorted in leaves of a few hundred; a change moves
what is in one leaf. Neighbours that continue each other are one run.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from node.rmp_entry import ASID, LOCK, PAGE_SIZE, decoded, encoded
from psp.system_bus import PAGE_BYTES, RmpEntry

_MOST = 1024
"""Runs in a leaf; one more makes two leaves of it."""
_FEW, _JOINED = 3 * _MOST // 8, 7 * _MOST // 8
"""A leaf with fewer joins a neighbour if together they have no more than that."""
_LONG = 1 << 32
_NOWHERE = (0, 0, 0, 0)


class Run(NamedTuple):
    """The words of a run's first entry, as ``encoded`` makes them."""

    low: int
    high: int

    @classmethod
    def of(cls, entry: RmpEntry) -> Run:
        """A run that begins with an entry."""
        return cls(*encoded(entry))

    @property
    def entry(self) -> RmpEntry | None:
        """The first entry; None where bytes in DRAM say what it is."""
        return None if self.low == LOCK else decoded(self.low, self.high, large=bool(self.low & PAGE_SIZE))

    def advanced(self, distance: int) -> Run:
        """The run from ``distance`` pages later on."""
        return Run(self.low + distance * PAGE_BYTES, self.high) if distance and self.low & ASID else self


IN_DRAM = Run(LOCK, 0)
"""In place of words that no run has: bytes in DRAM are what counts."""

Column = NDArray[np.uint64]


class Columns(NamedTuple):
    """Runs as numpy has them."""

    starts: Column
    ends: Column
    lows: Column
    highs: Column


class _Leaf:
    __slots__ = ("ends", "highs", "lows", "most", "starts")

    def __init__(self, code: str, columns: tuple[array[int], ...] = ()) -> None:
        self.starts, self.ends, self.lows, self.highs = columns or (array(code), array(code), array("Q"), array("I"))
        self.most = len(self.starts)
        """Runs since the columns were last made: they give nothing back by themselves."""

    @property
    def columns(self) -> tuple[array[int], array[int], array[int], array[int]]:
        return self.starts, self.ends, self.lows, self.highs


class EntryRuns:
    """Runs of the pages [0, ``last``); with 2^32 pages or more each run takes 8 bytes more."""

    def __init__(self, last: int) -> None:
        self._code = "I" if last < _LONG else "Q"
        self._leaves = [_Leaf(self._code)]
        self._firsts = [0]
        """Where each leaf begins: with its first run, but for the first."""
        self._last = _NOWHERE
        """The run that was asked for last: accesses go on where they were."""
        self.gap = (0, 0)
        """The gap that was found last, cut at its leaf's end, for who looks at every store."""
        self.changes = 0
        """Counts whatever may change a page's entry; what lies in DRAM changes without a count."""

    def __len__(self) -> int:
        return sum(len(leaf.starts) for leaf in self._leaves)

    def find(self, page: int) -> tuple[int, int, Run] | None:
        """(start, end, run) of the run that holds a page."""
        found = self.words(page)
        return None if found is None else (found[0], found[1], Run(found[2], found[3]))

    def words(self, page: int) -> tuple[int, int, int, int] | None:
        """The same as (start, end, low, high), for who looks at every access."""
        last = self._last
        if last[0] <= page < last[1]:
            return last
        leaf = self._leaves[bisect_right(self._firsts, page) - 1]
        index = bisect_right(leaf.starts, page) - 1
        if index < 0 or page >= leaf.ends[index]:
            return None
        self._last = found = leaf.starts[index], leaf.ends[index], leaf.lows[index], leaf.highs[index]
        return found

    def is_gap(self, start: int, end: int) -> bool:
        """Whether no run has a page in [start, end)."""
        first, last = self.gap
        if first <= start and end <= last:
            return True
        leaf = self._leaves[bisect_left(self._firsts, end) - 1]
        index = bisect_left(leaf.starts, end)
        first = leaf.ends[index - 1] if index else 0
        if first > start:
            return False
        self.gap = first, (leaf.starts[index] if index < len(leaf.starts) else end)
        return True

    def count(self, start: int, end: int) -> int:
        """Number of runs that begin in [start, end)."""
        first, last = self._index(start), self._index(end)
        between = sum(len(leaf.starts) for leaf in self._leaves[first:last])
        return between + bisect_left(self._leaves[last].starts, end) - bisect_left(self._leaves[first].starts, start)

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, int, Run | None]]:
        """[start, end) cut at the borders of runs: (from, to, run from there), None in gaps."""
        at = start
        for leaf in self._leaves[self._index(start) :]:
            starts, ends = leaf.starts, leaf.ends
            for index in range(max(0, bisect_right(starts, at) - 1), len(starts)):
                if ends[index] <= at:
                    continue
                first = starts[index]
                if first > at:
                    yield at, min(first, end), None
                    at = first
                if at >= end:
                    return
                stop = min(ends[index], end)
                yield at, stop, Run(leaf.lows[index], leaf.highs[index]).advanced(at - first)
                at = stop
                if at == end:
                    return
        if at < end:
            yield at, end, None

    def columns(self, start: int, end: int) -> Columns:
        """What ``pieces`` gives but for gaps, as copies."""
        parts: list[list[Column]] = []
        for leaf in self._leaves[self._index(start) : self._index(end - 1) + 1]:
            low, high = bisect_right(leaf.ends, start), bisect_left(leaf.starts, end)
            parts.append([np.asarray(one)[low:high].astype(np.uint64) for one in leaf.columns])
        starts, ends, lows, highs = (np.concatenate(some) for some in zip(*parts, strict=True))
        if len(starts) and starts[0] < start:
            if lows[0] & ASID:
                lows[0] += (start - int(starts[0])) * PAGE_BYTES
            starts[0] = start
        if len(ends):
            ends[-1] = min(int(ends[-1]), end)
        return Columns(starts, ends, lows, highs)

    def put(self, start: int, end: int, run: Run | None) -> None:
        """Replace whatever is in [start, end) by one run, or by nothing; an empty range changes nothing."""
        if start >= end:
            return
        self._last, self.gap = _NOWHERE, (0, 0)
        self.changes += 1
        number = self._joined(start, end)
        _put(self._leaves[number], start, end, run)
        self._settle(number)

    def replace(self, start: int, end: int, new: Columns) -> None:
        """The same by many runs, none of which continues another of them."""
        self.put(start, end, None)
        if not len(new.starts):
            return
        number = self._joined(start, end)
        leaf = self._leaves[number]
        at = bisect_left(leaf.starts, start)
        for column, values in zip(leaf.columns, new, strict=True):
            column[at:at] = array(column.typecode, values.astype(column.typecode).tobytes())
        self._leaves[number] = _Leaf(self._code, tuple(column[:] for column in leaf.columns))
        self._settle(number)
        for index in (0, len(new.starts) - 1):  # what continues its neighbour outside becomes one with it
            run = Run(int(new.lows[index]), int(new.highs[index]))
            self.put(int(new.starts[index]), int(new.ends[index]), run)

    def clear(self) -> None:
        """Forget every run."""
        self._leaves, self._firsts, self._last, self.gap = [_Leaf(self._code)], [0], _NOWHERE, (0, 0)
        self.changes += 1

    def _index(self, page: int) -> int:
        return max(0, bisect_right(self._firsts, page) - 1)

    def _joined(self, start: int, end: int) -> int:
        """The leaf of [start, end) and the pages on both sides; they are in one then."""
        first, last = self._index(start - 1), self._index(end)
        if last > first:
            self._join(first, last)
        return first

    def _join(self, first: int, last: int) -> None:
        leaf = self._leaves[first]
        for other in self._leaves[first + 1 : last + 1]:
            for column, more in zip(leaf.columns, other.columns, strict=True):
                column.extend(more)
        leaf.most = max(leaf.most, len(leaf.starts))
        del self._leaves[first + 1 : last + 1], self._firsts[first + 1 : last + 1]

    def _settle(self, number: int) -> None:
        """Keep a leaf that was changed within bounds."""
        leaf = self._leaves[number]
        size = len(leaf.starts)
        if size > _MOST:
            self._split(number)
            return
        if size < _FEW and len(self._leaves) > 1:
            number = self._with_neighbour(number)
            leaf = self._leaves[number]
            size = len(leaf.starts)
        if size > leaf.most:
            leaf.most = size
        elif size * 16 < leaf.most * 15:
            leaf = self._leaves[number] = _Leaf(self._code, tuple(column[:] for column in leaf.columns))
        if number and size:
            self._firsts[number] = leaf.starts[0]

    def _with_neighbour(self, number: int) -> int:
        """The leaf after it has joined a neighbour that has room; an empty one joins whichever there is."""
        size = len(self._leaves[number].starts)
        for first in (number - 1, number):
            if 0 <= first < len(self._leaves) - 1:
                other = self._leaves[first + (first == number)]
                if not size or size + len(other.starts) <= _JOINED:
                    self._join(first, first + 1)
                    return first
        return number

    def _split(self, number: int) -> None:
        old = self._leaves[number].columns
        size = len(old[0])
        parts = -(-size // (3 * _MOST // 4))
        cuts = [size * part // parts for part in range(parts + 1)]
        leaves = [
            _Leaf(self._code, tuple(column[low:high] for column in old))
            for low, high in pairwise(cuts)
        ]
        self._leaves[number : number + 1] = leaves
        self._firsts[number : number + 1] = [leaf.starts[0] for leaf in leaves]
        self._firsts[0] = 0


def _put(leaf: _Leaf, start: int, end: int, run: Run | None) -> None:
    """Replace [start, end) within one leaf."""
    starts, ends, lows, highs = leaf.columns
    low, high = bisect_right(ends, start), bisect_left(starts, end)  # the runs that reach into the range
    new: list[tuple[int, int, Run]] = []
    if low < high and starts[low] < start:
        new.append((starts[low], start, Run(lows[low], highs[low])))
    elif low and ends[low - 1] == start:
        low -= 1
        new.append((starts[low], start, Run(lows[low], highs[low])))
    if run is not None:
        _append(new, start, end, run)
    if low < high and ends[high - 1] > end:
        last = high - 1
        _append(new, end, ends[last], Run(lows[last], highs[last]).advanced(end - starts[last]))
    elif high < len(starts) and starts[high] == end:
        _append(new, end, ends[high], Run(lows[high], highs[high]))
        high += 1
    starts[low:high] = array(starts.typecode, [one[0] for one in new])
    ends[low:high] = array(ends.typecode, [one[1] for one in new])
    lows[low:high] = array("Q", [one[2].low for one in new])
    highs[low:high] = array("I", [one[2].high for one in new])


def _append(runs: list[tuple[int, int, Run]], start: int, end: int, run: Run) -> None:
    """Add a run, as part of the last if it continues that."""
    if runs:
        first, stop, before = runs[-1]
        if stop == start and before.advanced(start - first) == run:
            runs[-1] = (first, end, before)
            return
    runs.append((start, end, run))
