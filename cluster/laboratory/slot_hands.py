"""What an attacker does at a host's slots: on the links of its cards, and with cards that are its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from cluster.oracle.transcript import Transcript
from node.actor import Actor, Role
from node.board import Board
from node.filled_slots import FilledSlot
from node.operations import Answer
from tio.device_identity import Firmware
from tio.dma_port import DmaFault
from tio.gpu import Gpu, GpuServed
from tio.ide import IdeTlp, Packet
from tio.ide.link import Tap, Way
from workloads.attacks.slot_operations import (
    CardConfide,
    CardRead,
    CardRecall,
    CardSwap,
    CardWrite,
    LinkLeave,
    LinkPacket,
    LinkTap,
    SlotOperation,
)
from workloads.device_policies import policy_for

_HEADS, _PAYLOADS = Actor(Role.LINK, "heads"), Actor(Role.LINK, "payloads")
_REMEMBERED_BYTES = 4096
"""Of a card's memory, after each command."""


class SlotHands:
    """At the slots of one board. What comes by on a link is noted in the transcript as seen."""

    def __init__(self, board: Board, transcript: Transcript) -> None:
        self._board = board
        self._transcript = transcript
        self._confided: dict[int, list[bytes]] = {}
        self._ways: Mapping[type, Callable[..., Answer]] = {
            LinkTap: self._sit,
            LinkLeave: self._leave,
            LinkPacket: lambda _: None,
            CardConfide: self._confide,
            CardRecall: self._recall,
            CardRead: self._read,
            CardWrite: self._write,
            CardSwap: self._swap,
        }

    def act(self, batch: tuple[SlotOperation, ...]) -> tuple[Answer, ...]:
        """Do as asked; nothing in a slot that there is not."""
        return tuple([self._ways[type(one)](one) for one in batch])

    def _slot(self, port: int) -> FilledSlot | None:
        if self._board.root_complex is not None:
            self._board.root_complex.port(port)
        return self._board.slots.by_port.get(port)

    def _sit(self, one: LinkTap) -> None:
        there = self._slot(one.port)
        if there is not None:
            there.link.tap = self._listening(one)

    def _listening(self, one: LinkTap) -> Tap:
        def seen(way: Way, packet: Packet) -> Iterable[Packet]:
            head = packet.head if isinstance(packet, IdeTlp) else packet.header
            # The payload by itself: what crosses in pieces of one transfer is joined.
            self._transcript.observe(_HEADS, (LinkPacket(one.port, way),), (head,))
            if one.tells:
                self._transcript.observe(_PAYLOADS, (LinkPacket(one.port, way),), (packet.payload,))
            return one.tap(way, packet)

        return seen

    def _leave(self, one: LinkLeave) -> None:
        there = self._slot(one.port)
        if there is not None:
            there.link.tap = None

    def _confide(self, one: CardConfide) -> None:
        there = self._slot(one.port)
        if there is None or not isinstance(there.device, Gpu) or not _is_crooked(there):
            return
        gpu, kept = there.device, self._confided.setdefault(one.port, [])

        def remember(_: GpuServed) -> None:
            kept.append(gpu.memory[:_REMEMBERED_BYTES].tobytes())

        gpu.served = remember

    def _recall(self, one: CardRecall) -> Answer:
        kept = self._confided.get(one.port)
        return None if kept is None else b"".join(kept)

    def _read(self, one: CardRead) -> Answer:
        there = self._slot(one.port)
        if there is None or there.card.dma is None or not _is_crooked(there):
            return None
        try:
            return there.card.dma.read(one.address, one.length)
        except DmaFault:
            return None

    def _write(self, one: CardWrite) -> None:
        there = self._slot(one.port)
        if there is not None and there.card.dma is not None and _is_crooked(there):
            with suppress(DmaFault):
                there.card.dma.write(one.address, one.data)

    def _swap(self, one: CardSwap) -> None:
        if self._slot(one.port) is not None:
            self._board.slots.swap(one.port, one.other)


def _is_crooked(there: FilledSlot) -> bool:
    """Whether a card is the attacker's: by its maker, or by what runs on it."""
    card = there.card
    return card.identity.root != policy_for(card.kind).root or card.firmware != Firmware()
