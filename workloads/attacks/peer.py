"""A card of the attacker's stores to the memory of the victim's, past the machine's own (row 81).

The hypervisor's page table leads the card's address there, and the root complex brings the request down again. Where
devices are trusted, the card is one that a guest of the attacker's has let into its own private memory.
"""

from __future__ import annotations

from node.iommu_driver import IommuDriver
from node.operations import HostWrite, MmioWrite
from node.pci_driver import enable
from psp.system_bus import PAGE_BYTES
from tio.gpu import MEMORY_BAR, REGISTER_BAR, GpuCommand, GpuOpcode, GpuRegister
from workloads.attacks.another_guest import store_to_its_device
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Target

_RING, _PEER = 0x1_0000, 0x2_0000
_FENCE_OFFSET = 2048
_DEPOSIT_BYTES = 64


def write(target: Target) -> Attack:
    """Row 81: zeros, which the card's own memory holds, over what the victim has left on its device."""
    device, other = target.device, target.device.other
    if device.tenant is not None:
        yield from store_to_its_device(target)
        return
    ring = target.spare[-1]
    frames = iter(target.spare)
    command = GpuCommand(GpuOpcode.COPY_OUT, 1, 0, _PEER, _DEPOSIT_BYTES)
    yield LET_IT_RUN
    yield from enable(other, on=True)
    driver = IommuDriver(lambda: next(frames), device.tio.device_table[0])
    yield from driver.attach(other.requester, other.requester, ((_RING, ring), (_PEER, device.bar(MEMORY_BAR))))
    yield (HostWrite(ring, command.pack().ljust(PAGE_BYTES, b"\0")),)
    yield WRITE_BACK
    base = device.bar(REGISTER_BAR, other)
    yield (
        MmioWrite(base + GpuRegister.RING_BASE, _RING, 8),
        MmioWrite(base + GpuRegister.FENCE_BASE, _RING + _FENCE_OFFSET, 8),
        MmioWrite(base + GpuRegister.RING_ENTRIES, 16, 4),
        MmioWrite(base + GpuRegister.DOORBELL, 1, 4),
    )
    yield LET_IT_RUN
