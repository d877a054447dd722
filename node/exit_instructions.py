"""Instructions of a guest that its hypervisor answers, or could: VMGEXIT, CPUID, DR7, and RDMSR of SEV_STATUS."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Protocol

from node import operations as op
from node.fault_answers import FAULTS, answer_to, undefined
from node.generation import CAPABILITIES
from node.sev_status import sev_status
from node.vmcb import Vmcb
from node.vmexit import ExitCode, Route, route
from node.vmsa import VMSA_FIELDS, SevFeature, VmsaField

if TYPE_CHECKING:
    from node.board import Board

_Batch = tuple[op.HypervisorOperation, ...]
_Answers = tuple[op.Answer, ...]
_Task = Generator[_Batch, _Answers, int] | Generator[_Batch, _Answers, op.CpuidResult]
_FEATURES, _DR7 = VMSA_FIELDS["SEV_FEATURES"], VMSA_FIELDS["DR7"]


HELD_IN_RESET = -(1 << 16)
"""In place of the MSR's value: the vCPU is not entered again until the hypervisor kicks it."""


class HeldInReset(Exception):
    """An exit that has not come back yet: what follows in the batch is for when the vCPU is started."""


class SwitchedAway(Exception):
    """An exit came back to another save area of the vCPU: what follows in the batch is for when this one runs again.

    ``value`` is what the GHCB MSR holds then.
    """

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value


class Exits(Protocol):
    """The hypervisor as a vCPU's exits reach it; it runs while the vCPU is stopped."""

    def vmgexit(self, vm: str, vcpu: int, value: int) -> Generator[_Batch, _Answers, int]:
        """Answer VMGEXIT: the GHCB MSR's new value, ``HELD_IN_RESET``, or a negative number that ends the VM."""

    def cpuid(
        self, vm: str, vcpu: int, function: int, index: int
    ) -> Generator[_Batch, _Answers, op.CpuidResult]:
        """Answer CPUID of a guest whose registers are not encrypted."""

    def mmio(
        self, vm: str, vcpu: int, gpa: int, length: int, value: int | None
    ) -> Generator[_Batch, _Answers, int]:
        """Answer a load, or with ``value`` a store, of a guest whose registers are not encrypted."""


class ExitInstructions:
    """Executes them; what the hypervisor did in an exit is noted for whoever keeps time."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.table: Mapping[type, Callable[..., op.Answer]] = {
            op.VmgExit: self._vmgexit,
            op.ReadSevStatus: self._read_sev_status,
            op.Cpuid: self._cpuid,
            op.ReadDr7: self._read_dr7,
            op.WriteDr7: self._write_dr7,
        }

    def _vmgexit(self, vmcb: Vmcb, one: op.VmgExit) -> op.Answer:
        exits = self._board.exits
        if exits is None or not CAPABILITIES[vmcb.generation].encrypted_registers:
            return undefined()
        if not 0 <= one.msr < 1 << 64:
            return op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)
        value = self._run(exits.vmgexit(vmcb.vm, vmcb.vcpu, one.msr))
        if type(value) is not int or not HELD_IN_RESET <= value < 1 << 64:
            return undefined()  # No MSR holds that: as if nobody had answered.
        if value == HELD_IN_RESET:
            self._board.hold_in_reset(vmcb, one)
            raise HeldInReset
        if value < 0:
            self._board.terminated[vmcb.vm] = -1 - value
            return one.msr
        if self._board.vmcb(vmcb.vm, vmcb.vcpu).save_area_spa != vmcb.save_area_spa:
            raise SwitchedAway(value)
        return value

    def _read_sev_status(self, vmcb: Vmcb, _: op.ReadSevStatus) -> op.Answer:
        try:
            status = sev_status(vmcb.generation, self._features(vmcb))
        except FAULTS as fault:
            return answer_to(fault, 0)
        return op.Fault(op.FaultKind.GENERAL_PROTECTION, 0) if status is None else status

    def _cpuid(self, vmcb: Vmcb, one: op.Cpuid) -> op.Answer:
        if not (0 <= one.function < 1 << 32 and 0 <= one.index < 1 << 32):
            return op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)  # EAX and ECX hold no such value
        if route(vmcb.generation, ExitCode.CPUID) is Route.VC_HANDLER:
            return op.Fault(op.FaultKind.VMM_COMMUNICATION, 0, ExitCode.CPUID)
        exits = self._board.exits
        return undefined() if exits is None else self._run(exits.cpuid(vmcb.vm, vmcb.vcpu, one.function, one.index))

    def mmio(self, vmcb: Vmcb, gpa: int, length: int, value: int | None) -> op.Answer:
        """What becomes of a load, or with ``value`` a store, of registers where nested tables lead nowhere."""
        exits = self._board.exits
        if route(vmcb.generation, ExitCode.NESTED_PAGE_FAULT, mmio=True) is Route.VC_HANDLER:
            return op.Fault(op.FaultKind.VMM_COMMUNICATION, gpa, ExitCode.NESTED_PAGE_FAULT)
        return undefined() if exits is None else self._run(exits.mmio(vmcb.vm, vmcb.vcpu, gpa, length, value))

    def _read_dr7(self, vmcb: Vmcb, _: op.ReadDr7) -> op.Answer:
        try:
            if self._intercepts_dr7(vmcb):
                return op.Fault(op.FaultKind.VMM_COMMUNICATION, 0, ExitCode.DR7_READ)
            return self._field(vmcb, _DR7)
        except FAULTS as fault:
            return answer_to(fault, 0)

    def _write_dr7(self, vmcb: Vmcb, one: op.WriteDr7) -> op.Answer:
        if not 0 <= one.value < 1 << 32:
            return op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)
        try:
            if self._intercepts_dr7(vmcb):
                return op.Fault(op.FaultKind.VMM_COMMUNICATION, 0, ExitCode.DR7_WRITE)
            self._board.save_areas.store_field(vmcb, _DR7.offset, one.value.to_bytes(_DR7.width, "little"))
        except FAULTS as fault:
            return answer_to(fault, 0)
        return None

    def _intercepts_dr7(self, vmcb: Vmcb) -> bool:
        """With encrypted registers DR7 is the hypervisor's to keep, unless the core swaps debug registers itself.

        A hypervisor intercepts it in other guests too, and stores what they write in their control block: no exit
        is modelled for that.
        """
        encrypted = CAPABILITIES[vmcb.generation].encrypted_registers
        return encrypted and not self._features(vmcb) & SevFeature.DEBUG_SWAP

    def _features(self, vmcb: Vmcb) -> int:
        return self._field(vmcb, _FEATURES) if CAPABILITIES[vmcb.generation].encrypted_registers else 0

    def _field(self, vmcb: Vmcb, field: VmsaField) -> int:
        key = self._board.save_areas.key(vmcb)
        octets = self._board.controller.read(vmcb.save_area_spa + field.offset, field.width, key)
        return int.from_bytes(octets, "little")

    def _run(self, task: _Task) -> op.Answer:
        try:
            batch = next(task)
            while True:
                answers = self._board.execute_host(batch)
                self._board.exit_work.append(batch)
                batch = task.send(answers)
        except StopIteration as done:
            answer: op.Answer = done.value
            return answer
