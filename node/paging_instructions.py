"""Instructions of a guest that name virtual addresses, or change how these are translated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from node import operations as op
from node.control_registers import CR4_GLOBAL, WRITABLE_REGISTERS, InvalidControl
from node.fault_answers import FAULTS, answer_to, undefined
from node.guest_access import tag
from node.guest_walk import FETCH, READ, GuestPageFault, NotCanonical
from node.virtual_memory import VirtualMemory
from node.vmcb import Vmcb

if TYPE_CHECKING:
    from node.board import Board


class PagingInstructions:
    """Executes one operation of a guest at a time."""

    def __init__(self, board: Board, memory: VirtualMemory) -> None:
        self._board = board
        self._memory = memory
        self.table: Mapping[type, Callable[..., op.Answer]] = {
            op.VirtualRead: lambda vmcb, one: self._read(vmcb, one.gva, one.length, READ),
            op.Fetch: lambda vmcb, one: self._read(vmcb, one.gva, one.length, FETCH),
            op.VirtualWrite: self._write,
            op.WriteControl: self._write_control,
            op.InvalidatePage: self._invalidate,
            op.LoadIdt: self._load_idt,
            op.ReadFlags: self._read_flags,
            op.WriteFlags: self._write_flags,
            op.SoftwareInterrupt: self._software_interrupt,
        }

    def _read(self, vmcb: Vmcb, gva: int, length: int, access: int) -> op.Answer:
        if not 0 <= length <= op.MOST_VIRTUAL_BYTES:
            return op.Fault(op.FaultKind.GENERAL_PROTECTION, gva)
        try:
            return self._memory.read(vmcb, self._board.controls.of(vmcb), gva, length, access)
        except _FAULTS as fault:
            return self._answer(vmcb, fault, gva)

    def _write(self, vmcb: Vmcb, one: op.VirtualWrite) -> op.Answer:
        if len(one.data) > op.MOST_VIRTUAL_BYTES:
            return op.Fault(op.FaultKind.GENERAL_PROTECTION, one.gva)
        try:
            self._memory.write(vmcb, self._board.controls.of(vmcb), one.gva, one.data)
        except _FAULTS as fault:
            return self._answer(vmcb, fault, one.gva)
        return None

    def _write_control(self, vmcb: Vmcb, one: op.WriteControl) -> op.Answer:
        controls = self._board.controls
        if one.register not in WRITABLE_REGISTERS and one.register != _TASK_PRIORITY:
            return undefined()
        try:
            before = controls.of(vmcb)
            if before.cpl:
                return op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)
            if one.register == _TASK_PRIORITY:
                if not 0 <= one.value <= _HIGHEST_PRIORITY:
                    return op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)
                self._board.events.write_tpr(vmcb, one.value)
                return None
            controls.write(vmcb, one.register, one.value)
        except InvalidControl:
            return op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)
        except FAULTS as fault:
            return answer_to(fault, 0)
        tlb = self._board.tlb
        if tlb is not None and (one.register == "CR3" or controls.of(vmcb) != before):
            keep = one.register == "CR3" and bool(before.cr4 & CR4_GLOBAL)
            tlb.flush_virtual(vmcb.core, tag(vmcb), keep_global=keep)
        return None

    def _load_idt(self, vmcb: Vmcb, one: op.LoadIdt) -> op.Answer:
        controls = self._board.controls
        try:
            if controls.of(vmcb).cpl or not 0 <= one.base < 1 << 64 or not 0 <= one.limit < 1 << 16:
                return op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)
            controls.store(vmcb, "IDTR_BASE", one.base)
            controls.store(vmcb, "IDTR_LIMIT", one.limit)
        except FAULTS as fault:
            return answer_to(fault, 0)
        return None

    def _read_flags(self, vmcb: Vmcb, _: op.ReadFlags) -> op.Answer:
        try:
            return self._board.controls.of(vmcb).rflags
        except FAULTS as fault:
            return answer_to(fault, 0)

    def _write_flags(self, vmcb: Vmcb, one: op.WriteFlags) -> op.Answer:
        controls = self._board.controls
        try:
            if controls.of(vmcb).cpl:
                return op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)
            controls.write_flags(vmcb, one.value)
        except InvalidControl:
            return op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)
        except FAULTS as fault:
            return answer_to(fault, 0)
        return None

    def _software_interrupt(self, vmcb: Vmcb, one: op.SoftwareInterrupt) -> op.Answer:
        if not 0 <= one.vector < 1 << 8:
            return op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)
        self._board.events.raised[vmcb.vm, vmcb.vcpu] = one.vector
        return None

    def _invalidate(self, vmcb: Vmcb, one: op.InvalidatePage) -> op.Answer:
        try:
            if self._board.controls.of(vmcb).cpl:
                return op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)
        except FAULTS as fault:
            return answer_to(fault, 0)
        if self._board.tlb is not None:
            self._board.tlb.flush_address(vmcb.core, tag(vmcb), one.gva)
        return None

    def _answer(self, vmcb: Vmcb, fault: Exception, gva: int) -> op.Fault:
        if isinstance(fault, GuestPageFault):
            self._board.controls.store(vmcb, "CR2", fault.gva)
            return op.Fault(op.FaultKind.PAGE_FAULT, fault.gva, fault.error)
        if isinstance(fault, NotCanonical):
            return op.Fault(op.FaultKind.GENERAL_PROTECTION, gva)
        return answer_to(fault, gva)


_TASK_PRIORITY, _HIGHEST_PRIORITY = "CR8", 0xF
_FAULTS: tuple[type[Exception], ...] = (*FAULTS, GuestPageFault, NotCanonical)
