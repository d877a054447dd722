"""Slots that somebody has reached for: a root port, its link, and the card, set up as boot firmware leaves it.

Boot firmware gives each BAR an address in the port's window, and turns neither memory space nor bus mastering on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from node.card_memory import CardMemory
from node.card_slot import CardSlot, MmioWindow
from node.disk_file import DiskFileError, disk_file
from node.mac_address import mac_of
from tio.card import Card
from tio.card_functions import TdiSettings
from tio.device_identity import CardKind
from tio.gpu_card import gpu_card
from tio.ide import Link, StreamChecks
from tio.nic_card import nic_card
from tio.nvme_card import nvme_card
from tio.nvme_namespace import Image, MediaError, NvmeNamespace
from tio.pci import Device
from tio.root_port import RootPort
from tio.spdm import ResponderSettings
from tio.spdm.capabilities import Capability
from tio.spdm.device_personality import TEE_IO_CAPABILITIES
from tio.spdm.key_agreement import Random

_BARS = 0x10
_WORD = 0xFFFF_FFFF
_SLOTS, _SLOT_BYTES = 6, 4
_BLOCK_BYTES = 4096
_SESSIONS = {
    True: ResponderSettings(), False: ResponderSettings(capabilities=TEE_IO_CAPABILITIES & ~Capability.ENCRYPT)
}  # fmt: skip

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
    """What is behind its physical function."""


class FilledSlots:
    """Fills slots of a board; ``by_port`` holds those that are.

    ``wants_encryption`` is every card's; the rest are settings of both ends of links.
    """

    def __init__(
        self,
        memory: CardMemory,
        draw: Draw,
        checks: StreamChecks,
        *,
        reorder_check: bool = False,
        tag_fence: bool = False,
        rekey_flush: bool = False,
        wants_encryption: bool = True,
    ) -> None:
        self.by_port: dict[int, FilledSlot] = {}
        self._ends: dict[str, Any] = {
            "checks": checks, "reorder_check": reorder_check, "tag_fence": tag_fence, "rekey_flush": rekey_flush,
        }  # fmt: skip
        self._wants_encryption = wants_encryption
        self._memory = memory
        self._draw = draw
        self._plugged: dict[int, int] = {}
        """How many cards have been in a slot, by its port."""

    def fill(self, window: MmioWindow) -> RootPort:
        """Make a slot's port with its card."""
        link = Link()
        root_port = RootPort(window.slot.port, link, self._memory.behind(window.slot.port), **self._ends)
        self._plug(window, link, root_port, window.slot)
        _place_bars(root_port, window)
        return root_port

    def device_of(self, requester: int) -> Device | None:
        """What is behind a card's function; None where nobody has reached for the slot, or there is no function."""
        filled = self.by_port.get((requester >> 8) - 1)
        behind = None if filled is None else filled.card.functions.behind(requester)
        return None if behind is None else behind.device

    def swap(self, port: int, other: CardSlot) -> None:
        """Put another card into a filled slot, as it comes out of its box: no BAR has an address.

        ``other`` counts but for its port. Raises KeyError for a slot that is not filled.
        """
        there = self.by_port[port]
        self._plug(there.window, there.link, there.root_port, replace(other, port=port))

    def _plug(self, window: MmioWindow, link: Link, root_port: RootPort, slot: CardSlot) -> None:
        card, device = _MAKERS[slot.kind](
            slot, self._random(slot), serial=slot.serial, requester_id=slot.requester, seed=slot.maker,
            tdi=TdiSettings(scrubs=slot.scrubs, tee_io=slot.tee_io), settings=_SESSIONS[slot.encrypts],
            wants_encryption=self._wants_encryption, **self._ends,
        )  # fmt: skip
        root_port.plug(card)
        self.by_port[slot.port] = FilledSlot(window, link, root_port, card, device)

    def _random(self, slot: CardSlot) -> Callable[[int], bytes]:
        # No two cards draw the same, though one passes for the other and stands in its slot.
        self._plugged[slot.port] = plugged = self._plugged.get(slot.port, 0) + 1
        name, drawn = f"card {slot.kind.value} {slot.port} {plugged} {slot.maker} {slot.serial}", 0

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


def _gpu(slot: CardSlot, random: Random, **how: Any) -> tuple[Card, Device]:
    return gpu_card(random, slot.memory_bytes, slot.virtual_functions, **how)


def _nic(slot: CardSlot, random: Random, **how: Any) -> tuple[Card, Device]:
    own, *others = [mac_of(f"{slot.kind.value} {slot.serial}", at) for at in range(1 + slot.virtual_functions)]
    return nic_card(random, own, others, **how)


def _nvme(slot: CardSlot, random: Random, **how: Any) -> tuple[Card, Device]:
    blocks, image = _medium(slot)
    own, *others = [NvmeNamespace(blocks, _BLOCK_BYTES, image) for _ in range(1 + slot.virtual_functions)]
    return nvme_card(random, own, virtual=others, **how)


def _medium(slot: CardSlot) -> tuple[int, Image | None]:
    """Blocks, and what lies below them. A file that is gone is a medium that fails."""
    blocks = max(1, slot.memory_bytes // _BLOCK_BYTES)
    if not slot.disk:
        return blocks, None
    try:
        file = disk_file(slot.disk)
    except DiskFileError as error:
        return blocks, _FailedMedium(str(error))
    return file.blocks, file


@dataclass(frozen=True, slots=True)
class _FailedMedium:
    """What is left of a file that cannot be read."""

    why: str

    def read(self, _offset: int, _length: int) -> bytes:
        """Raises MediaError."""
        raise MediaError(self.why)


_MAKERS: dict[CardKind, Callable[..., tuple[Card, Device]]] = {
    CardKind.GPU: _gpu,
    CardKind.NIC: _nic,
    CardKind.NVME: _nvme,
}
