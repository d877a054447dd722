"""A device that the hypervisor commands reads and writes a guest's memory (rows 05a, 05b, 05c, 06, 71a, 71b).

The hypervisor owns the IOMMU's tables, so it maps whatever it likes for the
device; what the device then gets is the RMP check's and the cipher's to say.
"""

from __future__ import annotations

from node.iommu_driver import DEVICE_TABLE, IommuDriver
from node.operations import CardUpdate, DeviceRead, DeviceWrite
from node.tio_carrier import TioRefused
from workloads.attacks.crooked_device import EVIL
from workloads.attacks.slot_operations import CardRead, CardWrite
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Target
from workloads.attacks.vault import PAGE_BYTES
from workloads.attacks.write_memory import JUNK

SLOT, REQUESTER, DOMAIN = 3, 0x118, 7
"""Bus 1, device 3, function 0."""
IOVA = 0x40_0000


def read_by_device(target: Target) -> Attack:
    """Rows 05a, 05c: the device loads the secret, with nothing in the address that asks for a key."""
    yield LET_IT_RUN
    yield WRITE_BACK
    yield from attach(target, target.victim.secret.spa)
    yield (DeviceRead(SLOT, IOVA, PAGE_BYTES),)


def read_by_device_with_c_bit(target: Target) -> Attack:
    """Row 05b: the same through a mapping with the C-bit."""
    yield LET_IT_RUN
    yield WRITE_BACK
    yield from attach(target, target.victim.secret.spa, target.c_bit)
    yield (DeviceRead(SLOT, IOVA, PAGE_BYTES),)


def write_by_device(target: Target) -> Attack:
    """Row 06: the device stores junk over a value."""
    yield LET_IT_RUN
    yield WRITE_BACK
    yield from attach(target, target.victim.value.spa)
    yield (DeviceWrite(SLOT, IOVA, JUNK),)
    yield WRITE_BACK


def read_and_write_by_device(target: Target) -> Attack:
    """Row 71a: both, as the host's key allows it."""
    yield LET_IT_RUN
    yield WRITE_BACK
    yield from attach(target, target.victim.secret.spa, target.c_bit if target.victim.c_bit else 0)
    yield (DeviceRead(SLOT, IOVA, PAGE_BYTES),)
    yield from attach(target, target.victim.value.spa)
    yield (DeviceWrite(SLOT, IOVA, JUNK),)
    yield WRITE_BACK


def read_and_write_by_card(target: Target) -> Attack:
    """Row 71a: both, by a card of the victim's that it has nothing to do with; then that is locked and started, too."""
    device, victim = target.device, target.victim
    yield LET_IT_RUN
    yield WRITE_BACK
    yield (CardUpdate(device.port, *EVIL),)
    use = (CardRead(device.port, victim.secret.gpa, PAGE_BYTES), CardWrite(device.port, victim.value.gpa, JUNK))
    yield use
    yield WRITE_BACK
    try:
        yield from device.tio.bind(device.given, device.gctx)
        yield from device.tio.run(device.given, device.gctx)
    except TioRefused:  # No firmware locks any there.
        pass
    else:
        yield use
    yield WRITE_BACK


def read_shared_by_device(target: Target) -> Attack:
    """Row 71b: the device loads what the victim lays out in shared memory."""
    yield LET_IT_RUN
    yield WRITE_BACK
    yield from attach(target, target.victim.outbox.spa, target.c_bit if target.victim.c_bit else 0)
    yield (DeviceRead(SLOT, IOVA, PAGE_BYTES),)


def attach(target: Target, spa: int, c_bit: int = 0) -> Attack:
    """Have the IOMMU translate the device's ``IOVA`` to a page; takes three of the spare frames, the fourth with it."""
    frames = iter(target.spare)
    table = target.card.tio.device_table[0] if target.card else DEVICE_TABLE
    yield from IommuDriver(lambda: next(frames), table).attach(REQUESTER, DOMAIN, ((IOVA, spa),), c_bit=c_bit)
