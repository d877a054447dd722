"""Branches of guests and the host, and arithmetic: all they do is to leave traces in predictors, counters, caches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from node import operations as op
from node.branch_operations import MOST_DISCLOSING, MOST_TIMES
from node.branch_target_buffer import HOST, BranchTargetBuffer
from node.fault_answers import FAULTS, answer_to, undefined
from node.guest_access import Way
from node.performance_counters import CounterEvent, PerformanceCounters
from node.vmcb import Vmcb
from node.vmsa import SevFeature

if TYPE_CHECKING:
    from node.board import Board

_EVENTS = frozenset(CounterEvent)


class BranchInstructions:
    """Executes them on one board."""

    def __init__(self, board: Board, way: Way, predictor: BranchTargetBuffer, counters: PerformanceCounters) -> None:
        self._board = board
        self._way = way
        self._predictor = predictor
        self._counters = counters
        self.guest_table: Mapping[type, Callable[..., op.Answer]] = {
            op.Branch: _or_fault(self._branch),
            op.IndirectBranch: _or_fault(self._indirect_branch),
            op.Arithmetic: self._arithmetic,
        }
        self.host_table: Mapping[type, Callable[..., op.Answer]] = {
            op.HostBranch: self._host_branch,
            op.HostReadCounter: self._host_read_counter,
        }

    def _branch(self, vmcb: Vmcb, one: op.Branch) -> op.Answer:
        self._count(vmcb, taken=one.taken)
        return None

    def _indirect_branch(self, vmcb: Vmcb, one: op.IndirectBranch) -> op.Answer:
        if len(one.disclosing) > MOST_DISCLOSING:
            return op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)
        # What another left on this thread since, it left before a VMRUN: with IBPB on entry that is forgotten.
        isolated = bool(self._features(vmcb) & (SevFeature.BTB_ISOLATION | SevFeature.IBPB_ON_ENTRY))
        predicted = self._predictor.predict(vmcb.core, one.site, vmcb.asid, isolated=isolated)
        if predicted is not None and predicted != one.target:
            for code, gpa in one.disclosing:
                if code == predicted:
                    self._run_ahead(vmcb, gpa)
        self._predictor.train(vmcb.core, one.site, vmcb.asid, one.target)
        self._count(vmcb, taken=True)
        return None

    def _arithmetic(self, vmcb: Vmcb, one: op.Arithmetic) -> op.Answer:
        if not (0 <= one.operand < 1 << 64 and 0 <= one.times <= MOST_TIMES):
            return op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)
        self._board.bus.energy.use(vmcb.core, one.operand, one.times)
        return None

    def _run_ahead(self, vmcb: Vmcb, gpa: int) -> None:
        """A load that never retires: it leaves a line, and faults with nobody."""
        try:
            segments, asid = self._way.resolve(vmcb, gpa, 1, private=False)
            for spa, length, _, key in segments:
                self._board.controller.read(spa, length, asid or key)
        except FAULTS:
            return

    def _host_branch(self, one: op.HostBranch) -> op.Answer:
        if not 0 <= one.core < self._board.product.threads:
            return undefined()
        self._predictor.train(one.core, one.site, HOST, one.target)
        return None

    def _host_read_counter(self, one: op.HostReadCounter) -> op.Answer:
        if not 0 <= one.core < self._board.product.threads or one.event not in _EVENTS:
            return op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)
        return self._counters.read(one.core, one.event)

    def _count(self, vmcb: Vmcb, *, taken: bool) -> None:
        if self._features(vmcb) & SevFeature.PMC_VIRTUALIZATION:
            return
        self._counters.count(vmcb.core, CounterEvent.RETIRED_BRANCHES)
        if taken:
            self._counters.count(vmcb.core, CounterEvent.RETIRED_TAKEN_BRANCHES)

    def _features(self, vmcb: Vmcb) -> int:
        return self._board.events.features(vmcb)


def _or_fault(execute: Callable[[Vmcb, Any], op.Answer]) -> Callable[[Vmcb, Any], op.Answer]:
    """What a branch does, or the fault of reading SEV_FEATURES where the save area cannot be read any more."""

    def answer(vmcb: Vmcb, one: Any) -> op.Answer:
        try:
            return execute(vmcb, one)
        except FAULTS as fault:
            return answer_to(fault, 0)

    return answer
