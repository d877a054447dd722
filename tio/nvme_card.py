"""An NVMe disk as a PCIe function: registers and doorbells in BAR 0, completions that interrupt by MSI-X."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tio.card import Card
from tio.card_dma import CardDma
from tio.card_functions import Behind
from tio.device_identity import CardKind
from tio.dma_port import DmaPort
from tio.nvme import NvmeController, Served
from tio.nvme_admin import NvmeSettings
from tio.nvme_namespace import NvmeNamespace
from tio.spdm.key_agreement import Random

REGISTER_BAR = 0


class NvmeDevice:
    """What lies behind the function's memory. ``served`` hears of each command; ``interrupt`` fires a vector."""

    def __init__(
        self,
        port: DmaPort,
        namespace: NvmeNamespace,
        interrupt: Callable[[int], object],
        settings: NvmeSettings | None = None,
        more: Sequence[NvmeNamespace] = (),
    ) -> None:
        self.served: Callable[[Served], None] = _nobody
        self.controller = NvmeController(port, namespace, settings, more)
        self.controller.interrupt = lambda vector: _fired(interrupt, vector)

    def load(self, bar: int, offset: int, width: int) -> int:
        """Load from a BAR."""
        return self.controller.read_register(offset, width) if bar == REGISTER_BAR else 0

    def store(self, bar: int, offset: int, value: int, width: int) -> None:
        """Store to a BAR, doorbells among it."""
        if bar == REGISTER_BAR:
            for one in self.controller.write_register(offset, value, width):
                self.served(one)

    def reset(self) -> None:
        """Forget queues and registers; the media stay."""
        self.controller.reset()

    def scrub(self) -> None:
        """The same: what trusted work wrote to the disk is what it is for."""
        self.controller.reset()


def nvme_card(
    random: Random,
    namespace: NvmeNamespace,
    disk: NvmeSettings | None = None,
    virtual: Sequence[NvmeNamespace] = (),
    more: Sequence[NvmeNamespace] = (),
    **card: Any,
) -> tuple[Card, NvmeDevice]:
    """A card with one disk, and one behind each VF that a host can make; ``disk`` is what all of them offer.

    ``more`` are further namespaces of the first. ``card`` are the settings of ``Card``.
    """
    device, dma = _disk(namespace, disk, more)
    behind = [Behind(*_disk(one, disk)) for one in virtual]
    return Card(CardKind.NVME, device, random, dma=dma, virtual=behind, **card), device


def _disk(
    namespace: NvmeNamespace, settings: NvmeSettings | None, more: Sequence[NvmeNamespace] = ()
) -> tuple[NvmeDevice, CardDma]:
    dma = CardDma()
    return NvmeDevice(dma, namespace, dma.interrupt, settings, more), dma


def _fired(interrupt: Callable[[int], object], vector: int) -> None:
    interrupt(vector)


def _nobody(_: Served) -> None:
    """Hear nothing."""
