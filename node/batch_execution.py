"""Execution of a guest's batch where somebody looks on: up to the first nested fault, or with a log of stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from node import operations as op
from node.batch_books import mark_stores
from node.dirty_log import DirtyLog
from node.vcpu_levels import has_left

if TYPE_CHECKING:
    from node.board import Board
    from node.vmcb import Vmcb

Batch = tuple[op.GuestOperation, ...]
Answers = tuple[op.Answer, ...]


def up_to_a_fault(board: Board, vmcb: Vmcb, batch: Batch) -> tuple[Answers, bool]:
    """Execute a batch up to a nested fault; whether there was one, with which the vCPU is out."""
    answers: Answers = ()
    for one in batch:
        some = board.execute_guest(vmcb, (one,))
        if not some:
            break  # Its exit has not come back.
        fault = some[0]
        if isinstance(fault, op.Fault) and fault.kind in _NESTED:
            board.nested_exit(vmcb, fault)
            return answers, True
        answers += some
        if has_left(board, vmcb):
            break
    return answers, False


def execute_logged(board: Board, log: DirtyLog, now_ns: int, vmcb: Vmcb, batch: Batch) -> Answers:
    """Execute, and note what is written; where a store by virtual address goes only the walk knows."""
    memory = board.virtual_memory
    memory.stored = lambda gpa, length: log.mark(gpa, length, now_ns)
    try:
        answers = board.execute_guest(vmcb, batch)
    finally:
        memory.stored = None
    mark_stores(log, batch[: len(answers)], answers, now_ns)
    return answers


_NESTED = frozenset({op.FaultKind.NESTED_PAGE_FAULT, op.FaultKind.RMP_FAULT})
