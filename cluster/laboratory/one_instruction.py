"""A core that executes one instruction at a vCPU's RIP, for attacks that enter a guest of their own making.

Programs of guests are not made of instructions; this core knows a single one by its bytes, MOV EAX, [RBX]. Any other
is an exception, and code that an attacker enters like this has no handler for one: it shuts down.
"""

from __future__ import annotations

from node.board import Board
from node.operations import Answer, Fault, FaultKind, Fetch, VirtualRead
from node.vmexit import ExitCode
from node.vmsa import load_registers, save_registers
from workloads.attacks.vault import MOV_EAX_FROM_RBX

_NESTED = (FaultKind.NESTED_PAGE_FAULT, FaultKind.RMP_FAULT)


def step(board: Board, vm: str) -> Answer:
    """What its hypervisor learns of the exit; what the core loads meanwhile is nobody's but the vCPU's."""
    if board.running.thread_of((vm, 0)) is None:
        return int(ExitCode.INVALID)
    observer, board.observer = board.observer, None
    try:
        return _execute(board, vm)
    finally:
        board.observer = observer
        board.preempt(vm, 0)


def _execute(board: Board, vm: str) -> Answer:
    vmcb = board.vmcb(vm, 0)
    page = bytearray(board.save_areas.load(vmcb))
    registers = load_registers(page)

    def load(one: Fetch | VirtualRead) -> Answer:
        (answer,) = board.execute_guest(vmcb, (one,))
        return answer

    fault = load(Fetch(registers.rip, len(MOV_EAX_FROM_RBX)))
    if fault == MOV_EAX_FROM_RBX:
        value = load(VirtualRead(registers.rbx, 4))
        if isinstance(value, bytes):
            registers.rax = int.from_bytes(value, "little")
            registers.rip += len(MOV_EAX_FROM_RBX)
            save_registers(registers, page)
            board.save_areas.store(vmcb, bytes(page))
            fault = load(Fetch(registers.rip, len(MOV_EAX_FROM_RBX)))
        else:
            fault = value
    return fault if isinstance(fault, Fault) and fault.kind in _NESTED else int(ExitCode.SHUTDOWN)
