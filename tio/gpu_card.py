"""A GPU as a PCIe function: registers in BAR 0, its memory in BAR 2, an interrupt when a doorbell's work is done."""

from __future__ import annotations

from typing import Any

from tio.card import Card
from tio.card_dma import CardDma
from tio.card_functions import Behind
from tio.device_identity import CardKind
from tio.gpu import Gpu
from tio.spdm.key_agreement import Random

DONE_VECTOR = 0


def gpu_card(
    random: Random, memory_bytes: int = 16 << 20, virtual: int = 0, **card: Any
) -> tuple[Card, Gpu]:
    """A card with one GPU, and one behind each of so many VFs, each with as much memory.

    ``card`` are the settings of ``Card``.
    """
    gpu, dma = _gpu(memory_bytes)
    behind = [Behind(*_gpu(memory_bytes)) for _ in range(virtual)]
    return Card(CardKind.GPU, gpu, random, dma=dma, memory_bytes=memory_bytes, virtual=behind, **card), gpu


def _gpu(memory_bytes: int) -> tuple[Gpu, CardDma]:
    dma = CardDma()
    gpu = Gpu(dma, memory_bytes)
    gpu.interrupt = lambda: _fired(dma)
    return gpu, dma


def _fired(dma: CardDma) -> None:
    dma.interrupt(DONE_VECTOR)
