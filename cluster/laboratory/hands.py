"""The hands that an attack acts with: each takes the operations of one actor and notes them in the transcript."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cluster.oracle.transcript import Transcript
from node import operations as op
from node.actor import Actor, Role
from node.board import Board
from node.dram import Dram
from node.operations import Answer
from workloads.attacks.dimm_operations import DimmDump, DimmWrite
from workloads.attacks.target import AttackBatch

_GUEST = frozenset(
    {op.Read, op.Write, op.PValidate, op.RmpAdjust, op.RmpQuery, op.PageStateChange, op.BlockRead, op.BlockWrite}
)
_DIMM: Mapping[type, Callable[..., Answer]] = {
    DimmDump: lambda dram, _: _dump(dram),
    DimmWrite: lambda dram, one: dram.write(one.spa, one.data),
}


class MixedHands(ValueError):
    """A batch held operations of different actors."""

    def __init__(self, batch: AttackBatch) -> None:
        super().__init__(f"operations of different actors in one batch: {batch!r}")


class Hands:
    """Executes an attacker's batches: as the hypervisor, as one tenant, or at the memory modules."""

    def __init__(self, board: Board, tenant: str, transcript: Transcript) -> None:
        self._board = board
        self._tenant = tenant
        self._transcript = transcript
        self._ways: Mapping[Role, Callable[..., tuple[Answer, ...]]] = {
            Role.GUEST: lambda batch: board.execute_guest(board.vmcb(tenant, 0), batch),
            Role.HYPERVISOR: board.execute_host,
            Role.DIMM: self._at_the_modules,
        }

    def act(self, batch: AttackBatch) -> tuple[Answer, ...]:
        """Execute a batch. Raises MixedHands."""
        roles = {_role(one) for one in batch}
        if len(roles) != 1:
            raise MixedHands(batch)
        return self._ways[roles.pop()](batch)

    def _at_the_modules(self, batch: AttackBatch) -> tuple[Answer, ...]:
        # No chip takes part, so the board's tap sees nothing of it.
        answers = tuple([_DIMM[type(one)](self._board.dram, one) for one in batch])
        self._transcript.observe(Actor(Role.DIMM), batch, answers)
        return answers


def _role(one: object) -> Role:
    if type(one) in _GUEST:
        return Role.GUEST
    return Role.DIMM if type(one) in _DIMM else Role.HYPERVISOR


def _dump(dram: Dram) -> op.Runs:
    return op.Runs(tuple([(spa, dram.read(spa, length)) for spa, length in dram.resident_runs(0, dram.size_bytes)]))
