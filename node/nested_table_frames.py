"""The pages that a hypervisor gave for one nested page table, and which table lies in which of them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import filterfalse, islice

from node.nested_table_pages import ROOT, served_bytes
from psp.system_bus import PAGE_BYTES

_LEVEL = PAGE_BYTES - 1


class TableFrames:
    """Tables by number (``nested_table_pages``). They take frames in the order in which these were given."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        """(SPA, length) of all that was given."""
        self._free: list[int] = []
        self._tables: dict[int, int] = {}
        self.any_lowest = False
        """Whether there ever was a table of 4 KiB pages."""
        self.root: int | None = None
        """SPA of the highest table: the first frame that was given."""

    def give(self, spa: int, length: int) -> None:
        """Take frames over."""
        self.ranges.append((spa, length))
        # The last is taken first, so that taking costs nothing.
        self._free[:0] = range(spa + length - PAGE_BYTES, spa - PAGE_BYTES, -PAGE_BYTES)
        if self.root is None and self._free:
            self.root = self._tables[ROOT] = self._free.pop()

    def claim(self, wanted: Iterable[int], most: int) -> int:
        """Give each wanted table a frame, all or none: how many frames are missing. ``most`` bounds the work."""
        tables, free = self._tables, self._free
        new = list(islice(filterfalse(tables.__contains__, wanted), len(free) + most + 1))
        left = len(free) - len(new)
        if left < 0:
            return -left
        if new:
            tables.update(zip(new, reversed(free[left:]), strict=True))
            del free[left:]
            self.any_lowest = self.any_lowest or 1 in [number & _LEVEL for number in new]
        return 0

    def drop_lowest(self, start: int, end: int) -> list[int]:
        """Free the tables of 4 KiB pages that serve nothing but [start, end); their SPAs."""
        if not self.any_lowest:
            return []
        size = served_bytes(1)
        numbers = [one for one in self._tables if one & _LEVEL == 1 and start <= one - 1 and one - 1 + size <= end]
        frames = [self._tables.pop(number) for number in numbers]
        self._free += frames
        return frames

    def serving(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """(first address, level, SPA) of the tables that serve any of [start, end), by level and address."""
        found = []
        for number, spa in self._tables.items():
            level = number & _LEVEL
            first = number - level
            if first < end and start < first + served_bytes(level):
                found.append((first, level, spa))
        return sorted(found, key=lambda one: (-one[1], one[0]))

    def table(self, first: int, level: int) -> int | None:
        """Where the table of a level that serves from ``first`` lies."""
        return self._tables.get(first | level)
