"""PVALIDATE, RMPADJUST and RMPQUERY on a board: privilege and registers, then the nested walk, then the RMP.

Each instruction walks one address, also where it asks for 2 MiB; what else the hypervisor maps inside of a large
page it does not see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from node import operations as op
from node.fault_answers import FAULTS, answer_to, undefined
from node.nested_page_table import NestedPageFault, NestedPageTable
from node.platform import Protection
from node.rmp import GuestCore, ReverseMapTable, cannot_adjust, cannot_query
from node.rmp_faults import ERROR_ENC, RmpCode
from node.vmcb import Vmcb
from psp.system_bus import LARGE_PAGE_BYTES

if TYPE_CHECKING:
    from node.board import Board


class RmpInstructions:
    """Executes one operation of an SNP guest at a time; for others the instructions are undefined."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._takes_mmio = Protection.MMIO_VALIDATION in board.platform.disabled
        self.table: Mapping[type, Callable[..., op.Answer]] = {
            op.PValidate: self._pvalidate,
            op.RmpAdjust: self._rmpadjust,
            op.RmpQuery: self._rmpquery,
        }

    def _pvalidate(self, vmcb: Vmcb, one: op.PValidate) -> op.Answer:
        rmp = self._board.rmp
        if not vmcb.rmp_checked or rmp is None:
            return undefined()
        unchanged, gpa = False, one.gpa
        core = GuestCore(vmcb.asid, vmcb.vmpl)
        try:
            if self._board.controls.of(vmcb).cpl:
                return op.Fault(op.FaultKind.GENERAL_PROTECTION, one.gpa)
            refused = rmp.cannot_validate(gpa, core, one.length, one.large)
            if refused:
                return op.PValidateResult(int(refused), unchanged)
            for spa, length in self._walked(rmp, vmcb, core, one):
                if _meets(spa, length, rmp.switches.mmio) and not self._takes_mmio:
                    return op.PValidateResult(int(RmpCode.FAIL_INPUT), unchanged)
                code, same = rmp.pvalidate(spa, gpa, core, length, one.large, one.validate)
                unchanged = unchanged or same
                if code:
                    return op.PValidateResult(int(code), unchanged)
                gpa += length
        except FAULTS as fault:
            return _private(fault, gpa)
        return op.PValidateResult(0, unchanged)

    def _rmpadjust(self, vmcb: Vmcb, one: op.RmpAdjust) -> op.Answer:
        rmp = self._board.rmp
        if not vmcb.rmp_checked or rmp is None:
            return undefined()
        gpa = one.gpa
        core = GuestCore(vmcb.asid, vmcb.vmpl)
        try:
            if self._board.controls.of(vmcb).cpl:
                return op.Fault(op.FaultKind.GENERAL_PROTECTION, one.gpa)
            refused = cannot_adjust(gpa, core, one.length, one.large, one.target, one.permissions)
            if refused:
                return int(refused)
            for spa, length in self._walked(rmp, vmcb, core, one):
                code = rmp.rmpadjust(spa, gpa, core, length, one.large, one.target, one.permissions, one.vmsa)
                if code:
                    return int(code)
                gpa += length
        except FAULTS as fault:
            return _private(fault, gpa)
        return 0

    def _rmpquery(self, vmcb: Vmcb, one: op.RmpQuery) -> op.Answer:
        rmp = self._board.rmp
        if not vmcb.rmp_checked or rmp is None:
            return undefined()
        try:
            if self._board.controls.of(vmcb).cpl:
                return op.Fault(op.FaultKind.GENERAL_PROTECTION, one.gpa)
            core = GuestCore(vmcb.asid, vmcb.vmpl)
            refused = cannot_query(one.gpa, core, one.target)
            if refused:
                return op.RmpQueryResult(int(refused), 0, False)
            ((spa, *_),) = vmcb.nested.translate(one.gpa, 1)
            code, permissions, large = rmp.rmpquery(spa, one.gpa, core, one.target)
        except FAULTS as fault:
            return _private(fault, one.gpa)
        return op.RmpQueryResult(int(code), permissions, large)

    def _walked(
        self, rmp: ReverseMapTable, vmcb: Vmcb, core: GuestCore, one: op.PValidate | op.RmpAdjust
    ) -> Iterator[tuple[int, int]]:
        """Where a range lies, as (SPA, length) in order. Raises RmpFault, by a switch, and as ``_large``."""
        if one.large:
            yield from _large(vmcb.nested, one.gpa, one.length)
            return
        gpa = one.gpa
        for spa, size, mapped_large, _ in vmcb.nested.translate(one.gpa, one.length):
            if mapped_large and rmp.switches.nested_size_checked:
                rmp.refuse_size(spa, gpa, core)
            yield spa, size
            gpa += size


def _meets(spa: int, length: int, window: tuple[int, int]) -> bool:
    """Whether a range has anything of a window, as (SPA, length)."""
    first, size = window
    return spa < first + size and first < spa + length


def _private(fault: Exception, gpa: int) -> op.Fault:
    """The fault of an instruction whose page the guest must have mapped with C=1: a private access."""
    if isinstance(fault, NestedPageFault):
        fault.error |= ERROR_ENC
    return answer_to(fault, gpa)


def _large(nested: NestedPageTable, gpa: int, length: int) -> Iterator[tuple[int, int]]:
    """Where a range of 2 MiB pages lies, as (SPA, length) in order; of each its first address says it.

    Raises NestedPageFault, before anything is done, for an address without mapping: one that is walked, or any of
    several pages.
    """
    if length == LARGE_PAGE_BYTES:
        ((spa, *_),) = nested.translate(gpa, 1)
        yield spa, length
        return
    left = 0  # bytes of a large page whose first address lies in an earlier part
    for spa, size, *_ in nested.translate(gpa, length):
        skipped = min(left, size)
        left -= skipped
        at, rest = spa + skipped, size - skipped
        whole = rest - rest % LARGE_PAGE_BYTES
        if whole:
            yield at, whole
        if rest > whole:
            yield at + whole, LARGE_PAGE_BYTES
            left = LARGE_PAGE_BYTES - (rest - whole)
