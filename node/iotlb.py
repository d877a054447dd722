"""Translations that an IOMMU remembers, tagged by domain, until it is told to forget them.

Devices of one domain share entries, whatever page tables their device table
entries name. With a translation goes what the RMP said of its pages, until an instruction or the
firmware changes an entry, of whatever page: what was poked into the table meanwhile is not seen.
"""

from __future__ import annotations

from node.iommu_page_table import Translation

MOST_ENTRIES = 1024
"""Then the oldest goes. Real sizes are not published."""

_SIZES = (12, 21, 30)


class Iotlb:
    """Translations by (domain, size, page)."""

    def __init__(self) -> None:
        self._entries: dict[tuple[int, int, int], Translation] = {}
        self._passed: set[tuple[int, int, bool]] = set()
        """(Domain, I/O virtual page, write) of accesses that the RMP let through."""

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, domain: int, iova: int) -> Translation | None:
        """What is remembered of an address, 4 KiB before larger pages."""
        for bits in _SIZES:
            found = self._entries.get((domain, bits, iova >> bits))
            if found is not None:
                return found
        return None

    def has_passed(self, domain: int, iova: int, *, write: bool) -> bool:
        """Whether the RMP has let such an access through."""
        return (domain, iova >> _SIZES[0], write) in self._passed

    def let_through(self, domain: int, iova: int, *, write: bool) -> None:
        """Remember that it did."""
        if len(self._passed) >= MOST_ENTRIES:
            self._passed.clear()
        self._passed.add((domain, iova >> _SIZES[0], write))

    def entries_changed(self) -> None:
        """An entry of the RMP is another: it is asked anew."""
        if self._passed:
            self._passed.clear()

    def put(self, domain: int, iova: int, translation: Translation) -> None:
        """Remember a walk."""
        if len(self._entries) >= MOST_ENTRIES:
            del self._entries[next(iter(self._entries))]
            self._passed.clear()
        self._entries[domain, translation.bits, iova >> translation.bits] = translation

    def forget(self, domain: int, start: int, end: int) -> None:
        """Drop what a domain's addresses in [start, end) touch."""
        self._passed.clear()
        if end - start == 1 << _SIZES[0]:
            for bits in _SIZES:
                self._entries.pop((domain, bits, start >> bits), None)
            return
        self._entries = {
            key: one
            for key, one in self._entries.items()
            if key[0] != domain or key[2] << key[1] >= end or key[2] + 1 << key[1] <= start
        }

    def forget_all(self) -> None:
        """Drop everything."""
        self._passed.clear()
        self._entries.clear()
