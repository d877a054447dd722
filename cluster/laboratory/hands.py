"""The hands that an attack acts with: each takes the operations of one actor and notes them in the transcript."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

from cluster.laboratory.move_hands import MoveHands
from cluster.laboratory.one_instruction import step
from cluster.laboratory.outside import Outside
from cluster.laboratory.slot_hands import SlotHands
from cluster.oracle.transcript import Transcript
from node import operations as op
from node.actor import HYPERVISOR, Actor, Role
from node.board import Board
from node.operations import Answer
from node.physical_port import PhysicalPort
from workloads.attacks.chip_operations import ChipOperation
from workloads.attacks.claims import Claim, WorkedOut
from workloads.attacks.dimm_operations import DimmDump, DimmGround, DimmPoke, DimmTap, DimmUnground
from workloads.attacks.elsewhere import Elsewhere, LeftBehind
from workloads.attacks.hypervisor_books import BookOperation
from workloads.attacks.move_operations import MoveOperation
from workloads.attacks.owner_operations import OwnerOperation
from workloads.attacks.single_step import Step
from workloads.attacks.slot_operations import SlotOperation
from workloads.attacks.target import AttackBatch

_NETWORK = "network"
"""Not a hand: who asks a victim's owner, and what it is answered."""
_CHIP = "chip"
"""The supply of the security processor, and the holes of its firmware."""
_ELSEWHERE = "elsewhere"
"""The same attacker's other host."""
_NOTEBOOK = "notebook"
"""No hand either: where an attacker writes down what it has learnt."""
_BOOKS = "books"
"""The hypervisor's own: no chip takes part."""
_SLOT = "slot"
"""The links of cards, and cards that are the attacker's."""
_CORE = "core"
"""A core that executes what the hypervisor entered; the answer is the hypervisor's."""
_MOVE = "move"
"""The hypervisor's machinery for moves; of what its chips answer the boards tell."""
_GUEST = frozenset(get_args(op.GuestOperation))
_OF_BOOKS = frozenset(get_args(BookOperation))
_OF_NETWORK, _OF_CHIP = frozenset(get_args(OwnerOperation)), frozenset(get_args(ChipOperation))
_OF_SLOT, _OF_MOVE = frozenset(get_args(SlotOperation)), frozenset(get_args(MoveOperation))
_DIMM: Mapping[type, Callable[..., Answer]] = {
    DimmDump: lambda port, _: op.Runs(port.dump_written()),
    # What a line's cells hold is what was last written to them, or read from them, over the bus.
    DimmTap: lambda port, one: port.dump(one.at, one.length),
    DimmPoke: lambda port, one: port.poke(one.at, one.data),
    DimmGround: lambda port, one: port.ground(one.line),
    DimmUnground: lambda port, one: port.unground(one.line),
}


class MixedHands(ValueError):
    """A batch held operations of different actors."""

    def __init__(self, batch: AttackBatch) -> None:
        super().__init__(f"operations of different actors in one batch: {batch!r}")


class Hands:
    """Executes an attacker's batches: as the hypervisor, as one tenant, or at the memory modules.

    ``outside`` are the victim's owner and who else is not on the host, ``tell`` changes what the hypervisor's books say
    of the victim, ``moves`` moves it; without them nobody does.
    """

    def __init__(
        self,
        board: Board,
        tenant: str,
        transcript: Transcript,
        tell: Callable[[BookOperation], None] | None = None,
        outside: Outside | None = None,
        moves: MoveHands | None = None,
    ) -> None:
        self._board, self._tenant = board, tenant
        self._modules = PhysicalPort(board.dram)
        self._slots = SlotHands(board, transcript)
        self._transcript = transcript
        self._tell = tell
        self._ways: Mapping[str, Callable[..., tuple[Answer, ...]]] = {
            Role.GUEST: self._as_the_tenant,
            Role.HYPERVISOR: board.execute_host,
            Role.DIMM: self._at_the_modules,
            _NOTEBOOK: self._note,
            _BOOKS: self._keep_books,
            _CORE: self._let_run,
            _SLOT: self._at_a_slot,
            _MOVE: _nobody if moves is None else moves.act,
            _NETWORK: _nobody if outside is None else outside.network.act,
            _CHIP: _nobody if outside is None else lambda batch: self._seen(batch, outside.chip.act(batch)),
            _ELSEWHERE: _nobody if outside is None else lambda batch: self._seen(batch, outside.other.act(batch)),
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
        board = self._board
        if not (board.vmrun_checks.passed(vmcb) and board.save_areas.fits(vmcb) and board.residents.at_home(vmcb)):
            return (None,) * len(batch)
        return self._board.execute_guest(vmcb, batch)

    def _note(self, batch: tuple[Claim | WorkedOut, ...]) -> tuple[Answer, ...]:
        for one in batch:
            if isinstance(one, Claim):
                self._transcript.guess(one.bits)
            else:
                self._transcript.concluded(one.octets)
        return (None,) * len(batch)

    def _keep_books(self, batch: tuple[BookOperation, ...]) -> tuple[Answer, ...]:
        for one in batch:
            if self._tell is not None:
                self._tell(one)
        answers = (None,) * len(batch)
        self._transcript.observe(HYPERVISOR, batch, answers)
        return answers

    def _seen(self, batch: AttackBatch, answers: tuple[Answer, ...]) -> tuple[Answer, ...]:
        self._transcript.observe(HYPERVISOR, batch, answers)
        return answers

    def _let_run(self, batch: tuple[Step, ...]) -> tuple[Answer, ...]:
        answers = tuple([step(self._board, one.vm) for one in batch])
        self._transcript.observe(HYPERVISOR, batch, answers)
        return answers

    def _at_a_slot(self, batch: tuple[SlotOperation, ...]) -> tuple[Answer, ...]:
        answers = self._slots.act(batch)
        self._transcript.observe(Actor(Role.LINK), batch, answers)
        return answers

    def _at_the_modules(self, batch: AttackBatch) -> tuple[Answer, ...]:
        # No chip takes part, so the board's tap sees nothing of it.
        answers = tuple([_DIMM[type(one)](self._modules, one) for one in batch])
        self._transcript.observe(Actor(Role.DIMM), batch, answers)
        return answers


def _nobody(batch: AttackBatch) -> tuple[Answer, ...]:
    return (None,) * len(batch)


def _role(one: object) -> str:
    if type(one) in _GUEST:
        return Role.GUEST
    if type(one) in _OF_NETWORK:
        return _NETWORK
    if type(one) in _OF_CHIP:
        return _CHIP
    if type(one) in _OF_SLOT:
        return _SLOT
    if type(one) in _OF_MOVE:
        return _MOVE
    if type(one) in (Elsewhere, LeftBehind):
        return _ELSEWHERE
    if type(one) in (Claim, WorkedOut):
        return _NOTEBOOK
    if type(one) in _OF_BOOKS:
        return _BOOKS
    if type(one) is Step:
        return _CORE
    return Role.DIMM if type(one) in _DIMM else Role.HYPERVISOR

