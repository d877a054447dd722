"""The hands that an attack acts with: each takes the operations of one actor and notes them in the transcript."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

from cluster.oracle.transcript import Transcript
from node import operations as op
from node.actor import Actor, Role
from node.board import Board
from node.operations import Answer
from node.physical_port import PhysicalPort
from workloads.attacks.dimm_operations import DimmDump, DimmGround, DimmPoke, DimmUnground
from workloads.attacks.target import AttackBatch

_GUEST = frozenset(get_args(op.GuestOperation))
_DIMM: Mapping[type, Callable[..., Answer]] = {
    DimmDump: lambda port, _: op.Runs(port.dump_written()),
    DimmPoke: lambda port, one: port.poke(one.at, one.data),
    DimmGround: lambda port, one: port.ground(one.line),
    DimmUnground: lambda port, one: port.unground(one.line),
}


class MixedHands(ValueError):
    """A batch held operations of different actors."""

    def __init__(self, batch: AttackBatch) -> None:
        super().__init__(f"operations of different actors in one batch: {batch!r}")


class Hands:
    """Executes an attacker's batches: as the hypervisor, as one tenant, or at the memory modules."""

    def __init__(self, board: Board, tenant: str, transcript: Transcript) -> None:
        self._board, self._tenant = board, tenant
        self._modules = PhysicalPort(board.dram)
        self._transcript = transcript
        self._ways: Mapping[Role, Callable[..., tuple[Answer, ...]]] = {
            Role.GUEST: self._as_the_tenant,
            Role.HYPERVISOR: board.execute_host,
            Role.DIMM: self._at_the_modules,
        }

    def act(self, batch: AttackBatch) -> tuple[Answer, ...]:
        """Execute a batch. Raises MixedHands."""
        roles = {_role(one) for one in batch}
        if len(roles) != 1:
            raise MixedHands(batch)
        return self._ways[roles.pop()](batch)

    def _as_the_tenant(self, batch: tuple[op.GuestOperation, ...]) -> tuple[Answer, ...]:
        # With a control block that VMRUN refuses no core gets as far as the tenant's code.
        vmcb = self._board.vmcb(self._tenant, 0)
        if not (self._board.vmrun_checks.passed(vmcb) and self._board.registers_fit(vmcb)):
            return (None,) * len(batch)
        return self._board.execute_guest(vmcb, batch)

    def _at_the_modules(self, batch: AttackBatch) -> tuple[Answer, ...]:
        # No chip takes part, so the board's tap sees nothing of it.
        answers = tuple([_DIMM[type(one)](self._modules, one) for one in batch])
        self._transcript.observe(Actor(Role.DIMM), batch, answers)
        return answers


def _role(one: object) -> Role:
    if type(one) in _GUEST:
        return Role.GUEST
    return Role.DIMM if type(one) in _DIMM else Role.HYPERVISOR

