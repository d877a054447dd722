"""Instructions of a guest that its hypervisor answers, or could: VMGEXIT, CPUID, and RDMSR of SEV_STATUS."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Protocol

from node import operations as op
from node.fault_answers import FAULTS, answer_to, undefined
from node.generation import CAPABILITIES
from node.sev_status import sev_status
from node.vmcb import Vmcb
from node.vmexit import ExitCode, Route, route
from node.vmsa import VMSA_FIELDS

if TYPE_CHECKING:
    from node.board import Board

_Batch = tuple[op.HypervisorOperation, ...]
_Answers = tuple[op.Answer, ...]
_Task = Generator[_Batch, _Answers, int] | Generator[_Batch, _Answers, op.CpuidResult]
_FEATURES = VMSA_FIELDS["SEV_FEATURES"]


class Exits(Protocol):
    """The hypervisor as a vCPU's exits reach it; it runs while the vCPU is stopped."""

    def vmgexit(self, vm: str, vcpu: int, value: int) -> Generator[_Batch, _Answers, int]:
        """Answer VMGEXIT: the GHCB MSR's new value, or a negative number that ends the VM."""

    def cpuid(self, vm: str, function: int, index: int) -> Generator[_Batch, _Answers, op.CpuidResult]:
        """Answer CPUID of a guest whose registers are not encrypted."""


class ExitInstructions:
    """Executes them; what the hypervisor did in an exit is noted for whoever keeps time."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.table: Mapping[type, Callable[..., op.Answer]] = {
            op.VmgExit: self._vmgexit,
            op.ReadSevStatus: self._read_sev_status,
            op.Cpuid: self._cpuid,
        }

    def _vmgexit(self, vmcb: Vmcb, one: op.VmgExit) -> op.Answer:
        exits = self._board.exits
        if exits is None or not CAPABILITIES[vmcb.generation].encrypted_registers:
            return undefined()
        if not 0 <= one.msr < 1 << 64:
            return op.Fault(op.FaultKind.GENERAL_PROTECTION, 0)
        value = self._run(exits.vmgexit(vmcb.vm, vmcb.vcpu, one.msr))
        if isinstance(value, int) and value < 0:
            self._board.terminated[vmcb.vm] = -1 - value
            return one.msr
        return value

    def _read_sev_status(self, vmcb: Vmcb, _: op.ReadSevStatus) -> op.Answer:
        features = 0
        if CAPABILITIES[vmcb.generation].encrypted_registers:
            try:
                page = self._board.controller.read(vmcb.save_area_spa + _FEATURES.offset, _FEATURES.width, vmcb.asid)
            except FAULTS as fault:
                return answer_to(fault, 0)
            features = int.from_bytes(page, "little")
        status = sev_status(vmcb.generation, features)
        return op.Fault(op.FaultKind.GENERAL_PROTECTION, 0) if status is None else status

    def _cpuid(self, vmcb: Vmcb, one: op.Cpuid) -> op.Answer:
        if route(vmcb.generation, ExitCode.CPUID) is Route.VC_HANDLER:
            return op.Fault(op.FaultKind.VMM_COMMUNICATION, 0, ExitCode.CPUID)
        exits = self._board.exits
        return undefined() if exits is None else self._run(exits.cpuid(vmcb.vm, one.function, one.index))

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
