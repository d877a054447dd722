"""The VMPLs of one vCPU in time: what waits at one while another runs.

Software above VMPL0 asks for VMPL0 in the middle of a block, which goes on when it comes back: what its exit's
batch had still to do is done then. Software at VMPL0 begins a block anew whenever it runs again, at the RIP it set
before, so nothing of it waits; between two blocks of the program above, all there is of either is in save areas
and in memory.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from node import operations as op
from node.fault_answers import FAULTS
from node.mechanism import Mechanism
from node.program import Registers
from node.vmsa import save_registers

if TYPE_CHECKING:
    from node.board import Board
    from node.guest import Guest
    from node.vcpu import Vcpu
    from node.vmcb import Vmcb


@dataclass(frozen=True, slots=True)
class Waiting:
    """A block that has left: the registers it holds, what it was answered, and the rest of its batch."""

    registers: Registers
    answers: tuple[op.Answer, ...]
    rest: tuple[op.GuestOperation, ...]


@dataclass(slots=True)
class VcpuLevels:
    """What waits, by VMPL."""

    waiting: dict[int, Waiting] = field(default_factory=dict)

    def registers_at(self, vmpl: int) -> Registers:
        """The registers that a block at a VMPL holds; new ones where none waits there."""
        waiting = self.waiting.get(vmpl)
        return Registers() if waiting is None else waiting.registers

    def come_back(self, vmpl: int) -> Waiting | None:
        """What waited at a VMPL and goes on now."""
        return self.waiting.pop(vmpl, None)

    @property
    def program(self) -> Registers | None:
        """Registers of a block that waits for its SVSM."""
        return next((one.registers for one in self.waiting.values()), None)


def has_left(board: Board, vmcb: Vmcb) -> bool:
    """Whether the hypervisor entered another save area of the vCPU since it ran with a control block."""
    return board.vmcb(vmcb.vm, vmcb.vcpu).save_area_spa != vmcb.save_area_spa


def leave_level(
    board: Board,
    vcpu: Vcpu,
    left: Vmcb,
    answers: tuple[op.Answer, ...],
    rest: tuple[op.GuestOperation, ...],
) -> None:
    """Store a vCPU's registers where it ran, as its exit did, and have what runs there wait.

    VMPL0 never does, and nothing without an SVSM: what the hypervisor has entered instead goes on as it finds itself.
    """
    with contextlib.suppress(*FAULTS):  # Its key is gone, or its save area is not in memory.
        page = bytearray(board.save_areas.load(left))
        save_registers(vcpu.registers, page)
        board.save_areas.store(left, bytes(page))
    board.leave(left.vm, left.vcpu)
    if vcpu.levels is None or not left.vmpl:
        vcpu.guest.software.drop(vcpu.thread)
        return
    vcpu.levels.waiting[left.vmpl] = Waiting(vcpu.registers, answers, rest)
    if vcpu.guest.svsm is not None:
        vcpu.guest.svsm.calls += 1


def charge_svsm(guest: Guest, spent_ns: int) -> None:
    """Book time of an SVSM, or on the way to it and back."""
    guest.lost_ns[Mechanism.SVSM] += spent_ns
    if guest.svsm is not None:
        guest.svsm.time_ns += spent_ns
