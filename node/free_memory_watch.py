"""Whether anybody does anything in a host's free memory: as long as nobody does, it is empty, and the host's to write.

Who relies on that need not know which free frames are whose. Kept ranges (``node.kept_ranges``) lie over all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from node.dimm_cells import MachineCheck
from node.rmp_faults import RmpFault
from psp.system_bus import PAGE_BYTES

if TYPE_CHECKING:
    from node.board import Board
    from node.entry_runs import EntryRuns
    from node.frame_allocator import FrameAllocator, Pieces
    from node.rmp import ReverseMapTable


def may_be_written(board: Board, spa: int, length: int) -> bool:
    """Whether a store of the host to whole pages would be let through."""
    controller, rmp = board.controller, board.rmp
    if (spa | length) % PAGE_BYTES or spa < 0 or length <= 0:
        return False
    try:
        if spa + length > controller.answers_to:
            controller.expect(spa, length)
        if rmp is not None:
            rmp.check_host_write(spa, length)
    except (MachineCheck, RmpFault):
        return False
    return True


class FreeMemoryWatch:
    """That of one board. ``over`` is called when it ends, before whatever ends it is done."""

    def __init__(self, board: Board, over: Callable[[], None]) -> None:
        self._board = board
        self._over = over
        self.frames: FrameAllocator | None = None
        """The hypervisor's, where there is one to watch for."""
        self.starts: list[int] = []
        """Where the ranges begin; none unless it is on."""
        self._rmp: ReverseMapTable | None = None
        self._entries: EntryRuns | None = None
        self._changes = 0
        """Of the RMP's entries, when those of free memory were found to be the host's."""

    def goes_on(self) -> bool:
        """Whether it is on and has seen nothing; else it ends. Changes of the RMP elsewhere end it, too.

        To be asked before frames are taken later: what came back since then is watched from now on. No act before
        finds its frames there.
        """
        if not self.starts:
            return False
        entries, frames = self._entries, self.frames
        if self._board.rmp is not self._rmp or (entries is not None and entries.changes != self._changes):
            self.end()
        elif frames is not None and frames.returned:
            returned, frames.returned = frames.returned, []
            self._add(returned)
        return bool(self.starts)

    def begin(self) -> bool:
        """Begin it; False where free memory is not empty, or not the host's to write."""
        frames, rmp = self.frames, self._board.rmp
        if frames is None:
            return False
        self._rmp = rmp
        self._entries = entries = None if rmp is None else rmp.checks.runs
        self._changes = 0 if entries is None else entries.changes
        self._add(frames.free_runs())
        frames.returned = [] if self.starts else None
        return bool(self.starts)

    def end(self) -> None:
        """End it, unless it is not on."""
        if not self.starts:
            return
        assert self.frames is not None
        self.frames.returned = None
        self._board.dram.cells.let_go_all(self.starts)
        self.starts = []
        self._over()

    def _add(self, pieces: Pieces) -> None:
        for spa, length in pieces:
            if not self._is_untouched(spa, length):
                self.end()
                return
            self.starts.append(spa)

    def _is_untouched(self, spa: int, length: int) -> bool:
        """Keep a range, if that is true of it."""
        board = self._board
        rmp = board.rmp
        # Of entries that lie in DRAM nobody would hear; memory without any is the host's.
        if rmp is not None and not rmp.checks.are_without_entries(spa, length):
            return False
        if spa + length > board.controller.answers_to:
            return False
        return board.dram.cells.keep_blank(spa, length, self._touched)

    def _touched(self, _spa: int, _length: int) -> None:
        self.end()  # Who turns out to be there is told next.
