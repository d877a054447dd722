"""Delivery of an event through the guest's table of gates: a frame on its stack, and RIP at the handler.

As in long mode (APM volume 2, 8.9 and 4.8.4), whatever mode the vCPU is in; its privilege level and stack segment stay.
A gate whose IST is not zero, which needs a task state segment, is taken for one that is not present. An
exception that delivery itself raises is delivered in its turn, then #DF, then the vCPU shuts down (8.2.9, 8.2.19).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from node.control_registers import RFLAGS_IF, RFLAGS_NT, RFLAGS_RF, RFLAGS_TF, RFLAGS_VM
from node.event_injection import NMI_VECTOR, Event, EventType, ExceptionVector, exception
from node.fault_answers import FAULTS
from node.guest_walk import GuestPageFault, NotCanonical
from node.nested_page_table import NestedPageFault
from node.rmp_faults import NotValidated, RmpFault
from node.vmexit import ExitCode

if TYPE_CHECKING:
    from node.board import Board
    from node.program import Registers
    from node.vmcb import Vmcb

GATE_BYTES = 16
INTERRUPT_GATE, TRAP_GATE = 0xE, 0xF
_PRESENT = 1 << 47
_IDT, _EXTERNAL = 1 << 1, 1 << 0
_DR6_BS = 1 << 14
"""#DB of a single step."""
_CLEARED = RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM
_WORD = (1 << 64) - 1
_STACK_ALIGNMENT = 16

_CONTRIBUTORY = frozenset({
    ExceptionVector.DE, ExceptionVector.TS, ExceptionVector.NP, ExceptionVector.SS, ExceptionVector.GP,
    ExceptionVector.VC,
})  # fmt: skip


_DOUBLE: Mapping[int, frozenset[ExceptionVector]] = {
    **dict.fromkeys(_CONTRIBUTORY, _CONTRIBUTORY),
    ExceptionVector.PF: _CONTRIBUTORY | {ExceptionVector.PF},
}
"""What makes a double fault of an exception that is on its way to its handler."""


class Delivered(Enum):
    """What became of the events of a vCPU."""

    NOTHING = "nothing"
    TAKEN = "taken"
    SHUTDOWN = "shutdown"
    EXIT = "exit"
    """A nested page fault: the hypervisor is told where, and which event it interrupted."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What the processor pushes, from the lowest address up."""

    error: int | None
    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int

    @property
    def octets(self) -> bytes:
        """As it lies on the stack."""
        error = () if self.error is None else (self.error,)
        words = (*error, self.rip, self.cs, self.rflags, self.rsp, self.ss)
        return b"".join([word.to_bytes(8, "little") for word in words])


class _Raised(Exception):
    """An exception that delivery raised."""

    def __init__(self, event: Event) -> None:
        super().__init__(event)
        self.event = event


