"""A PCIe function: its configuration space, its memory in BARs, and what of it a TDI reports.

Loads and stores reach the device's own registers through a ``Device``. What a locked interface lets in is asked first:
a packet that it does not admit is an Unsupported Request, loads of which read ones. Source: PCI Express base
specification, 2.3.1, 7.5.1.2 and 11.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from tio.dma_port import DmaPort
from tio.pci.configuration_space import Command, ConfigurationSpace, DeviceControl, MsixControl
from tio.pci.msix import ENTRY_BYTES, MsixTable
from tio.tdisp.interface import Tampering, Tdi
from tio.tdisp.messages import LockFlags
from tio.tdisp.report import PAGE_SHIFT, InterfaceInfo, InterfaceReport, MmioRange, RangeAttributes

PLAIN = RangeAttributes(0)
_PAGE_BYTES = 1 << PAGE_SHIFT


class Device(Protocol):
    """What lies behind a function's memory."""

    def load(self, bar: int, offset: int, width: int) -> int:
        """Load from a BAR."""

    def store(self, bar: int, offset: int, value: int, width: int) -> None:
        """Store to a BAR."""

    def reset(self) -> None:
        """Function-level reset."""

    def scrub(self) -> None:
        """Forget what trusted work left."""


@dataclass(frozen=True, slots=True)
class Region:
    """Whole pages of a BAR with the same attributes, in bytes."""

    bar: int
    offset: int
    length: int
    attributes: RangeAttributes = PLAIN


