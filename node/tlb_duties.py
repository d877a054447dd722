"""What VMRUN does to the translation buffer of its hardware thread: what the hypervisor asks, and what hardware owes.

A translation of an ASID serves whatever vCPU runs with that ASID. So the hypervisor owes a flush when
another VMCB runs with the ASID on the thread, or a vCPU comes to a thread where it ran before (KVM's
``pre_sev_run``). For an SNP guest the thread does it itself: the save area keeps which thread the vCPU
ran on (PCPU_ID) and which of that thread's runs with the ASID at its VMPL it was (TLB_ID); where they are
not the last ones, the ASID's translations of that VMPL go, so a vCPU may go back and forth between VMPLs.
The numbers themselves are the hardware's own business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.guest_access import tag
from node.platform import Protection
from node.tlb import Tlb, TlbControl
from node.vmsa import VMSA_FIELDS

if TYPE_CHECKING:
    from node.board import Board
    from node.vmcb import Vmcb

_PCPU, _ID = (VMSA_FIELDS[name] for name in ("PCPU_ID", "TLB_ID"))


class TlbDuties:
    """The flushes of VMRUN on all threads of a host."""

    def __init__(self, board: Board, tlb: Tlb) -> None:
        self._board = board
        self._tlb = tlb
        self._enforced = Protection.TLB_ID not in board.platform.disabled
        self._last: dict[tuple[int, int, int], int] = {}
        """For each thread, ASID and VMPL the TLB_ID of the vCPU that ran there last."""
        self._next = 1
        self._threads: dict[int, tuple[str, int]] = {}
        """Who runs where, of those whom the host's own scheduler entered."""

    def schedule(self, vm: str, vcpu: int) -> int:
        """A hardware thread of its own for a vCPU, the lowest that is free."""
        self.vacate(vm, vcpu)
        core = next(number for number in range(len(self._threads) + 1) if number not in self._threads)
        self._threads[core] = vm, vcpu
        return core

    def vacate(self, vm: str, vcpu: int) -> None:
        """A vCPU is off its thread; one that had none is left alone."""
        for core, who in list(self._threads.items()):
            if who == (vm, vcpu):
                del self._threads[core]

    def resume(self, vmcb: Vmcb) -> None:
        """Enter as an honest hypervisor does when it does not know who ran here last: with the ASID flushed."""
        self._tlb.flush(vmcb.core, tag(vmcb))
        self.enter(vmcb)

    def enter(self, vmcb: Vmcb) -> None:
        """A vCPU begins to run on its thread."""
        control = TlbControl(vmcb.tlb_control)
        if control is TlbControl.ALL:
            self._tlb.flush(vmcb.core)
        elif control is not TlbControl.NOTHING:
            self._tlb.flush(vmcb.core, tag(vmcb), keep_global=control is TlbControl.ASID_NOT_GLOBAL)
        if vmcb.rmp_checked and self._enforced:
            self._match(vmcb)

    def _match(self, vmcb: Vmcb) -> None:
        page = self._board.save_areas.load(vmcb)
        found = [int.from_bytes(page[field.offset :][: field.width], "little") for field in (_PCPU, _ID)]
        last = self._last.get((vmcb.core, vmcb.asid, vmcb.vmpl), 0)
        # Threads count from one here, so that a save area that never ran matches none.
        if found == [vmcb.core + 1, last]:
            return
        self._tlb.flush(vmcb.core, vmcb.asid, vmpl=vmcb.vmpl)
        self._last[vmcb.core, vmcb.asid, vmcb.vmpl] = self._next
        for field, value in ((_PCPU, vmcb.core + 1), (_ID, self._next)):
            self._board.save_areas.store_field(vmcb, field.offset, value.to_bytes(field.width, "little"))
        self._next += 1
