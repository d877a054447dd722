"""Where a device that was given to a guest has its BARs in guest memory, and how a driver reaches them.

A window is private where the guest has accepted the device's memory as its own: such loads and stores bear the C-bit,
so that the RMP has a say in them and the device takes them as trusted. Any other is shared with the host.

Each access is a part of a block, for ``yield from``.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.operations import MmioLoad, MmioStore
from node.swiotlb import Steps

DEVICES_GPA = 1 << 40
"""Above all memory that a guest has."""
DEVICE_STRIDE, BAR_STRIDE = 1 << 36, 1 << 33
"""From one device's window to the next, and from one 64-bit BAR's to that of the next number."""


class DeviceSilent(Exception):
    """Nothing answers at a device's window, or the guest may not reach it."""


def bar_gpa(device: int, bar: int) -> int:
    """Where a BAR of the guest's device of this number begins."""
    return DEVICES_GPA + device * DEVICE_STRIDE + bar * BAR_STRIDE


@dataclass(frozen=True, slots=True)
class DeviceWindow:
    """The BARs of one device, by its number in the guest."""

    device: int
    private: bool = False

    def load(self, bar: int, offset: int, length: int = 4) -> Steps[int]:
        """A load of 1, 2, 4 or 8 bytes. Raises DeviceSilent."""
        (answer,) = yield (MmioLoad(bar_gpa(self.device, bar) + offset, length, self.private),)
        if not isinstance(answer, int):
            raise DeviceSilent(f"BAR {bar}, offset {offset:#x}: {answer!r}")
        return answer

    def store(self, bar: int, *stores: tuple[int, int, int]) -> Steps[None]:
        """Stores of (offset, value, bytes), in one batch. Raises DeviceSilent."""
        base = bar_gpa(self.device, bar)
        for answer in (yield tuple([MmioStore(base + at, value, size, self.private) for at, value, size in stores])):
            if answer is not None:
                raise DeviceSilent(f"BAR {bar}, offset {stores[0][0]:#x}: {answer!r}")