class PciFunction:
    """One function. ``regions`` cover its BARs from their beginnings, in order; the MSI-X table has pages of its own.

    ``tdi`` is its interface where the device has TDISP; without one everything is let in that memory space allows.
    ``slot`` is its requester id before a bus number was captured.
    """

    def __init__(
        self,
        space: ConfigurationSpace,
        device: Device,
        regions: Sequence[Region],
        specific: bytes = b"",
        slot: int = 0x0100,
    ) -> None:
        self.space = space
        self._slot = slot
        self.tdi: Tdi | None = None
        self.msix = MsixTable(0 if space.msix is None else space.msix.vectors)
        self.interrupts: DmaPort | None = None
        """On which its interrupts go."""
        self.reset_heard: Callable[[], None] = _nothing
        """A function-level reset was done."""
        self.beside: Callable[[], str | None] = _nothing_wrong
        """Why what lies beside the function cannot be locked."""
        self.refused = 0
        """Requests that were not admitted."""
        self.device = device
        self._regions = tuple(sorted(regions, key=lambda one: (one.bar, one.offset)))
        self._specific = specific
        for one in self._regions:
            if one.offset % _PAGE_BYTES or one.length % _PAGE_BYTES or one.offset + one.length > space.bars[one.bar]:
                raise ValueError(f"region: expected whole pages inside its BAR, got {one}")
        space.changed = self._changed
        space.reset_asked = self._reset

    @property
    def requester_id(self) -> int:
        """Bus, device and function."""
        bus = self._slot >> 8 if self.space.bus is None else self.space.bus
        return bus << 8 | self._slot & 0xFF

    # What arrives on the bus.

    def load(self, address: int, width: int, *, tee: bool = False, stream_id: int | None = None) -> int:
        """A load of memory; ones where nothing answers or it is not admitted."""
        found = self.answer(address, width, tee=tee, stream_id=stream_id)
        return (1 << 8 * width) - 1 if found is None else found

    def answer(self, address: int, width: int, *, tee: bool = False, stream_id: int | None = None) -> int | None:
        """The same; None where nothing answers or it is not admitted."""
        found = self._place(address, width, tee=tee, stream_id=stream_id)
        if found is None:
            return None
        region, offset = found
        place = self.space.msix
        if place is not None and region.bar == place.bar:
            if region.attributes & RangeAttributes.MSIX_TABLE and self._in_table(offset):
                return self.msix.load(offset - place.table_offset, width)
            if region.attributes & RangeAttributes.MSIX_PBA and offset >= place.pba_offset:
                return self.msix.pending_bits(offset - place.pba_offset, width)
        return self.device.load(region.bar, offset, width)

    def store(self, address: int, value: int, width: int, *, tee: bool = False, stream_id: int | None = None) -> bool:
        """A store to memory; whether anything took it."""
        found = self._place(address, width, tee=tee, stream_id=stream_id)
        if found is None:
            return False
        region, offset = found
        place = self.space.msix
        if place is not None and region.attributes & RangeAttributes.MSIX_TABLE and self._in_table(offset):
            if not tee:
                self._changed(Tampering.MSIX)
            self.msix.store(offset - place.table_offset, value, width)
            self._catch_up()
            return True
        if region.attributes & RangeAttributes.MSIX_PBA:
            return False  # read-only
        self.device.store(region.bar, offset, value, width)
        return True

    def interrupt(self, vector: int, port: DmaPort | None = None) -> bool:
        """Fire a vector; whether a write went out. Without ``port`` on the one that the function has."""
        port = port or self.interrupts
        control = self.space.msix_control
        if port is None or not control & MsixControl.ENABLE or not self.space.command & Command.BUS_MASTER:
            return False
        return self.msix.fire(vector, port, masked=bool(control & MsixControl.FUNCTION_MASK))

    # What its DSM asks (``tio.tdisp.Function``).

    def objection(self, flags: LockFlags) -> str | None:
        """Why the configuration cannot be locked."""
        space = self.space
        if Command.MEMORY_SPACE | Command.BUS_MASTER not in space.command:
            return "Memory Space Enable or Bus Master Enable is clear"
        if space.control & DeviceControl.PHANTOM_FUNCTIONS:
            return "phantom functions are enabled"
        if space.rom_enabled:
            return "the expansion ROM is enabled"
        places = sorted((space.bar_address(index), size) for index, size in space.bars.items())
        if not all(address for address, _ in places):
            return "a BAR is not programmed"
        if any(first + size > second for (first, size), (second, _) in pairwise(places)):
            return "two BARs overlap"
        if flags & LockFlags.LOCK_MSIX and space.msix is None:
            return "there is no MSI-X table to lock"
        return self.beside()

    def report(self) -> InterfaceReport:
        """What the function is now."""
        ranges, control = tuple(map(self._range, self._regions)), self.space.msix_control
        return InterfaceReport(InterfaceInfo.DMA_WITHOUT_PASID, ranges, control, specific=self._specific)

    def begin(self) -> None:
        """The TDI runs: nothing to do before its driver does something."""

    def scrub(self) -> None:
        """Forget what trusted work left."""
        self.device.scrub()

    # Within.

    def _place(self, address: int, width: int, *, tee: bool, stream_id: int | None) -> tuple[Region, int] | None:
        """The region and offset in its BAR that a request reaches; None where it reaches nothing or is not admitted."""
        if not self.space.command & Command.MEMORY_SPACE:
            return None
        for one in self._regions:
            start = self.space.bar_address(one.bar)
            offset = address - start
            if start and one.offset <= offset and offset + width <= one.offset + one.length:
                if self.tdi is not None and not self.tdi.admits(self._reported(one), tee=tee, stream_id=stream_id):
                    self.refused += 1
                    return None
                return one, offset
        return None

    def _reported(self, region: Region) -> int | None:
        """The number of the reported range that a region is; None where it is not reported."""
        assert self.tdi is not None
        lock = self.tdi.lock
        if lock is None:
            return None
        page = self._range(region).moved(lock.request.mmio_reporting_offset).first_page
        for number, one in enumerate(lock.report.ranges):
            if (one.first_page, one.range_id) == (page, region.bar):
                return number
        return None

    def _range(self, region: Region) -> MmioRange:
        page = self.space.bar_address(region.bar) + region.offset >> PAGE_SHIFT
        return MmioRange(page, region.length >> PAGE_SHIFT, region.attributes, region.bar)

    def _in_table(self, offset: int) -> bool:
        place = self.space.msix
        return place is not None and 0 <= offset - place.table_offset < place.vectors * ENTRY_BYTES

    def _changed(self, event: Tampering) -> None:
        if self.tdi is not None:
            self.tdi.tamper(event)
        if event is Tampering.MSIX:
            self._catch_up()

    def _catch_up(self) -> None:
        """Fire what waited for a vector to be unmasked."""
        for vector in sorted(self.msix.pending):
            self.interrupt(vector)

    def reset(self) -> None:
        """What a reset of any kind does to what lies behind the registers."""
        self.msix.reset()
        self.device.reset()

    def _reset(self) -> None:
        self.reset()
        self.reset_heard()


def _nothing() -> None:
    """Do nothing."""


def _nothing_wrong() -> str | None:
    return None
