"""A GPU as a PCIe function: registers in BAR 0, its memory in BAR 2, an interrupt when a doorbell's work is done.

Behind its registers there is a mailbox of its own (``tio.gpu.MAILBOX_AT``), with the registers of DOE and a responder
that shares nothing but the identity with the card's: through it a guest's driver opens a session, and in that a channel
for sealed work, where nobody trusts the bus.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tio.card import Card
from tio.card_dma import CardDma
from tio.card_functions import Behind
from tio.device_identity import CardKind
from tio.doe import DataObject, ObjectType, parse_data_object
from tio.gpu import Gpu
from tio.gpu_channel import VENDOR, ChannelKeeper
from tio.pci import DoeMailbox
from tio.spdm import PCI_DOE, Responder
from tio.spdm.connection_messages import PCI_SIG_STANDARD, VendorDefinedRequest
from tio.spdm.device_personality import VendorSession
from tio.spdm.key_agreement import Random

DONE_VECTOR = 0


def gpu_card(
    random: Random, memory_bytes: int = 16 << 20, virtual: int = 0, **card: Any
) -> tuple[Card, Gpu]:
    """A card with one GPU, and one behind each of so many VFs, each with as much memory.

    ``card`` are the settings of ``Card``.
    """
    gpu, dma = _gpu(memory_bytes)
    others = [_gpu(memory_bytes) for _ in range(virtual)]
    behind = [Behind(*one) for one in others]
    made = Card(CardKind.GPU, gpu, random, dma=dma, memory_bytes=memory_bytes, virtual=behind, **card)
    for one, _ in ((gpu, dma), *others):
        _give_mailbox(made, one)
    return made, gpu


def _gpu(memory_bytes: int) -> tuple[Gpu, CardDma]:
    dma = CardDma()
    gpu = Gpu(dma, memory_bytes)
    gpu.interrupt = lambda: _fired(dma)
    return gpu, dma


def _fired(dma: CardDma) -> None:
    dma.interrupt(DONE_VECTOR)


def _give_mailbox(card: Card, gpu: Gpu) -> None:
    keeper = ChannelKeeper(gpu.set_channel)
    gpu.channel_lost = keeper.lost

    def vendor(session: VendorSession | None, request: VendorDefinedRequest) -> bytes | None:
        if (request.standard, request.vendor) != (PCI_SIG_STANDARD, VENDOR):
            return None
        if session is None or not session.encrypted:  # The channel's keys are in what is said.
            return None
        return keeper.answer(session.session_id, request.payload)

    gpu.mailbox = _OwnMailbox(lambda: card.other_responder(PCI_DOE, vendor, keeper.end_session))


class _OwnMailbox:
    """A mailbox before a responder that is made for the first object, and gone with a reset."""

    def __init__(self, make: Callable[[], Responder]) -> None:
        self._make = make
        self._responder: Responder | None = None
        self._mailbox = DoeMailbox((ObjectType.CMA_SPDM, ObjectType.SECURED_CMA_SPDM), self._answer)

    def load(self, offset: int) -> int:
        """A register."""
        return self._mailbox.load(offset)

    def store(self, offset: int, value: int) -> None:
        """Store to a register."""
        self._mailbox.store(offset, value)

    def reset(self) -> None:
        """Nothing is under way, and nobody has a session."""
        self._mailbox.reset()
        if self._responder is not None:
            self._responder.close()
            self._responder = None

    def _answer(self, asked: DataObject) -> DataObject:
        self._responder = self._responder or self._make()
        return parse_data_object(PCI_DOE.wrap(self._responder.answer(PCI_DOE.unwrap(asked.pack()))))
