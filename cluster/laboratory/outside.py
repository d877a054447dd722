"""What there is outside of a scene's host: the victim's owner, AMD's key service, and the attacker's other host."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from cluster.laboratory.chip_hands import ChipHands
from cluster.laboratory.guest_code import GuestCode
from cluster.laboratory.key_service import KeyService
from cluster.laboratory.network import Network
from cluster.laboratory.other_host import OtherHost
from cluster.laboratory.owner_habits import OwnerHabits
from cluster.laboratory.sev_owner import SevOwner
from cluster.laboratory.snp_owner import SnpOwner
from cluster.oracle.transcript import Transcript
from node.board import Board
from node.cost_table import load_cost_table
from node.generation import CAPABILITIES, Generation
from node.host import Host, HostSpec
from node.hypervisor import Hypervisor
from node.product import PRODUCTS
from psp.system_bus import PAGE_BYTES

_OTHER = "other host"
_FRAMES = 4


class Outside:
    """Of one host, whose victim is of a generation; nothing of it is made before somebody needs it."""

    def __init__(
        self, spec: HostSpec, board: Board, generation: Generation, habits: OwnerHabits, victim: str,
        transcript: Transcript,
    ) -> None:  # fmt: skip
        # What a product has today is in its row; the host may be older.
        product = PRODUCTS[spec.product.name]
        capabilities = CAPABILITIES[generation]
        self._spec = replace(spec, name=_OTHER, seed=spec.seed + 1, platform=replace(
            spec.platform, firmware_api=None, firmware_tcb=None, ghost_line=0,
        ))  # fmt: skip
        self._board = board
        self.other = OtherHost(board, self._made)
        sev = SevOwner(
            transcript, victim, habits, product.firmware_api, capabilities.encrypted_registers, self._keys
        )
        snp = SnpOwner(transcript, victim, habits, product, self._keys)
        code = GuestCode(board, transcript, victim, snp)
        self.network = Network(transcript, sev, snp, code, capabilities.rmp)
        self.chip = ChipHands(board, product)

    def _keys(self) -> KeyService:
        chips = [self._board.psp.legacy.keys.chip]
        if self.other.is_there:
            chips.append(self.other.board.psp.legacy.keys.chip)
        return KeyService(tuple(chips))

    def _made(self) -> tuple[Board, tuple[int, ...]]:
        host = Host(self._spec, {}, {}, _costs())
        assert isinstance(host.hypervisor, Hypervisor)
        frames = tuple(host.hypervisor.frames.allocate(PAGE_BYTES, PAGE_BYTES)[0][0] for _ in range(_FRAMES))
        return host.board, frames


@lru_cache(maxsize=1)
def _costs() -> dict[str, float]:
    return dict(load_cost_table())
