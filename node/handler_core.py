"""Migration handlers, as their hypervisors run them: from an order to the answer, in one step, at VMPL0.

What executes is what lies in the guest's memory: an SVSM whose image does not begin with the handler's mark has none.
It runs beside the scheduler, with the rights of its guest's first vCPU's save area of VMPL0, as on a vCPU of its own;
all it keeps lies in the guest's memory. Where it has become a guest it leaves its vCPUs before the SVSM's loop.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from node import operations as op
from node.agent_core import DONE, REFUSED, carried
from node.agent_messages import AgentRefusal, Carry
from node.fault_answers import FAULTS, undefined
from node.laboratory_roots import LABORATORY_ROOTS
from node.migration_handler import EnterLoop, MigrationHandler, Walk
from node.packing import packed
from node.program import Registers
from node.svsm import SERVE_RIP
from node.svsm_memory import HANDLER_MARK
from node.vmsa import load_registers, save_registers
from psp.system_bus import PAGE_BYTES
from psp.x509_profile import EPOCH

if TYPE_CHECKING:
    from node.board import Board
    from node.vmcb import Vmcb

_DAY_S = 86_400


class HandlerCores:
    """Those of one board."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.handler = MigrationHandler(LABORATORY_ROOTS, int(EPOCH.timestamp()) + _DAY_S)

    def call(self, one: op.HandlerCall) -> op.Answer:
        """Execute a ``HandlerCall``."""
        vmcb = replace(self._board.vmcb(one.vm, 0), save_area_spa=one.area, vmpl=0)
        begin = self._board.fetch(vmcb, op.Read(one.code, len(HANDLER_MARK)))
        if begin != HANDLER_MARK:
            return undefined()
        answer: object = None
        try:
            step = self.handler.serve(one.order)
            while True:
                wanted = step.send(answer)
                if isinstance(wanted, Carry):
                    answer = carried(self._board, one, wanted)
                elif isinstance(wanted, Walk):
                    answer = self._walked(vmcb, wanted)
                elif isinstance(wanted, EnterLoop):
                    self._enter_loop(one.vm)
                else:
                    answer = self._board.execute_guest(vmcb, wanted)
        except StopIteration as end:
            return packed((DONE, end.value))
        except AgentRefusal as refusal:
            return packed((REFUSED, str(refusal)))

    def _enter_loop(self, vm: str) -> None:
        """Each vCPU's VMPL0 is past its boot: it has run the guest, and is called next."""
        for vcpu in sorted(self._board.vmcbs.get(vm, {})):
            vmcb, registers = self._board.vmcb(vm, vcpu), Registers()
            page = bytearray(self._board.save_areas.load(vmcb))
            load_registers(bytes(page), registers)
            registers.reset(SERVE_RIP)
            save_registers(registers, page)
            self._board.save_areas.store(vmcb, bytes(page))

    def _walked(self, vmcb: Vmcb, wanted: Walk) -> tuple[int, ...]:
        """GPAs of pages in which anything was ever written."""
        found: list[int] = []
        for gpa, length in wanted.ranges:
            try:
                pieces = vmcb.nested.translate(gpa, length)
            except FAULTS:
                continue
            at = gpa
            for spa, size, *_ in pieces:
                for first, run in self._board.controller.written_runs(spa, size, 0):
                    found += range(at + first - spa, at + first - spa + run, PAGE_BYTES)
                at += size
        return tuple(found)
