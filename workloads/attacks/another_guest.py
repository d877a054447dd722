"""A guest of the attacker's has a device that is trusted with its memory, which the hypervisor leads to the victim's.

The device is asked for nothing but that it is the guest's; what it may reach is the victim's to be kept from it.
"""

from __future__ import annotations

from node.device_policy import DevicePolicy
from node.device_window import DeviceWindow
from node.guest_gpu import GuestGpu
from node.guest_messages import GuestMessages
from node.guest_tdi import GuestTdi
from node.iommu_guest_table import Piece
from node.swiotlb import BounceArea
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES
from psp.tsm.tio_buffers import NONCE_BYTES
from tio.device_identity import CardKind
from tio.gpu import MEMORY_BAR, GpuCommand, GpuOpcode
from workloads.attacks.depositor import BUFFER_BYTES, CONTENT_BYTES
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Target

_SHARED, _PRIVATE = 16 * PAGE_BYTES, 2 * LARGE_PAGE_BYTES
"""From where on its other program leaves its memory alone. The private part is in another 2 MiB than the buffer."""
FREE_GPA = 1 << 30
"""Where the guest has no memory."""
ANY = DevicePolicy(
    CardKind.GPU, b"", checks_certificates=False, checks_identity=False, checks_measurements=False, checks_fresh=False
)
"""Any GPU is good enough for it."""


def store_to_private_memory(target: Target) -> Attack:
    """Zeros, which the device's own memory holds, over what has come from the victim's."""
    inbox = target.device.inbox
    offset = inbox.gpa % LARGE_PAGE_BYTES
    block = inbox.gpa - offset, inbox.spa - offset, LARGE_PAGE_BYTES, True
    yield from _store(target, block, inbox.gpa, BUFFER_BYTES)


def store_to_its_device(target: Target) -> Attack:
    """The same over what the victim has left on its device, which the hypervisor leads the other to."""
    page = FREE_GPA, target.device.bar(MEMORY_BAR), PAGE_BYTES, False
    yield from _store(target, page, FREE_GPA, CONTENT_BYTES)


def tdi_of_tenant(target: Target) -> GuestTdi:
    """Its way to its device."""
    place = target.device.tenant
    assert place is not None
    assert place.messages is not None
    shared = place.shared_gpa + _SHARED
    return GuestTdi.of(GuestMessages(place.messages, shared, shared + PAGE_BYTES), 0)


def _store(target: Target, shown: Piece, gpa: int, length: int) -> Attack:
    """Have the guest's device trusted by it, show it what is not the guest's, and have it stored to."""
    device = target.device
    place = device.tenant
    assert place is not None
    yield from tdi_of_tenant(target).attach(ANY, bytes(NONCE_BYTES))
    area = BounceArea(place.shared_gpa, place.shared_length, place.book_gpa, bounces=False)
    gpu = GuestGpu(area, DeviceWindow(0, private=True), place.base_gpa + _PRIVATE)
    yield from gpu.start()
    yield LET_IT_RUN
    yield WRITE_BACK
    yield from device.tio.shows(target.tenant.vm, [shown])
    yield from gpu.leave(GpuCommand(GpuOpcode.COPY_OUT, 0, 0, gpa, length))
    yield WRITE_BACK
    yield LET_IT_RUN
