"""Translations that an IOMMU remembers, tagged by domain, until it is told to forget them.

Devices of one domain share entries, whatever page tables their device table
entries name. Whether the RMP lets an access through is not remembered: it is asked
each time, as if RMPUPDATE, PVALIDATE and firmware dropped entries at once.
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

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, domain: int, iova: int) -> Translation | None:
        """What is remembered of an address, 4 KiB before larger pages."""
        for bits in _SIZES:
            found = self._entries.get((domain, bits, iova >> bits))
            if found is not None:
                return found
        return None

    def put(self, domain: int, iova: int, translation: Translation) -> None:
        """Remember a walk."""
        if len(self._entries) >= MOST_ENTRIES:
            del self._entries[next(iter(self._entries))]
        self._entries[domain, translation.bits, iova >> translation.bits] = translation

    def forget(self, domain: int, start: int, end: int) -> None:
        """Drop what a domain's addresses in [start, end) touch."""
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
        self._entries.clear()
