"""The vCPUs of migration agents, as their hypervisor runs them: from an order to the answer, in one step.

What such a vCPU executes is what lies in its memory: a guest whose image does not begin with the agent's mark is none.
The agent's own state is its program's here, for an agent never moves and is never saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from node import operations as op
from node.fault_answers import undefined
from node.firmware_image import FirmwareImage, firmware_image
from node.laboratory_firmware import SECTIONS, build_image
from node.laboratory_roots import LABORATORY_ROOTS
from node.migration_agent import MARK, AgentRefusal, Carry, MigrationAgent
from node.packing import packed
from node.vmcb import Vmcb
from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.system_bus import PAGE_BYTES
from psp.x509_profile import EPOCH

if TYPE_CHECKING:
    from node.board import Board

DONE, REFUSED = "done", "refused"
"""What an agent says: a result, or why there is none."""
_DAY_S = 86_400


def _image() -> FirmwareImage:
    data = build_image(PAGE_BYTES, [one for one in SECTIONS if one.size == PAGE_BYTES])
    return firmware_image(MARK + data[len(MARK) :], "migration agent")


AGENT_IMAGE = _image()


class AgentCores:
    """Those of one board, by VM."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.agents: dict[str, MigrationAgent] = {}
        self.roots = LABORATORY_ROOTS
        """Roots of chips that agents trust."""
        self.verifies_peer = True
        self.keeps_ledger = False
        """Of agents that begin from now on (rows 55 and 58 of the attack matrix)."""

    def call(self, one: op.AgentCall) -> op.Answer:
        """Execute an ``AgentCall``."""
        vmcb = self._board.vmcb(one.vm, 0)
        agent = self.agents.get(one.vm) or self._begun(one.vm, vmcb)
        if agent is None:
            return undefined()
        answer: object = None
        try:
            step = agent.serve(one.order)
            while True:
                wanted = step.send(answer)
                if isinstance(wanted, Carry):
                    answer = carried(self._board, one, wanted)
                else:
                    answer = self._executed(vmcb, wanted)
        except StopIteration as end:
            return packed((DONE, end.value))
        except AgentRefusal as refusal:
            return packed((REFUSED, str(refusal)))

    def forget(self, vm: str) -> None:
        """Its control block is gone."""
        self.agents.pop(vm, None)

    def _begun(self, vm: str, vmcb: Vmcb) -> MigrationAgent | None:
        begin = self._board.fetch(vmcb, op.Read(AGENT_IMAGE.gpa, len(MARK)))
        if begin != MARK or AGENT_IMAGE.secrets_gpa is None:
            return None
        now = int(EPOCH.timestamp()) + _DAY_S
        agent = self.agents[vm] = MigrationAgent(
            AGENT_IMAGE.secrets_gpa, self.roots, now, self.verifies_peer, self.keeps_ledger
        )
        return agent

    def _executed(self, vmcb: Vmcb, batch: tuple[op.GuestOperation, ...]) -> tuple[op.Answer, ...]:
        return self._board.execute_guest(vmcb, batch)


def carried(board: Board, one: op.AgentCall | op.HandlerCall, wanted: Carry) -> op.Answer:
    """What its hypervisor does at the exit of an agent or a handler that asks the firmware."""
    asked = buffers.SnpGuestRequest(one.gctx, one.request, one.response).pack()
    *_, page = board.execute_host((
        op.HostWrite(one.request, wanted.message),
        op.PspCommand(SnpCommand.GUEST_REQUEST, one.command, asked, paid=True),
        op.HostRead(one.response, PAGE_BYTES),
    ))  # fmt: skip
    return page
