"""How a hypervisor asks a guest to let its trusted devices go before it moves it, and hears that it has.

A register of the host bridge's, which the hypervisor answers for: nothing that stands there is believed in more than
that the guest stops trusting, or has to set its devices up anew. What hypervisors will say to such guests nobody has
published; PCIe's own attention button and presence bits say the same of a slot, but there a device that was let go is
gone, while this one is used on over bounce buffers until the guest is stopped.

Read: bit 0, the devices are wanted; from bit 16 on, how often other functions took the places of those before.
Written: what the guest has done (``Told``), and from bit 16 on a bit for each device that it trusts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from node.guest_functions import ECAM_GPA
from node.operations import MmioLoad, MmioStore
from node.swiotlb import Steps

NOTICE_GPA = ECAM_GPA + 0x200
"""In the configuration space of the host bridge, function 0 of bus 0."""
NOTICE_BYTES = 4
_WANTED, _UPPER, _MOST = 1, 16, 0xFFFF


class Told(IntEnum):
    """What a guest says it has done."""

    NOTHING = 0
    LET_GO = 1
    """It trusts none of its devices, and any of them may be taken from it while it stands still."""
    SETTLED = 2
    """It has made of its devices what it can."""


@dataclass(slots=True)
class DeviceNotice:
    """What a guest reads there: whether its devices are wanted, and how often others came in their places."""

    wanted: bool = False
    arrivals: int = 0

    @property
    def word(self) -> int:
        """The register."""
        return (self.arrivals & _MOST) << _UPPER | (_WANTED if self.wanted else 0)


def told_of(value: int) -> tuple[Told, int]:
    """What a guest has written: what it has done, and the devices that it trusts, a bit for each."""
    kind = value & _MOST
    return (Told(kind) if kind <= Told.SETTLED else Told.NOTHING), value >> _UPPER


def read_notice() -> Steps[DeviceNotice]:
    """Guest: what the hypervisor wants."""
    (answer,) = yield (MmioLoad(NOTICE_GPA, NOTICE_BYTES),)
    word = answer if isinstance(answer, int) and 0 <= answer < 1 << 32 else 0
    return DeviceNotice(bool(word & _WANTED), word >> _UPPER)


def tell(told: Told, trusted: int = 0) -> Steps[None]:
    """Guest: say what it has done, with a bit for each device that it trusts."""
    yield (MmioStore(NOTICE_GPA, (trusted & _MOST) << _UPPER | told, NOTICE_BYTES),)
