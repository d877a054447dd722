"""A guest's loads and stores of devices' registers.

Where its nested tables lead nowhere they are the hypervisor's to answer. Where they lead to a card in a slot they go
there: by a private access of an SNP guest with the T bit, if the RMP lets it through as it does for memory; by
another without. A guest whose ASID is fenced reaches no card: stores are lost, loads read ones (``spec/tio/iommu.md``,
section 6).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from node import operations as op
from node.fault_answers import FAULTS, answer_to
from node.guest_access import Way
from node.nested_page_table import READ, WRITE, NestedPageFault
from node.rmp_checks import PERMIT_READ, PERMIT_WRITE
from node.rmp_faults import ERROR_PRESENT
from node.root_complex import WIDTHS
from node.vmcb import Vmcb

if TYPE_CHECKING:
    from node.board import Board

Exit = Callable[[Vmcb, int, int, int | None], op.Answer]
"""What becomes of an access that leads nowhere: control block, GPA, length, and the value of a store."""
_ADDRESSES = 1 << 52
_PROTECTION = op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)


class GuestMmio:
    """Executes them."""

    def __init__(self, board: Board, way: Way, leave: Exit) -> None:
        self._board = board
        self._way = way
        self._leave = leave
        self.table: Mapping[type, Callable[..., op.Answer]] = {op.MmioLoad: self._load, op.MmioStore: self._store}

    def _load(self, vmcb: Vmcb, one: op.MmioLoad) -> op.Answer:
        return self._access(vmcb, one, None)

    def _store(self, vmcb: Vmcb, one: op.MmioStore) -> op.Answer:
        if one.length in WIDTHS and not 0 <= one.value < 1 << 8 * one.length:
            return _PROTECTION
        answer = self._access(vmcb, one, one.value)
        return answer if isinstance(answer, op.Fault) else None

    def _access(self, vmcb: Vmcb, one: op.MmioLoad | op.MmioStore, value: int | None) -> op.Answer:
        gpa, length = one.gpa, one.length
        if length not in WIDTHS or not 0 <= gpa < _ADDRESSES:
            return _PROTECTION
        private = one.private and vmcb.encrypted
        try:
            if value is None:
                segments, _ = self._way.resolve(vmcb, gpa, length, private, READ, PERMIT_READ)
            else:
                segments, _ = self._way.resolve(vmcb, gpa, length, private, WRITE, PERMIT_WRITE)
        except NestedPageFault as fault:
            # What a guest does in private is nothing that a handler shows its hypervisor.
            if private or fault.error & ERROR_PRESENT:
                return answer_to(fault, gpa)
            return self._leave(vmcb, gpa, length, value)
        except FAULTS as fault:
            return answer_to(fault, gpa)
        slots, spa = self._board.root_complex, segments[0][0]
        if slots is None or len(segments) > 1 or spa % length or slots.leads(spa, length) is None:
            return _PROTECTION  # Memory, where no device is; or an access that is not a register's.
        trusted = self._board.trusted_dma
        fenced = trusted is not None and vmcb.encrypted and trusted.fences.blocks(vmcb.asid)
        if fenced or (private and not vmcb.rmp_checked):
            return (1 << 8 * length) - 1
        if value is None:
            return slots.load(spa, length, tee=private)
        slots.store(spa, value, length, tee=private)
        return None
