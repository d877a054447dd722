"""Memory as the cards of a host reach it through their root ports: by the IOMMU, on its trusted side with the T bit.

A store to the interrupts' addresses is a message-signalled interrupt, whatever a page table says of them (PCI Express
base specification, 6.1.4; AMD I/O virtualisation specification, 2.2.5). Interrupts are not remapped: what the host
does with one follows from who sent it and what it says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node.card_cost import CardTraffic
from node.iommu import Iommu
from node.trusted_dma import TrustedDma
from tio.dma_port import DmaFault

INTERRUPTS_BASE, INTERRUPTS_END = 0xFEE0_0000, 0xFEF0_0000
_DATA_BYTES = 4
MOST_WAITING = 4096
"""Interrupts that nobody has taken; a card that sends more loses them."""


@dataclass(frozen=True, slots=True)
class MessageInterrupt:
    """One that arrived: which function sent it, to which address, and what it says there."""

    requester: int
    address: int
    data: int
    tee: bool = False

    @property
    def vector(self) -> int:
        """DATA, bits 7:0."""
        return self.data & 0xFF

    @property
    def apic_id(self) -> int:
        """Of the thread that the address names, bits 19:12."""
        return self.address >> 12 & 0xFF


class CardMemory:
    """What root ports are handed. ``trusted`` is None on a part without SEV-TIO: nothing with the T bit passes."""

    def __init__(self, iommu: Iommu, trusted: TrustedDma | None) -> None:
        self.arrived: Callable[[MessageInterrupt], None] | None = None
        """Whoever brings interrupts to where they belong."""
        self.interrupts: list[MessageInterrupt] = []
        """Those that arrived while there was nobody to do so."""
        self.traffic: CardTraffic | None = None
        """What cards have moved since somebody last took the account; None where they were silent."""
        self.lost = 0
        """Interrupts that came while ``MOST_WAITING`` were there."""
        self._iommu = iommu
        self._trusted = trusted

    def take_traffic(self) -> CardTraffic:
        """The account of what cards have moved, which begins anew."""
        taken, self.traffic = self.traffic or CardTraffic(), None
        return taken

    def _note(self, length: int, *, tee: bool) -> None:
        if self.traffic is None:
            self.traffic = CardTraffic()
        self.traffic.note(length, tee=tee)

    def behind(self, port: int) -> PortMemory:
        """What the root port of this number is handed."""
        return PortMemory(self, port)

    def read(
        self, requester: int, address: int, length: int, *, tee: bool, stream_id: int | None, port: int | None = None
    ) -> bytes:
        """A function's load that came by a root port. Raises DmaFault."""
        self._note(length, tee=tee)
        if not tee:
            self._check_fence(requester, address, length, write=False)
            return self._iommu.read(requester, address, length)
        if self._trusted is None or stream_id is None:
            raise DmaFault(address, length, write=False)
        return self._trusted.read(requester, stream_id, address, length, port)

    def write(
        self, requester: int, address: int, data: bytes, *, tee: bool, stream_id: int | None, port: int | None = None
    ) -> None:
        """A function's store; one that the IOMMU refuses is lost. Raises DmaFault where nothing takes it."""
        self._note(len(data), tee=tee)
        if INTERRUPTS_BASE <= address < INTERRUPTS_END:
            self._interrupt(requester, address, data, tee=tee)
        elif not tee:
            self._check_fence(requester, address, len(data), write=True)
            self._iommu.write(requester, address, data)
        elif self._trusted is None or stream_id is None:
            raise DmaFault(address, len(data), write=True)
        else:
            self._trusted.write(requester, stream_id, address, data, port)

    def _check_fence(self, requester: int, address: int, length: int, *, write: bool) -> None:
        if self._trusted is not None and self._trusted.is_fenced(requester):
            raise DmaFault(address, length, write=write)

    def _interrupt(self, requester: int, address: int, data: bytes, *, tee: bool) -> None:
        if len(data) != _DATA_BYTES:
            raise DmaFault(address, len(data), write=True)
        interrupt = MessageInterrupt(requester, address, int.from_bytes(data, "little"), tee)
        if self.arrived is not None:
            self.arrived(interrupt)
        elif len(self.interrupts) < MOST_WAITING:
            self.interrupts.append(interrupt)
        else:
            self.lost += 1


@dataclass(frozen=True, slots=True)
class PortMemory:
    """A machine's memory as it is behind one root port."""

    memory: CardMemory
    port: int

    def read(self, requester: int, address: int, length: int, *, tee: bool, stream_id: int | None) -> bytes:
        """As ``CardMemory.read``."""
        return self.memory.read(requester, address, length, tee=tee, stream_id=stream_id, port=self.port)

    def write(self, requester: int, address: int, data: bytes, *, tee: bool, stream_id: int | None) -> None:
        """As ``CardMemory.write``."""
        self.memory.write(requester, address, data, tee=tee, stream_id=stream_id, port=self.port)
