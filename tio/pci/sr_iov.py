"""SR-IOV: the registers of a physical function by which a host makes virtual ones and places their memory.

Source: Single Root I/O Virtualization specification (PCI Express base specification, chapter 9): 9.3.3 (registers),
9.2.1.2 (requester ids), 9.3.3.14 (VF BARs). All VFs of a BAR lie one after another, each as large as the BAR says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum, IntFlag

from tio.tdisp.interface import Tampering

_BAR_SLOTS = 6
_FLAG_MEMORY_64 = 0b1100
_MASK = 0xFFFF_FFFF
FIRST_VF_OFFSET, VF_STRIDE = 1, 1
"""Requester ids of VFs follow their physical function's at once, on the same bus."""
_PAGES_4K = 1


class SrIovRegister(IntEnum):
    """Offsets in the capability, of double words."""

    CAPABILITIES = 0x04
    CONTROL = 0x08
    TOTAL_VFS = 0x0C
    """InitialVFs below, TotalVFs above."""
    NUM_VFS = 0x10
    OFFSET_STRIDE = 0x14
    VF_DEVICE_ID = 0x18
    """In the upper half."""
    SUPPORTED_PAGES = 0x1C
    SYSTEM_PAGES = 0x20
    VF_BAR_0 = 0x24


class SrIovControl(IntFlag):
    """CONTROL, as far as it is here."""

    VF_ENABLE = 1 << 0
    VF_MEMORY_SPACE = 1 << 3


class SrIovCapability:
    """Up to ``total`` VFs with the ``bars`` of each, sizes in bytes by BAR index.

    ``changed`` hears of each write that changes something, after it was done. NumVFs is fixed while VFs are enabled.
    """

    capability_id = 0x10
    size_bytes = 0x40

    def __init__(self, total: int, bars: Mapping[int, int], device_id: int) -> None:
        self.total = total
        self.changed: Callable[[Tampering], None] = _nobody
        self.control = SrIovControl(0)
        self.asked_for = 0
        self._bars = dict(bars)
        self._addresses = dict.fromkeys(bars, 0)
        self._device_id = device_id

    @property
    def enabled(self) -> int:
        """How many VFs there are now."""
        return self.asked_for if SrIovControl.VF_ENABLE in self.control else 0

    @property
    def memory_enabled(self) -> bool:
        """Whether VFs' memory answers."""
        return SrIovControl.VF_ENABLE | SrIovControl.VF_MEMORY_SPACE in self.control

    def bar_address(self, number: int, index: int) -> int:
        """Where VF ``number``, from 0, has a BAR; 0 before anybody placed it."""
        first = self._addresses[index]
        return first + number * self._bars[index] if first else 0

    def places(self) -> list[tuple[int, int]]:
        """First address and length of what each VF BAR takes for all VFs that there are."""
        return [(self._addresses[index], size * self.enabled) for index, size in self._bars.items()]

    def reset(self) -> None:
        """No VFs, nowhere."""
        self.control, self.asked_for = SrIovControl(0), 0
        self._addresses = dict.fromkeys(self._bars, 0)

    def load(self, offset: int) -> int:
        """A double word of the capability."""
        if offset >= SrIovRegister.VF_BAR_0:
            slot, high = self._slot(offset)
            if slot not in self._bars:
                return 0
            address = self._addresses[slot]
            return address >> 32 if high else address & _MASK | _FLAG_MEMORY_64
        return {
            SrIovRegister.CONTROL: int(self.control),
            SrIovRegister.TOTAL_VFS: self.total << 16 | self.total,
            SrIovRegister.NUM_VFS: self.asked_for,
            SrIovRegister.OFFSET_STRIDE: VF_STRIDE << 16 | FIRST_VF_OFFSET,
            SrIovRegister.VF_DEVICE_ID: self._device_id << 16,
            SrIovRegister.SUPPORTED_PAGES: _PAGES_4K,
            SrIovRegister.SYSTEM_PAGES: _PAGES_4K,
        }.get(SrIovRegister(offset) if offset in tuple(SrIovRegister) else SrIovRegister.CAPABILITIES, 0)

    def store(self, offset: int, value: int) -> Tampering | None:
        """Store a double word; what it does to a lock of the physical function."""
        event = self._stored(offset, value)
        if event is not None:
            self.changed(event)
        return event

    def _stored(self, offset: int, value: int) -> Tampering | None:
        if offset == SrIovRegister.CONTROL:
            control = SrIovControl(value & (SrIovControl.VF_ENABLE | SrIovControl.VF_MEMORY_SPACE))
            if control == self.control:
                return None
            self.control = control
            return Tampering.SR_IOV
        if offset == SrIovRegister.NUM_VFS:
            count = value & 0xFFFF
            if count > self.total or count == self.asked_for or SrIovControl.VF_ENABLE in self.control:
                return None
            self.asked_for = count
            return Tampering.SR_IOV
        slot, high = self._slot(offset)
        if offset < SrIovRegister.VF_BAR_0 or slot not in self._bars:
            return None
        before = self._addresses[slot]
        after = before & _MASK | value << 32 if high else before & ~_MASK | value
        after &= -self._bars[slot] & (1 << 64) - 1
        self._addresses[slot] = after
        return None if before == after else Tampering.BAR

    @staticmethod
    def _slot(offset: int) -> tuple[int, int]:
        """BAR index of two slots, and whether it is the upper half; some other number for what is no BAR."""
        number = (offset - SrIovRegister.VF_BAR_0) // 4
        return (number & ~1, number & 1) if 0 <= number < _BAR_SLOTS else (-1, 0)


class VirtualPlace:
    """What a VF has from its physical function: where its memory is, and whether it answers."""

    def __init__(self, capability: SrIovCapability, number: int) -> None:
        self._capability = capability
        self.number = number

    @property
    def exists(self) -> bool:
        """Whether there is such a VF now."""
        return self.number < self._capability.enabled

    @property
    def memory_enabled(self) -> bool:
        """Whether its memory answers."""
        return self.exists and self._capability.memory_enabled

    def bar_address(self, index: int) -> int:
        """Where a BAR begins."""
        return self._capability.bar_address(self.number, index)


def _nobody(_: Tampering) -> None:
    """Hear nothing."""
