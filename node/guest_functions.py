"""The PCI functions that a hypervisor shows a guest: where each has its configuration space and its BARs.

A guest finds its devices as on a real machine, by vendor, device and class in their configuration spaces, which the
hypervisor answers for: nothing that stands there proves anything. BARs are where ``node.device_window`` has them, and
cannot be moved. Source: PCI Express base specification, 7.2.2 (ECAM) and 7.5.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from node.device_window import bar_gpa
from node.operations import MmioLoad
from node.swiotlb import Steps
from tio.pci import Register

ECAM_GPA = 0xE000_0000
"""Configuration space of bus 0, 4 KiB for each function."""
ECAM_BYTES = 1 << 20
FIRST_DEVICE = 8
"""The number of the first device that was given to the guest, on bus 0."""
MOST_DEVICES = 16
_VENDOR, _CLASS, _BAR, _CAPABILITIES = 0x00, 0x08, 0x10, int(Register.DEVICE_CAPABILITIES)
_TEE_IO = 1 << 30
_BARS = 6
_MEMORY_64 = 0b0100
_ABSENT = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class GuestFunction:
    """What a guest is shown of a device: its number among the guest's, what it is, and which 64-bit BARs it has."""

    device: int
    vendor_id: int
    device_id: int
    class_code: int
    bars: tuple[tuple[int, int], ...]
    """(BAR, bytes)."""
    tee_io: bool = False
    """Whether it is said to have TEE-IO."""
    requester: int = 0
    """Its requester id on the host, which no guest is shown."""

    @property
    def guest_device_id(self) -> int:
        """Its requester id in the guest."""
        return guest_device_id(self.device)

    def word(self, offset: int) -> int:
        """A double word of its configuration space."""
        if offset == _VENDOR:
            return self.device_id << 16 | self.vendor_id
        if offset == _CLASS:
            return self.class_code << 8
        if offset == _CAPABILITIES:
            return _TEE_IO if self.tee_io else 0
        index, odd = divmod(offset - _BAR, 4)
        if 0 <= index < _BARS and not odd:
            for bar, _ in self.bars:
                if index == bar:
                    return bar_gpa(self.device, bar) & 0xFFFF_FFFF | _MEMORY_64
                if index == bar + 1:
                    return bar_gpa(self.device, bar) >> 32
        return 0


def guest_device_id(device: int) -> int:
    """The requester id in the guest of its device of this number."""
    return FIRST_DEVICE + device << 3


def configuration_gpa(device: int) -> int:
    """Where the guest's device of this number has its configuration space."""
    return ECAM_GPA + (guest_device_id(device) << 12)


def says_tee_io(device: int) -> Steps[bool]:
    """Whether the guest's device of this number is said to have TEE-IO. Who says so is the hypervisor."""
    (answer,) = yield (MmioLoad(configuration_gpa(device) + _CAPABILITIES),)
    return isinstance(answer, int) and answer != _ABSENT and bool(answer & _TEE_IO)


def configuration_load(functions: Sequence[GuestFunction], gpa: int, length: int) -> int:
    """What a load from the configuration spaces of bus 0 gives; ones where there is no function."""
    requester, offset = divmod(gpa - ECAM_GPA, 4096)
    found = [one for one in functions if one.guest_device_id == requester]
    words = [found[0].word(at) if found else _ABSENT for at in range(offset & ~3, offset + length, 4)]
    value = sum(word << 32 * at for at, word in enumerate(words))
    return value >> 8 * (offset & 3) & (1 << 8 * length) - 1
