"""A paravirtual network card as a PCIe function: registers in BAR 0, and interrupts by MSI-X.

The registers are those of VIRTIO's memory-mapped transport, for the sake of one driver: which vector tells of what is
fixed, as the laboratory has it, and not the driver's to choose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tio.card import Card
from tio.card_dma import CardDma
from tio.card_functions import Behind
from tio.device_identity import CardKind
from tio.dma_port import DmaPort
from tio.spdm.key_agreement import Random
from tio.virtio_format import DeviceStatus
from tio.virtio_net import VirtioNet

REGISTER_BAR = 0
RECEIVED_VECTOR, CONFIGURATION_VECTOR = 0, 1
"""A frame came; the card cannot go on."""


class NicDevice:
    """What lies behind the function's memory. ``sent`` gets each frame that goes to the network."""

    def __init__(self, port: DmaPort, mac: bytes, interrupt: Callable[[int], object]) -> None:
        self.sent: Callable[[bytes], None] = _nobody
        self.nic = VirtioNet(port, mac)
        self._interrupt = interrupt
        self._failed = False

    def receive(self, frame: bytes) -> bool:
        """Take a frame from the network; False if it was dropped."""
        received = self.nic.receive(frame)
        if received:
            self._interrupt(RECEIVED_VECTOR)
        self._tell_of_failure()
        return received

    def load(self, bar: int, offset: int, width: int) -> int:
        """Load from a BAR."""
        return self.nic.read_register(offset, width) if bar == REGISTER_BAR else 0

    def store(self, bar: int, offset: int, value: int, width: int) -> None:
        """Store to a BAR; what it sends has left when this returns."""
        if bar == REGISTER_BAR:
            for frame in self.nic.write_register(offset, value, width):
                self.sent(frame)
            self._tell_of_failure()

    def reset(self) -> None:
        """Forget the queues and what the driver settled."""
        self.nic.registers.set_status(0)
        self._failed = False

    def scrub(self) -> None:
        """The same: a card keeps no frame."""
        self.reset()

    def _tell_of_failure(self) -> None:
        failed = bool(self.nic.registers.status & DeviceStatus.NEEDS_RESET)
        if failed and not self._failed:
            self._interrupt(CONFIGURATION_VECTOR)
        self._failed = failed


def nic_card(random: Random, mac: bytes, virtual: Sequence[bytes] = (), **card: Any) -> tuple[Card, NicDevice]:
    """A card with one NIC, and one behind each VF that a host can make, by their addresses.

    ``card`` are the settings of ``Card``.
    """
    device, dma = _nic(mac)
    return Card(CardKind.NIC, device, random, dma=dma, virtual=[Behind(*_nic(one)) for one in virtual], **card), device


def _nic(mac: bytes) -> tuple[NicDevice, CardDma]:
    dma = CardDma()
    return NicDevice(dma, mac, dma.interrupt), dma


def _nobody(_: bytes) -> None:
    """Hear nothing."""
