"""Slots that somebody has reached for: a root port, its link, and the card, set up as boot firmware leaves it.

Boot firmware gives each BAR an address in the port's window, and turns neither memory space nor bus mastering on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from node.card_memory import CardMemory
from node.card_slot import CardSlot, MmioWindow
from tio.card import Card
from tio.card_dma import CardDma
from tio.device_identity import CardKind
from tio.gpu import Gpu
from tio.ide import Link, StreamChecks
from tio.loose_device import LooseDevice
from tio.pci import Device
from tio.root_port import RootPort

_BARS = 0x10
_WORD = 0xFFFF_FFFF
_SLOTS, _SLOT_BYTES = 6, 4

Draw = Callable[[str, int, int], bytes]
"""Random bytes: for whom, the number of the draw, and how many."""


@dataclass(frozen=True, slots=True)
class FilledSlot:
    """What stands in one slot."""

    window: MmioWindow
    link: Link
    root_port: RootPort
    card: Card
    device: Device
    dma: CardDma


class FilledSlots:
    """Fills slots of a board; ``by_port`` holds those that are. ``checks`` are what both ends of links look at."""

    def __init__(self, memory: CardMemory, draw: Draw, checks: StreamChecks) -> None:
        self.by_port: dict[int, FilledSlot] = {}
        self._checks = checks
        self._memory = memory
        self._draw = draw

    def fill(self, window: MmioWindow) -> RootPort:
        """Make a slot's port with its card."""
        link = Link()
        root_port = RootPort(window.slot.port, link, self._memory, checks=self._checks)
        self._plug(window, link, root_port, window.slot)
        _place_bars(root_port, window)
        return root_port

    def swap(self, port: int, other: CardSlot) -> None:
        """Put another card into a filled slot, as it comes out of its box: no BAR has an address.

        ``other`` counts but for its port. Raises KeyError for a slot that is not filled.
        """
        there = self.by_port[port]
        self._plug(there.window, there.link, there.root_port, replace(other, port=port))

    def _plug(self, window: MmioWindow, link: Link, root_port: RootPort, slot: CardSlot) -> None:
        dma = CardDma()
        device = _DEVICES[slot.kind](slot, dma)
        card = Card(
            slot.kind, device, self._random(slot), serial=slot.serial, requester_id=slot.requester, dma=dma,
            memory_bytes=slot.memory_bytes if slot.kind is CardKind.GPU else 0, checks=self._checks,
            seed=slot.maker, scrubs=slot.scrubs,
        )  # fmt: skip
        root_port.plug(card)
        self.by_port[slot.port] = FilledSlot(window, link, root_port, card, device, dma)

    def _random(self, slot: CardSlot) -> Callable[[int], bytes]:
        name, drawn = f"card {slot.kind.value} {slot.serial} {slot.port}", 0

        def random(length: int) -> bytes:
            nonlocal drawn
            drawn += 1
            return self._draw(name, drawn, length)

        return random


def _place_bars(root_port: RootPort, window: MmioWindow) -> None:
    """Size each BAR of 64 bits by writing ones, and give it an address."""
    requester, at = window.slot.requester, window.base
    for register in range(_BARS, _BARS + _SLOTS * _SLOT_BYTES, 2 * _SLOT_BYTES):
        halves = register, register + _SLOT_BYTES
        for half in halves:
            root_port.configuration_write(requester, half, _WORD)
        low, high = (root_port.configuration_read(requester, half) for half in halves)
        size = -(high << 32 | low & ~0xF) & (1 << 64) - 1
        if not low & ~0xF:
            continue
        at = -(-at // size) * size
        for half, value in zip(halves, (at & _WORD, at >> 32), strict=True):
            root_port.configuration_write(requester, half, value)
        at += size


_DEVICES: dict[CardKind, Callable[[CardSlot, CardDma], Device]] = {
    CardKind.GPU: lambda slot, dma: Gpu(dma, slot.memory_bytes),
    CardKind.NIC: lambda _slot, _dma: LooseDevice(),
    CardKind.NVME: lambda _slot, _dma: LooseDevice(),
}
