"""How fast a card reaches its host's memory: whole packets over a protected link, through port, stream and TDI."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from statistics import median

from cluster.errors import ToolError
from cluster.figure import Figure
from tio.card import Card
from tio.card_dma import CardDma
from tio.device_identity import CardKind
from tio.ide import Direction, Link, SubStream
from tio.ide.capability import BlockRegister, IdeCapability, control_word, requester_words
from tio.ide.keys import FIRST_INVOCATION
from tio.loose_device import LooseDevice
from tio.root_port import RootPort
from tio.tdisp import LockRequest

TOGETHER = 8
_SESSION, _STREAM = 1, 1
_ROUNDS = 3


class FlatMemory:
    """So many bytes that any device may read and write."""

    def __init__(self, length: int) -> None:
        self.octets = bytearray(length)

    def read(self, _requester: int, address: int, length: int, *, tee: bool, stream_id: int | None) -> bytes:
        """Load; ``tee`` and ``stream_id`` do not matter here."""
        return bytes(self.octets[address : address + length])

    def write(self, _requester: int, address: int, data: bytes, *, tee: bool, stream_id: int | None) -> None:
        """Store."""
        self.octets[address : address + len(data)] = data


def figures(data: bytes, cipher_s: float) -> Iterator[Figure]:
    """Trusted DMA of ``data`` each way against the cipher alone on as much."""
    memory = FlatMemory(len(data))
    dma = trusted_card(memory)
    written, read = [], []
    for _ in range(_ROUNDS):
        begin = time.process_time()
        dma.write(0, data)
        between = time.process_time()
        found = dma.read(0, len(data))
        read.append(time.process_time() - between)
        written.append(between - begin)
        if found != data or memory.octets != data:
            raise ToolError("bench tio: expected the bytes that the card wrote")
    for name, took in (("written", written), ("read", read)):
        figure = f"a card's trusted DMA over its link, {name}"
        yield Figure(figure, len(data) / median(took), "byte/s", len(data) / cipher_s, "AES-256-GCM alone")


def trusted_card(memory: FlatMemory) -> CardDma:
    """How a card reaches ``memory`` once its host, its TSM and its guest have set it up."""
    dma = CardDma()
    card = Card(CardKind.NIC, LooseDevice(), bytes, dma=dma, programmed=True)
    root_port = RootPort(1, Link(), memory)
    root_port.plug(card)
    ids = card.function.requester_id
    for capability, requester in ((root_port.ide, ids), (card.ide, root_port.requester_id)):
        block, words = capability.block_at(0), requester_words(requester, requester)
        capability.store(block + BlockRegister.RID_1, words[0])
        capability.store(block + BlockRegister.RID_2, words[1])
        _control(capability, enable=False)
    for way in Direction:
        for sub_stream in SubStream:
            key = hashlib.sha256(bytes((way, sub_stream))).digest()
            for port, its_way in ((root_port.port, way), (card.port, Direction(1 - way))):
                port.streams[_STREAM].program(0, its_way, sub_stream, key, FIRST_INVOCATION)
                port.streams[_STREAM].go(0, its_way, sub_stream)
    for capability in (root_port.ide, card.ide):
        _control(capability, enable=True)
    card.tdi.start(card.tdi.lock_interface(_SESSION, LockRequest(0, _STREAM), card.port.streams[_STREAM]))
    return dma


def _control(capability: IdeCapability, *, enable: bool) -> None:
    word = control_word(_STREAM, enable=enable, default=True, tee_limited=True, aggregation=TOGETHER)
    capability.store(capability.block_at(0) + BlockRegister.CONTROL, word)
