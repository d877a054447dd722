"""A GPU as a PCIe function: registers in BAR 0, its memory in BAR 2, an interrupt when a doorbell's work is done."""

from __future__ import annotations

from typing import Any

from tio.card import Card
from tio.card_dma import CardDma
from tio.device_identity import CardKind
from tio.gpu import Gpu
from tio.spdm.key_agreement import Random

DONE_VECTOR = 0


def gpu_card(random: Random, memory_bytes: int = 16 << 20, **card: Any) -> tuple[Card, Gpu]:
    """A card with one GPU; ``card`` are the settings of ``Card``."""
    dma = CardDma()
    gpu = Gpu(dma, memory_bytes)
    gpu.interrupt = lambda: _fired(dma)
    return Card(CardKind.GPU, gpu, random, dma=dma, memory_bytes=memory_bytes, **card), gpu


def _fired(dma: CardDma) -> None:
    dma.interrupt(DONE_VECTOR)
