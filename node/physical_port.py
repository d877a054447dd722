"""What somebody does who has the DIMMs in his hands: no chip is asked, and no check is made.

He reads and writes cells as they lie, ciphertext where a key was used. Aliases and
lost ranges that he makes hold for every SPA that anybody on the board names.
"""

from __future__ import annotations

from node.dimm_routes import Unanswered, grounded
from node.dram import Dram


class PhysicalPort:
    """Access to a host's DIMMs from outside. Addresses are of cells, which the SPAs of the same number reach."""

    def __init__(self, dram: Dram) -> None:
        self._dram = dram

    def dump(self, at: int, length: int) -> bytes:
        """Cells as they are: a cold boot, or a probe. Raises MachineCheck outside of memory."""
        return self._dram.cells.read(at, length)

    def dump_written(self) -> tuple[tuple[int, bytes], ...]:
        """Runs of whole pages that somebody wrote: a dump of everything without the pages of zeros."""
        cells = self._dram.cells
        return tuple([(at, cells.read(at, length)) for at, length in cells.resident_runs(0, cells.size_bytes)])

    def poke(self, at: int, data: bytes) -> None:
        """Set cells. Raises MachineCheck outside of memory."""
        self._dram.cells.write(at, data)

    def alias(self, spa: int, length: int, at: int) -> None:
        """Let whole pages reach other cells: a DIMM that lies about its size. Raises ValueError, MachineCheck."""
        self._dram.alias(spa, length, at)

    def ground(self, line: int) -> None:
        """Let SPAs with address bit ``line`` set reach the cells of those without: an interposer's switch, on.

        Raises ValueError for what is no one bit above a page's.
        """
        for spa, length, at in grounded(line, self._dram.size_bytes):
            self.alias(spa, length, at)

    def unground(self, line: int) -> None:
        """The switch, off: cells that were hidden are back with what they held. Raises as ``ground``.

        Other routes of the same addresses are gone with it.
        """
        for spa, length, _ in grounded(line, self._dram.size_bytes):
            self.restore(spa, length)

    def drop(self, spa: int, length: int, reads: Unanswered = Unanswered.ONES) -> None:
        """Let whole pages reach no memory: writes are lost. Raises ValueError, MachineCheck."""
        self._dram.drop(spa, length, reads)

    def restore(self, spa: int, length: int) -> None:
        """Let whole pages reach their own cells again. Raises ValueError, MachineCheck."""
        self._dram.straighten(spa, length)
