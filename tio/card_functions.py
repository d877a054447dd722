"""The functions of a card: one physical, and the virtual ones that its host makes of it; each with a TDI of its own.

Source: PCI Express base specification, chapter 9 (SR-IOV), 6.6.2 (function-level reset) and 11.2.6 (what of it takes a
locked TDI to ERROR). A reset of the physical function takes the virtual ones with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tio.card_dma import CardDma
from tio.card_link import CardLink
from tio.device_identity import CardKind
from tio.pci import (
    ConfigurationSpace,
    Device,
    ExtendedRegisters,
    Identity,
    MsixPlace,
    PciFunction,
    Region,
    SrIovCapability,
    VirtualPlace,
)
from tio.pci.sr_iov import FIRST_VF_OFFSET, VF_STRIDE
from tio.spdm.key_agreement import Random
from tio.tdisp import LockFlags, RangeAttributes, Tampering, Tdi
from tio.tdisp.interface import ALL_FLAGS

_VENDOR = 0x1AF4
_IDENTITIES = {
    CardKind.GPU: Identity(_VENDOR, 0x5E01, 0x03_0200),
    CardKind.NIC: Identity(_VENDOR, 0x5E02, 0x02_0000),
    CardKind.NVME: Identity(_VENDOR, 0x5E03, 0x01_0802),
}
_VF_DEVICE_BIT = 0x80
REGISTER_BAR, MEMORY_BAR, MSIX_BAR = 0, 2, 4
_REGISTER_BYTES, _MSIX_BYTES, _PBA_AT, _VECTORS = 0x4000, 0x2000, 0x1000, 16
_MSIX = MsixPlace(_VECTORS, MSIX_BAR, 0, _PBA_AT)


@dataclass(frozen=True, slots=True)
class Behind:
    """What lies behind a function, and how that reaches memory, where it does."""

    device: Device
    dma: CardDma | None = None


@dataclass(frozen=True, slots=True)
class TdiSettings:
    """``Tdi``'s, where there are any."""

    supported: LockFlags = ALL_FLAGS
    scrubs: bool = True
    tee_io: bool = True
    """False: the functions have no interfaces of TDISP, and say so in their Device Capabilities."""


class CardFunctions:
    """The functions of one card. ``by_number`` are those that there are now, by device and function number."""

    def __init__(
        self,
        kind: CardKind,
        behind: Behind,
        virtual: Sequence[Behind],
        *,
        requester_id: int,
        memory_bytes: int,
        extended: Sequence[ExtendedRegisters],
        random: Random,
        settings: TdiSettings,
    ) -> None:
        self.bars = {REGISTER_BAR: _REGISTER_BYTES, MSIX_BAR: _MSIX_BYTES}
        if memory_bytes:
            self.bars[MEMORY_BAR] = memory_bytes
        self._kind, self._random, self._settings = kind, random, settings
        identity = _IDENTITIES[kind]
        self.sr_iov = SrIovCapability(len(virtual), self.bars, identity.device_id | _VF_DEVICE_BIT)
        if virtual:
            extended = (*extended, self.sr_iov)
        tee_io = settings.tee_io
        space = ConfigurationSpace(identity, self.bars, tee_io=tee_io, msix=_MSIX, extended=extended)
        self.physical = self._function(space, behind, requester_id)
        self.virtual: list[PciFunction] = []
        for number, one in enumerate(virtual):
            place = VirtualPlace(self.sr_iov, number)
            space = ConfigurationSpace(identity, self.bars, tee_io=tee_io, msix=_MSIX, place=place)
            found = self._function(space, one, requester_id + FIRST_VF_OFFSET + number * VF_STRIDE)
            self.virtual.append(found)
        self.by_number = {self.physical.requester_id & 0xFF: self.physical}
        self.all = (self.physical, *self.virtual)
        self.physical.reset_heard = self._physical_reset
        self._behind = (behind, *virtual)
        self._of_physical = self.physical.space.changed
        self.physical.space.changed = self._changed
        self.sr_iov.changed = self._remade

    def attach(self, link: CardLink) -> None:
        """Let each reach memory over a link."""
        for one, behind in zip(self.all, self._behind, strict=True):
            if behind.dma is not None:
                behind.dma.attach(link, one)

    def behind(self, requester_id: int) -> Behind | None:
        """What is behind the function with an id; None if there is none that it could have."""
        for one, behind in zip(self.all, self._behind, strict=True):
            if one.requester_id == requester_id:
                return behind
        return None

    @property
    def tdis(self) -> list[Tdi]:
        """Those of all functions, the physical one's first."""
        return [one.tdi for one in self.all if one.tdi is not None]

    def tamper(self, event: Tampering) -> None:
        """Something happened to all of the card."""
        for one in self.tdis:
            one.tamper(event)

    def reset(self) -> None:
        """Conventional reset, to how the card was made."""
        for one in self.all:
            if one.tdi is not None:
                one.tdi.reset()
            one.space.reset()
            one.space.bus = None
            one.reset()
        self.sr_iov.reset()
        self._count()

    # Within.

    def _function(self, space: ConfigurationSpace, behind: Behind, requester_id: int) -> PciFunction:
        regions = [
            Region(REGISTER_BAR, 0, _REGISTER_BYTES),
            Region(MSIX_BAR, 0, _PBA_AT, RangeAttributes.MSIX_TABLE),
            Region(MSIX_BAR, _PBA_AT, _MSIX_BYTES - _PBA_AT, RangeAttributes.MSIX_PBA),
        ]
        if MEMORY_BAR in self.bars:
            regions.append(Region(MEMORY_BAR, 0, self.bars[MEMORY_BAR], RangeAttributes.IS_MEM_ATTR_UPDATABLE))
        found = PciFunction(space, behind.device, regions, self._kind.value.encode(), requester_id)
        if self._settings.tee_io:
            found.tdi = Tdi(found, self._random, self._settings.supported, scrubs=self._settings.scrubs)
        found.beside = self._overlap
        return found

    def _overlap(self) -> str | None:
        """Why memory of functions cannot be told apart."""
        space = self.physical.space
        places = [(space.bar_address(index), size) for index, size in self.bars.items()] + self.sr_iov.places()
        taken = sorted([(first, length) for first, length in places if first and length])
        for (first, length), (second, _) in pairwise(taken):
            if first + length > second:
                return "BARs of physical and virtual functions overlap"
        return None

    def _changed(self, event: Tampering) -> None:
        """The host touched the physical function: what of it reaches the virtual ones."""
        self._of_physical(event)
        if event is Tampering.REQUESTER_ID:
            for one in self.virtual:
                one.space.bus = self.physical.space.bus
        if event in (Tampering.REQUESTER_ID, Tampering.FUNCTION_RESET, Tampering.POWER_STATE):
            self._tamper_virtual(event)

    def _remade(self, event: Tampering) -> None:
        """The host made virtual functions, unmade them, or moved their memory."""
        before = len(self.by_number) - 1
        self._tamper_virtual(event)
        self._count()
        for one in self.virtual[self.sr_iov.enabled : before]:
            one.space.reset()
            one.reset()

    def _physical_reset(self) -> None:
        before = len(self.by_number) - 1
        self.sr_iov.reset()
        self._count()
        for one in self.virtual[:before]:
            one.space.reset()
            one.reset()

    def _tamper_virtual(self, event: Tampering) -> None:
        for one in self.virtual:
            if one.tdi is not None:
                one.tdi.tamper(event)

    def _count(self) -> None:
        there = (self.physical, *self.virtual[: self.sr_iov.enabled])
        self.by_number.clear()
        self.by_number.update({one.requester_id & 0xFF: one for one in there})
