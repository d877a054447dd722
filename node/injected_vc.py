"""#VC that a hypervisor injects into a guest whose kernel has no table of gates: it meets it at its next instruction.

Programs meet #VC as the answer to an operation (``node.vc_handler``), and so they meet one that nothing raised: in the
place of the first instruction that they execute after VMRUN. One whose own program has gates gets it through them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from node import operations as op
from node.event_injection import EventType, ExceptionVector
from node.generation import CAPABILITIES

if TYPE_CHECKING:
    from node.board import Board
    from node.vcpu import Vcpu

_Batch = tuple[op.GuestOperation, ...]


def take_injected_vc(board: Board, vcpu: Vcpu) -> bool:
    """Have a vCPU's kernel meet what was injected, if that is #VC and the kernel takes it so."""
    spec, key = vcpu.guest.spec, (vcpu.guest.spec.name, vcpu.index)
    event = board.events.waiting.get(key)
    if event is None or (event.kind, event.vector) != (EventType.EXCEPTION, ExceptionVector.VC):
        return False
    if not (spec.kernel.handles_vc and CAPABILITIES[spec.generation].encrypted_registers) or spec.svsm:
        return False
    vmcb = board.vmcb(*key)
    if board.controls.load(vmcb, "IDTR_BASE"):
        return False
    board.events.next_event(vmcb)
    vcpu.vc_code = event.error or 0
    return True


def met_first(vcpu: Vcpu, batch: _Batch) -> tuple[_Batch, tuple[op.Answer, ...]]:
    """What is left of a batch whose first instruction met it, and what that one is answered."""
    code = vcpu.vc_code
    if code is None or not batch:
        return batch, ()
    vcpu.vc_code = None
    return batch[1:], (op.Fault(op.FaultKind.VMM_COMMUNICATION, 0, code),)
