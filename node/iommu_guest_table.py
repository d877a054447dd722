"""An IOMMU page table that shows a device a guest's memory at the guest's own addresses.

2 MiB leaves where the guest's memory is in whole blocks of one kind, 4 KiB ones elsewhere: under SNP a device's mapping
may not be larger than the entries of the RMP that it leads to. Array work: a table is a page of bytes, written whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from node.iommu_page_table import TABLE_BYTES, leaf, table_pointer
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

LEVELS = 4
"""Guest addresses of 48 bits."""
_ENTRIES = TABLE_BYTES // 8
_SMALL, _LARGE = 1, 2
_NEXT_LEVEL = 0b111 << 9
"""Zero in a leaf."""

Piece = tuple[int, int, int, bool]
"""GPA, SPA and length of a run of memory, and whether it is whole blocks of 2 MiB."""
Words = NDArray[np.uint64]


class GuestTable:
    """The tables of one guest; ``frame`` gives a page for one. ``c_bit`` is put into each leaf."""

    def __init__(self, frame: Callable[[], int], c_bit: int = 0) -> None:
        self._frame = frame
        self._leaf = np.uint64(leaf(0) | c_bit)
        self._tables: dict[tuple[int, int], tuple[int, Words]] = {}
        """SPA and words, by level and the address above what the table covers."""
        self._changed: dict[tuple[int, int], None] = {}
        self.root = self._table(LEVELS, 0)[0]

    @property
    def pages(self) -> tuple[int, ...]:
        """Every page that a table takes."""
        return tuple([spa for spa, _ in self._tables.values()])

    def map(self, pieces: Iterable[Piece]) -> None:
        """Show memory; what was shown there before is shown no more."""
        for gpa, spa, length, large in pieces:
            level, size = (_LARGE, LARGE_PAGE_BYTES) if large else (_SMALL, PAGE_BYTES)
            done = 0
            while done < length:
                at = gpa + done
                words = self._words(level, at)
                first = at // size % _ENTRIES
                count = min(_ENTRIES - first, (length - done) // size)
                addresses = np.arange(count, dtype=np.uint64) * np.uint64(size) + np.uint64(spa + done)
                words[first : first + count] = addresses | self._leaf
                done += count * size

    def unmap(self, gpa: int, length: int) -> None:
        """Show so many pages of 4 KiB no more; a block that is shown whole is cut."""
        for at in range(gpa, gpa + length, PAGE_BYTES):
            self._words(_SMALL, at)[at // PAGE_BYTES % _ENTRIES] = 0

    def taken(self) -> list[tuple[int, bytes]]:
        """Tables that changed since they were last taken, as (SPA, bytes); those below before those above."""
        changed = sorted(self._changed)
        self._changed.clear()
        return [(spa, words.tobytes()) for spa, words in (self._tables[key] for key in changed)]

    def _words(self, level: int, gpa: int) -> Words:
        """The table of a level that has the entry of an address; made where it is missing."""
        for above in range(LEVELS, level, -1):
            words = self._table(above, gpa)[1]
            at = gpa >> _shift(above) & _ENTRIES - 1
            before = int(words[at])
            if before and above == _LARGE and not before & _NEXT_LEVEL:
                # A leaf: its block goes on in small ones.
                _, inner = self._table(above - 1, gpa)
                size = np.arange(_ENTRIES, dtype=np.uint64) * np.uint64(PAGE_BYTES)
                inner[:] = np.uint64(before) + size
                before = 0
            if not before:
                words[at] = table_pointer(self._table(above - 1, gpa)[0], above - 1)
                self._changed[above, gpa >> _shift(above + 1)] = None
        self._changed[level, gpa >> _shift(level + 1)] = None
        return self._table(level, gpa)[1]

    def _table(self, level: int, gpa: int) -> tuple[int, Words]:
        key = level, gpa >> _shift(level + 1)
        if key not in self._tables:
            self._tables[key] = self._frame(), np.zeros(_ENTRIES, np.uint64)
            self._changed[key] = None
        return self._tables[key]


def _shift(level: int) -> int:
    return 12 + 9 * (level - 1)