class EventDelivery:
    """Lets vCPUs of a board take their events."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def take(self, vmcb: Vmcb, registers: Registers) -> Delivered:
        """Between two instructions: the trap of a step, or what waits and may come; ``registers`` go to its handler.

        SHUTDOWN for a vCPU whose save area nobody can read any more: no VMRUN would have entered it.
        """
        try:
            event = self._next(vmcb)
        except FAULTS:
            return Delivered.SHUTDOWN
        return Delivered.NOTHING if event is None else self.deliver(vmcb, registers, event)

    def _next(self, vmcb: Vmcb) -> Event | None:
        events, controls = self._board.events, self._board.controls
        vector = events.raised.pop((vmcb.vm, vmcb.vcpu), None)
        if vector is not None:
            return Event(vector, EventType.SOFTWARE_INTERRUPT)
        if events.stepping and events.stepped(vmcb):
            controls.store(vmcb, "DR6", controls.load(vmcb, "DR6") | _DR6_BS)
            return exception(ExceptionVector.DB)
        return events.next_event(vmcb) if events.waiting else None

    def deliver(self, vmcb: Vmcb, registers: Registers, event: Event) -> Delivered:
        """Deliver one event. With SHUTDOWN and EXIT the registers are as before.

        A machine check while another is on its way to its handler (MCG_STATUS.MCIP) shuts the vCPU down.
        """
        checked = _is_machine_check(event)
        while True:
            try:
                self._deliver(vmcb, registers, event)
            except _Raised as raised:
                if event.kind == EventType.EXCEPTION and event.vector == ExceptionVector.DF:
                    return Delivered.SHUTDOWN
                if checked and _is_machine_check(raised.event):
                    return Delivered.SHUTDOWN
                event = _after(event, raised.event)
                checked = checked or _is_machine_check(event)
            except (NestedPageFault, RmpFault) as fault:
                self._exit(vmcb, event, fault)
                return Delivered.EXIT
            except FAULTS:  # Of the save area itself.
                return Delivered.SHUTDOWN
            else:
                return Delivered.TAKEN

    def _deliver(self, vmcb: Vmcb, registers: Registers, event: Event) -> None:
        vector = NMI_VECTOR if event.kind == EventType.NMI else event.vector
        selector_error = vector << 3 | _IDT | (0 if event.kind == EventType.SOFTWARE_INTERRUPT else _EXTERNAL)
        controls = self._board.controls
        gate = self._gate(vmcb, vector, selector_error)
        kind, level = gate >> 40 & 0x1F, gate >> 45 & 3
        if kind not in (INTERRUPT_GATE, TRAP_GATE):
            raise _Raised(exception(ExceptionVector.GP, selector_error))
        state = controls.of(vmcb)
        if event.kind == EventType.SOFTWARE_INTERRUPT and level < state.cpl:
            raise _Raised(exception(ExceptionVector.GP, selector_error))
        if not gate & _PRESENT or gate >> 32 & 7:
            raise _Raised(exception(ExceptionVector.NP, selector_error))
        handler = gate & 0xFFFF | gate >> 32 & 0xFFFF_0000 | (gate >> 64 & 0xFFFF_FFFF) << 32
        frame = Frame(
            event.error, registers.rip, controls.load(vmcb, "CS_SELECTOR"), state.rflags, registers.rsp,
            controls.load(vmcb, "SS_SELECTOR"),
        ).octets  # fmt: skip
        top = (registers.rsp & -_STACK_ALIGNMENT) - len(frame) & _WORD
        try:
            self._board.virtual_memory.write(vmcb, state, top, frame)
        except _MEMORY as fault:
            raise self._raised(vmcb, fault, ExceptionVector.SS, 0) from fault
        controls.write_flags(vmcb, state.rflags & ~(_CLEARED | (RFLAGS_IF if kind == INTERRUPT_GATE else 0)))
        registers.rip, registers.rsp = handler, top

    def _gate(self, vmcb: Vmcb, vector: int, selector_error: int) -> int:
        controls = self._board.controls
        base, limit = controls.load(vmcb, "IDTR_BASE"), controls.load(vmcb, "IDTR_LIMIT")
        at = GATE_BYTES * vector
        if at + GATE_BYTES - 1 > limit:
            raise _Raised(exception(ExceptionVector.GP, selector_error))
        try:
            octets = self._board.virtual_memory.read(vmcb, controls.of(vmcb), base + at & _WORD, GATE_BYTES, 0)
        except _MEMORY as fault:
            raise self._raised(vmcb, fault, ExceptionVector.GP, selector_error) from fault
        return int.from_bytes(octets, "little")

    def _raised(self, vmcb: Vmcb, fault: Exception, vector: int, error: int) -> Exception:
        """What an access of delivery ends in: an exit, or an exception of the guest's."""
        if isinstance(fault, (NestedPageFault, RmpFault)):
            return fault
        if isinstance(fault, NotValidated):
            return _Raised(exception(ExceptionVector.VC, ExitCode.PAGE_NOT_VALIDATED))
        if isinstance(fault, GuestPageFault):
            self._board.controls.store(vmcb, "CR2", fault.gva)
            return _Raised(exception(ExceptionVector.PF, fault.error & 0xFFFF_FFFF))
        if isinstance(fault, NotCanonical):
            return _Raised(exception(vector, error))
        return _Raised(exception(ExceptionVector.MC))

    def _exit(self, vmcb: Vmcb, event: Event, fault: NestedPageFault | RmpFault) -> None:
        values = self._board.events.fields(vmcb).values
        values["EXITCODE"] = ExitCode.NESTED_PAGE_FAULT
        values["EXITINFO1"] = fault.error & _WORD
        values["EXITINFO2"] = (fault.gpa or 0) & _WORD
        values["EXITINTINFO"] = event.field


_MEMORY: tuple[type[Exception], ...] = (*FAULTS, GuestPageFault, NotCanonical)


def _is_machine_check(event: Event) -> bool:
    return event.kind == EventType.EXCEPTION and event.vector == ExceptionVector.MC


def _after(event: Event, raised: Event) -> Event:
    """What follows an exception that the delivery of an event raised."""
    if event.kind == EventType.EXCEPTION and raised.vector in _DOUBLE.get(event.vector, ()):
        return exception(ExceptionVector.DF, 0)
    return raised


def gate(handler: int, *, trap: bool = False, level: int = 0, selector: int = 0x10) -> bytes:
    """A gate as a guest lays it: of an interrupt, or a trap, which leaves RFLAGS.IF alone."""
    kind = TRAP_GATE if trap else INTERRUPT_GATE
    low = handler & 0xFFFF | selector << 16 | kind << 40 | level << 45 | _PRESENT | (handler >> 16 & 0xFFFF) << 48
    return (low | handler >> 32 << 64).to_bytes(GATE_BYTES, "little")
