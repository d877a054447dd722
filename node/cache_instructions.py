"""The host's instructions that manage and time caches.

On a board without caches they take their time and change nothing, and every load is as fast as any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from node import operations as op
from node.core_msrs import INVD_WBINVD, Msr
from node.dram import MachineCheck
from node.fault_answers import FAULTS, answer_to
from node.memory_controller import HOST_KEY, NoHostKey
from psp.system_bus import PAGE_BYTES

if TYPE_CHECKING:
    from node.board import Board


class CacheInstructions:
    """Executes one operation on the caches of all cores at a time."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def clflush(self, one: op.HostClflush) -> op.Answer:
        """CLFLUSH of a range: on a coherent part it reaches the lines of guests too."""
        if one.length < 0 or not 0 <= one.spa <= self._board.dram.size_bytes - one.length:
            return answer_to(MachineCheck(one.spa, one.length), one.spa)
        if one.encrypted and not self._board.controller.has_key(HOST_KEY):
            return answer_to(NoHostKey(one.spa), one.spa)
        if self._board.caches is not None:
            self._board.caches.clflush(one.spa, one.length, HOST_KEY if one.encrypted else 0)
        return None

    def timed_read(self, one: op.HostTimedRead) -> op.Answer:
        """A load, and how long it took."""
        try:
            self._board.bus.host_view.read(one.spa, 1, HOST_KEY if one.encrypted else 0)
        except FAULTS as fault:
            return answer_to(fault, one.spa)
        return self._board.load_ns

    def wbinvd(self, _: op.Wbinvd) -> op.Answer:
        """WBINVD on all cores; the security processor knows when it is done."""
        if self._board.caches is not None:
            self._board.caches.wbinvd()
        self._board.controller.flush()
        self._board.bus.wbinvds += 1
        return None

    def invd(self, _: op.Invd) -> op.Answer:
        """INVD: a WBINVD where HWCR or microcode makes one of it, or the part is not affected.

        The security processor does not count it: no firmware interface names INVD.
        """
        caches = self._board.caches
        if caches is None:
            return None
        set_so = all(value & INVD_WBINVD for value in self._board.msrs.values(Msr.HWCR))
        if caches.switches.invd_drops and not (set_so or self._board.platform.invd_writes_back):
            caches.invd()
        else:
            caches.wbinvd()
            caches.flush()
        return None

    def vm_page_flush(self, one: op.VmPageFlush) -> op.Answer:
        """MSR C001_011E: #GP for an ASID that no guest can have, or a page that is none."""
        board = self._board
        if not 1 <= one.asid <= board.product.max_asid or one.spa % PAGE_BYTES:
            return op.Fault(op.FaultKind.GENERAL_PROTECTION, one.spa)
        if not 0 <= one.spa < board.dram.size_bytes:
            return answer_to(MachineCheck(one.spa, PAGE_BYTES), one.spa)
        if board.caches is not None:
            board.caches.vm_page_flush(one.spa, PAGE_BYTES, one.asid)
        return None
