"""What an exit leaves in a save area, and what VMRUN takes from there: the vCPU's registers.

In a guest that wants it they are masked with a new nonce.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from node.fault_answers import FAULTS
from node.platform import Platform, Protection
from node.program import FORGOTTEN, Registers
from node.vcpu import Vcpu, VcpuState
from node.vmsa import general_registers, load_registers, save_registers
from psp.register_protection import NONCE_BYTES, is_asked_for, masked, with_nonce

if TYPE_CHECKING:
    from node.board import Board

_RUNS = (VcpuState.BLOCK, VcpuState.COMPUTING, VcpuState.SLEEPING)


class RegisterMasks:
    """The core's part in VMSA register protection. ``octets`` gives random bytes for (counter, length)."""

    def __init__(self, octets: Callable[[int, int], bytes], platform: Platform) -> None:
        self._octets = octets
        self._renewed = Protection.REGISTER_NONCE not in platform.disabled
        self._count = 0

    def loaded(self, page: bytes) -> bytes:
        """An SNP guest's save area in the clear."""
        return masked(page) if is_asked_for(page) else page

    def stored(self, page: bytes) -> bytes:
        """An SNP guest's save area as an exit stores it."""
        if not is_asked_for(page):
            return page
        if not self._renewed:
            return masked(page)
        self._count += 1
        return with_nonce(page, self._octets(self._count, NONCE_BYTES))


def store_registers(board: Board, vcpu: Vcpu) -> None:
    """Store a vCPU's general registers in its save area. Raises what an access without a key raises."""
    vm = vcpu.guest.spec.name
    if vm in board.unlaid.vms:
        board.unlaid.store_registers(vm, vcpu.index, general_registers(vcpu.registers))
        return
    vmcb = board.vmcb(vm, vcpu.index)
    page = bytearray(board.save_areas.load(vmcb))
    save_registers(vcpu.registers, page)
    board.save_areas.store(vmcb, bytes(page))


def load_stored(board: Board, vcpu: Vcpu) -> None:
    """Load a vCPU's registers from its save area; where nobody can read that any more they stay as they are."""
    own, vm = vcpu.registers, vcpu.guest.spec.name
    try:
        if vm in board.unlaid.vms:
            page = board.unlaid.save_area(vm, vcpu.index)
        else:
            page = board.save_areas.load(board.vmcb(vm, vcpu.index))
    except FAULTS:
        if own is FORGOTTEN:
            vcpu.registers = Registers()
        return
    vcpu.registers = load_registers(page, None if own is FORGOTTEN else own)


def store_at_exit(board: Board, vcpu: Vcpu) -> None:
    """Store the registers of a vCPU that its hypervisor makes exit; one that is out already has them stored.

    Those of one whose control block names another save area meanwhile stay where they are.
    """
    who = vcpu.guest.spec.name, vcpu.index
    if vcpu.state not in _RUNS or who in board.running.preempted:
        return
    if board.vmcb(*who).save_area_spa != vcpu.save_area_spa:
        return
    with contextlib.suppress(*FAULTS):  # Its key is gone: no VMRUN will find them.
        store_registers(board, vcpu)


def store_and_stay_out(board: Board, vcpu: Vcpu) -> None:
    """As ``store_at_exit``, of one that is not entered at once: what VMRUN finds in the save area then is what counts.

    One with an SVSM exits to change its VMPL: whoever switches stores its registers.
    """
    already = (vcpu.guest.spec.name, vcpu.index) in board.running.preempted
    if vcpu.levels is None and vcpu.state in _RUNS and not already:
        store_at_exit(board, vcpu)
        vcpu.out = True


def take_registers(board: Board, vcpu: Vcpu) -> None:
    """VMRUN of one that was out: its registers are those of its save area.

    What is left of a phase or a sleep, which stands in R14 and R15 of one that is paused, the clock knows here.
    """
    if not vcpu.out:
        return
    vcpu.out = False
    registers, vmcb = vcpu.registers, board.vmcb(vcpu.guest.spec.name, vcpu.index)
    kept = registers.r14, registers.r15
    with contextlib.suppress(*FAULTS):
        load_registers(board.save_areas.load(vmcb), registers)
    registers.r14, registers.r15 = kept
