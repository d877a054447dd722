"""The machine as its security processor reaches it: the board's side of ``SystemBus``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psp.system_bus import PAGE_BYTES, CoreConfiguration, RmpEntry

if TYPE_CHECKING:
    from node.board import Board


class HostSystemBus:
    """Wires the security processor to a board's DRAM, key slots, RMP and cores."""

    def __init__(self, board: Board, min_sev_asid: int) -> None:
        self._board = board
        self.max_asid = board.product.max_asid
        self.min_sev_asid = min_sev_asid
        self.dram_bytes = board.dram.size_bytes
        self.cores = CoreConfiguration(
            snp_enabled=board.rmp is not None,
            mtrr_fix_dram_mod_enabled=board.rmp is not None,
            hsave_pa_zero=True,
            smt_enabled=board.product.threads_per_core > 1,
        )

    def core_configuration(self) -> CoreConfiguration:
        """The settings of all cores; the start-up code of this version sets them rightly."""
        return self.cores

    def read(self, spa: int, length: int) -> bytes:
        """Read DRAM without a key."""
        return self._board.controller.read(spa, length, 0)

    def write(self, spa: int, data: bytes) -> None:
        """Write DRAM without a key."""
        self._board.controller.write(spa, data, 0)

    def read_guest(self, spa: int, length: int, asid: int) -> bytes:
        """Read through an ASID's key."""
        return self._board.controller.read(spa, length, asid)

    def write_guest(self, spa: int, data: bytes, asid: int) -> None:
        """Write through an ASID's key."""
        self._board.controller.lay(spa, data, asid)

    def encrypt_in_place(self, spa: int, length: int, asid: int) -> None:
        """Write memory back through an ASID's key."""
        self._board.controller.encrypt_in_place(spa, length, asid)

    def install_key(self, asid: int, key: bytes) -> None:
        """Load a key slot."""
        self._board.controller.install_key(asid, key)

    def remove_key(self, asid: int) -> None:
        """Empty a key slot."""
        self._board.controller.remove_key(asid)

    def wbinvd_count(self) -> int:
        """Completed WBINVDs on all cores."""
        return self._board.wbinvds

    def rmp_covers(self, spa: int) -> bool:
        """Whether there is an RMP and the page is in it."""
        return self._board.rmp is not None and 0 <= spa < self.dram_bytes

    def rmp_initialise(self) -> None:
        """Zero the RMP."""
        if self._board.rmp is not None:
            self._board.rmp.initialise()

    def rmp_entry(self, spa: int) -> RmpEntry:
        """The effective entry of a page."""
        return self._board.rmp.entry(spa // PAGE_BYTES * PAGE_BYTES) if self._board.rmp is not None else RmpEntry()

    def rmp_set(self, spa: int, entry: RmpEntry) -> None:
        """Replace an entry."""
        if self._board.rmp is not None:
            self._board.rmp.set_entry(spa, entry)

    def rmp_pages_of_asid(self, asid: int) -> int:
        """Pages assigned to an ASID."""
        return self._board.rmp.pages_of_asid(asid) if self._board.rmp is not None else 0
