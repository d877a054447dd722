"""Consistency checks of a control block, which VMRUN makes before the guest executes anything.

That a block which fails ends in VMEXIT_INVALID is a reading of APM volume 2, 15.5.1; the ASIDs of each kind
of guest are those of CPUID Fn8000_001F, ECX and EDX (15.34.2 and 15.35.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from node.dimm_cells import MachineCheck
from node.generation import CAPABILITIES, Generation
from node.rmp_checks import VmsaInUse
from node.rmp_faults import RmpFault
from node.tlb import TlbControl
from node.vmexit import ExitCode
from node.vmsa import SevFeature
from psp.asid_ranges import AsidRanges
from psp.system_bus import PAGE_BYTES

if TYPE_CHECKING:
    from node.board import Board
    from node.vmcb import Vmcb


_TLB_CONTROLS = frozenset(TlbControl)


class VmrunChecks:
    """What must be true of a control block on one board."""

    def __init__(self, board: Board) -> None:
        self._board = board
        # MinSEVASID and the highest ASID stay as the platform booted.
        ranges = AsidRanges(board.bus)
        self._asids: Mapping[Generation, range] = {
            Generation.SEV: ranges.sev,
            Generation.SEV_ES: ranges.es,
            Generation.SEV_SNP: ranges.snp,
            Generation.SEV_TIO: ranges.snp,
        }

    def consistent(self, generation: Generation, asid: int, save_area_spa: int) -> bool:
        """Whether VMRUN accepts an ASID and a save area, whatever lies there.

        The ASID must be one of the guest's kind: 0 is the host's, plain SEV has those from MinSEVASID on, SEV-ES and
        SNP those below. Guests without a key have ASIDs that this board does not number. The save area must be
        an aligned page of memory. An SNP guest needs an RMP.
        """
        if CAPABILITIES[generation].rmp and self._board.rmp is None:
            return False
        asids = self._asids.get(generation)
        if asids is not None and asid not in asids:
            return False
        return not save_area_spa % PAGE_BYTES and 0 <= save_area_spa <= self._board.bus.dram_bytes - PAGE_BYTES

    def code(self, vmcb: Vmcb) -> int:
        """What VMRUN comes to: 0, or its exit code where a block, its keys or its save area are not in order."""
        board = self._board
        if vmcb.tlb_control not in _TLB_CONTROLS or not self.passed(vmcb):
            return ExitCode.INVALID
        if vmcb.rmp_checked:
            assert board.rmp is not None  # or the block would not be consistent
            try:
                if not board.rmp.checks.may_enter(vmcb.save_area_spa, vmcb.asid):
                    return ExitCode.INVALID
            except VmsaInUse:
                return ExitCode.BUSY
        for key in (vmcb.asid if vmcb.encrypted else 0, board.save_areas.key(vmcb)):
            if key and not board.controller.has_key(key):
                return ExitCode.INVALID
        try:
            if not board.save_areas.fits(vmcb):
                return board.platform.save_area_refused
            return 0 if board.events.accepts(vmcb) else ExitCode.INVALID
        except MachineCheck:  # No memory answers there: firmware has it for itself, or a DIMM has lost it.
            return ExitCode.INVALID

    def on_thread(self, vmcb: Vmcb, thread: int) -> int:
        """The same where the hardware thread is known: 0, or the exit code where its core refuses the guest there.

        A guest with SMT protection wants the core's other threads idle: whatever VMRUN put there must be out.
        """
        board = self._board
        if vmcb.encrypted and not board.bus.may_run_on(vmcb.asid, thread):
            return ExitCode.INVALID
        per_core = board.product.threads_per_core
        first = thread // per_core * per_core
        siblings = [one for one in range(first, first + per_core) if one != thread]
        if any(map(board.running.runs_on, siblings)) and board.events.features(vmcb) & SevFeature.SMT_PROTECTION:
            return ExitCode.IDLE_REQUIRED
        return 0

    def passed(self, vmcb: Vmcb) -> bool:
        """Whether VMRUN accepts a block; False is VMEXIT_INVALID.

        Where no RMP entry has to make the save area the guest's own, the host must be allowed to write there,
        because an exit stores registers. That of an SNP guest is for the RMP to judge.
        """
        if not vmcb.consistent or not self._is_on_its_side(vmcb):
            return False
        rmp = self._board.rmp
        if vmcb.rmp_checked or rmp is None:
            return True
        try:
            rmp.check_host_write(vmcb.save_area_spa, PAGE_BYTES)
        except RmpFault:
            return False
        return True

    def _is_on_its_side(self, vmcb: Vmcb) -> bool:
        """Whether an ASID is on its guest's side of MAX_SNP_ASID, where the switch has VMRUN ask for that."""
        if not self._board.product.rmp.vmrun_splits_asids:
            return True
        split = self._board.psp.asid_ranges
        if vmcb.generation is Generation.SEV_ES:
            return vmcb.asid in split.es
        return not vmcb.rmp_checked or vmcb.asid in split.snp
