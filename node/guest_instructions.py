"""Instructions of a guest's vCPU on a board: what each operation does, and which faults come of it.

The identity is that of the control block; an operation that has no row in the table is #UD.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from node import operations as op
from node.exit_instructions import ExitInstructions
from node.fault_answers import FAULTS, answer_to, undefined
from node.guest_access import Way
from node.guest_mmio import GuestMmio
from node.intercepted_instructions import INTERCEPTED
from node.nested_page_table import WRITE
from node.paging_instructions import PagingInstructions
from node.rmp_checks import PERMIT_WRITE
from node.rmp_instructions import RmpInstructions
from node.stack_operations import MOST_STACK_BYTES
from node.svsm_operations import GUEST_WORK
from node.time_stamp_counter import TimeStampCounter
from node.virtual_memory import VirtualMemory
from node.vmcb import Vmcb

if TYPE_CHECKING:
    from node.board import Board


class GuestInstructions:
    """Executes one operation of a guest at a time."""

    def __init__(self, board: Board, way: Way, memory: VirtualMemory) -> None:
        self._board = board
        self._way = way
        exits = ExitInstructions(board)
        self.memory: Mapping[type, Callable[..., op.Answer]] = {op.Read: self._read, op.Write: self._write}
        """Of the table what is nothing but a load or a store."""
        self.table: Mapping[type, Callable[..., op.Answer]] = {
            **self.memory,
            op.UpkeepRead: self._read,
            op.UpkeepWrite: self._write,
            op.Clear: self._clear,
            op.GuestWork: lambda _, one: None if one.cost in GUEST_WORK else undefined(),
            op.Copy: self._copy,
            **PagingInstructions(board, memory).table,
            **RmpInstructions(board).table,
            op.PageStateChange: self._page_state_change,
            op.BlockRead: self._block,
            op.BlockWrite: self._block,
            op.Clflush: self._clflush,
            **exits.table,
            **GuestMmio(board, way, exits.mmio).table,
            **INTERCEPTED,
            **TimeStampCounter(board).table,
            **board.random_numbers.table,
            op.TimedRead: self._timed_read,
            op.StackMove: self._stack_move,
            **board.branches.guest_table,
        }

    def _read(self, vmcb: Vmcb, one: op.Read) -> op.Answer:
        if one.length > op.MOST_BYTES:
            return op.Fault(op.FaultKind.GENERAL_PROTECTION, one.gpa)
        try:
            segments, asid = self._way.resolve(vmcb, one.gpa, one.length, one.private)
            read = self._board.controller.read if asid else self._board.bus.host_view.read
            if len(segments) == 1:
                spa, length, _, key = segments[0]
                return read(spa, length, asid or key)
            return b"".join([read(spa, length, asid or key) for spa, length, _, key in segments])
        except FAULTS as fault:
            return answer_to(fault, one.gpa)

    def _write(self, vmcb: Vmcb, one: op.Write) -> op.Answer:
        data = one.data
        try:
            segments, asid = self._way.resolve(vmcb, one.gpa, len(data), one.private, WRITE, PERMIT_WRITE)
            if len(segments) == 1:
                self._board.controller.write(segments[0][0], data, asid or segments[0][3])
                return None
            for spa, length, _, key in segments:
                self._board.controller.expect_store(spa, length, asid or key)
            view, start = memoryview(data), 0
            for spa, length, _, key in segments:
                self._board.controller.write(spa, view[start : start + length], asid or key)
                start += length
        except FAULTS as fault:
            return answer_to(fault, one.gpa)
        return None

    def _clear(self, vmcb: Vmcb, one: op.Clear) -> op.Answer:
        try:
            segments, asid = self._way.resolve(vmcb, one.gpa, one.length, one.private, WRITE, PERMIT_WRITE)
            for spa, length, _, key in segments:
                self._board.controller.expect_store(spa, length, asid or key)
            for spa, length, _, key in segments:
                self._board.controller.clear(spa, length, asid or key)
        except FAULTS as fault:
            return answer_to(fault, one.gpa)
        return None

    def _copy(self, vmcb: Vmcb, one: op.Copy) -> op.Answer:
        data = self._read(vmcb, op.Read(one.source, one.length, one.source_private))
        if isinstance(data, op.Fault):
            return data
        assert isinstance(data, bytes)
        stored = self._write(vmcb, op.Write(one.target, data, one.target_private))
        return data if stored is None else stored

    def _timed_read(self, vmcb: Vmcb, one: op.TimedRead) -> op.Answer:
        answer = self._read(vmcb, op.Read(one.gpa, 1, one.private))
        return answer if isinstance(answer, op.Fault) else self._board.load_ns

    def _stack_move(self, vmcb: Vmcb, one: op.StackMove) -> op.Answer:
        if not 0 <= one.rsp < 1 << 64 or abs(one.by) > MOST_STACK_BYTES:
            return op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)
        return self._board.stack_engines.moved(vmcb.core, one.rsp, one.by)

    def _clflush(self, vmcb: Vmcb, one: op.Clflush) -> op.Answer:
        try:
            # To the checks a flush is a load (APM volume 3, CLFLUSH).
            segments, asid = self._way.resolve(vmcb, one.gpa, one.length, one.private)
        except FAULTS as fault:
            return answer_to(fault, one.gpa)
        if self._board.caches is not None:
            for spa, length, _, key in segments:
                self._board.caches.clflush(spa, length, asid or key)
        return None

    def _page_state_change(self, vmcb: Vmcb, one: op.PageStateChange) -> op.Answer:
        if self._board.exit_handler is None:
            return op.Fault(op.FaultKind.UNDEFINED_OPCODE, one.gpa)
        handler = self._board.exit_handler(vmcb.vm, one)
        try:
            batch = next(handler)
            while True:
                batch = handler.send(self._board.execute_host(batch))
        except StopIteration as done:
            return int(done.value)

    def _block(self, vmcb: Vmcb, one: op.BlockRead | op.BlockWrite) -> op.Answer:
        return self._board.disk(vmcb.vm).transfer(one)
