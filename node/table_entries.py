"""Entries of page tables as walks found them in memory, until somebody changes the pages they lie in.

What is remembered is bytes: every walk still follows, checks and marks them as ever. Whoever changes cells of the
DIMM, by whatever route, has them read anew; so have keys that come and go. Not for boards with caches, where a walk
would have to look for lines.
"""

from __future__ import annotations

from node.dram import Dram
from node.memory_controller import MemoryController
from psp.system_bus import PAGE_BYTES

MOST_KEPT = 8192
"""Entries; then all are forgotten. Tables may be hostile, and show an entry at every address."""

_ENTRY_BYTES = 8
_Place = tuple[int, int, int]
"""(SPA, length, key)."""


class TableEntries:
    """Memory as page walks read it."""

    def __init__(self, memory: MemoryController, dram: Dram) -> None:
        self.changes = 0
        """Goes up whenever something that a walk read may no longer be so."""
        self._memory = memory
        self._dram = dram
        self._found: dict[_Place, bytes] = {}
        self._places: dict[int, list[_Place]] = {}
        self.write = memory.write
        self.clear = memory.clear
        memory.on_change = dram.on_routes = self.forget_all

    def read(self, spa: int, length: int, asid: int) -> bytes:
        """Load an entry, or many. Raises as ``MemoryController.read``."""
        if length > _ENTRY_BYTES:
            return self._memory.read(spa, length, asid)
        place = (spa, length, asid)
        found = self._found.get(place)
        if found is None:
            found = self._memory.read(spa, length, asid)
            self._keep(place, found)
        return found

    def forget_all(self) -> None:
        """Read everything anew."""
        self.changes += 1
        self._found.clear()
        self._places.clear()

    def _keep(self, place: _Place, entry: bytes) -> None:
        if len(self._found) >= MOST_KEPT:
            self.forget_all()
        page = place[0] // PAGE_BYTES
        places = self._places.get(page)
        if places is None:
            if not self._dram.watch(page, self._forget):
                self.changes += 1
                return
            places = self._places[page] = []
        self._found[place] = entry
        places.append(place)

    def _forget(self, page: int) -> None:
        self.changes += 1
        for place in self._places.pop(page, ()):
            del self._found[place]
