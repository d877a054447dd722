"""A host's memory by system-physical address: the cells of its DIMMs, and the routes that lead to them."""

from __future__ import annotations

from collections.abc import Callable

from node.dimm_cells import CHUNK_BYTES, WORD_BYTES, DimmCells, Fill, MachineCheck, Octets, Watcher, Words
from node.dimm_routes import DimmRoutes, Unanswered

__all__ = ["CHUNK_BYTES", "WORD_BYTES", "Dram", "Fill", "MachineCheck", "Octets", "Unanswered", "Words"]


class Dram:
    """``size_bytes`` of memory from address zero, with the methods of ``DimmCells``.

    As long as no route is set these are the cells' own, so routes cost nothing where there are none.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.cells = DimmCells(size_bytes)
        """What the DIMMs hold, whatever leads there."""
        self.on_routes: Callable[[], None] | None = None
        """Told that SPAs lead elsewhere than before."""
        self._routes = DimmRoutes(self.cells)
        self.has_routes = False
        """Whether any SPA reaches other cells than its own."""
        self._reach_by(self.cells)

    @property
    def resident_pages(self) -> int:
        """Pages that someone wrote."""
        return self.cells.resident_pages

    @property
    def resident_bytes(self) -> int:
        """Bytes of the pages that someone wrote."""
        return self.cells.resident_bytes

    def expect(self, spa: int, length: int) -> None:
        """Raises MachineCheck unless a range is in memory: for whoever does other work before the access itself."""
        if spa < 0 or length < 0 or spa + length > self.size_bytes:
            raise MachineCheck(spa, length)

    def watch(self, page: int, tell: Watcher) -> bool:
        """As ``DimmCells.watch``. False where routes are set, too: then a page is not where its address says."""
        return not self.has_routes and self.cells.watch(page, tell)

    def source(self, spa: int, length: int) -> tuple[bytes, int] | None:
        """As ``DimmCells.source``; None wherever there are routes."""
        return None if self.has_routes else self.cells.source(spa, length)

    def leads_away(self, spa: int, length: int) -> bool:
        """Whether any page of a range reaches other cells than its own, or none."""
        return self.has_routes and self._routes.lead_away(spa, length)

    def alias(self, spa: int, length: int, cells: int) -> None:
        """Let a range of whole pages reach the cells from ``cells`` on; its own keep what they hold, out of reach.

        Raises ValueError off page borders, MachineCheck outside of memory.
        """
        self._routes.alias(spa, length, cells)
        self._routes_changed()

    def drop(self, spa: int, length: int, reads: Unanswered = Unanswered.ONES) -> None:
        """Let a range of whole pages reach no memory: writes are lost. Raises as ``alias``."""
        self._routes.drop(spa, length, reads)
        self._routes_changed()

    def straighten(self, spa: int, length: int) -> None:
        """Let a range of whole pages reach its own cells again. Raises as ``alias``."""
        self._routes.straighten(spa, length)
        self._routes_changed()

    def _routes_changed(self) -> None:
        self.has_routes = len(self._routes) > 0
        self._reach_by(self._routes if self.has_routes else self.cells)
        if self.on_routes is not None:
            self.on_routes()

    def _reach_by(self, way: DimmCells | DimmRoutes) -> None:
        self.read, self.write = way.read, way.write
        self.words, self.writable_words = way.words, way.writable_words
        self.lay, self.laid, self.clear = way.lay, way.laid, way.clear
        self.refill, self.release, self.settle = way.refill, way.release, way.settle
        self.pieces, self.resident_runs = way.pieces, way.resident_runs
        self.keep, self.let_go = way.keep, way.let_go
