"""Registers of a trusted device are claimed for another guest, or another device's for a guest's own.

The hypervisor gives pages of a device's memory to whom it likes, and BARs whatever address before they are locked. What
keeps that from being believed is who says that the pages are valid: firmware, which knows what a device reports and
where its root port leads. Source: the list at the head of ``spec/tio/tio-overview.md``.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from node.device_window import bar_gpa
from node.guest_functions import guest_device_id
from node.guest_messages import MessageRefused
from node.guest_tdi import TdiRefused
from node.operations import MmioLoad, NestedMap, PValidate, RmpUpdate
from node.pci_driver import Function
from node.tio_carrier import TioRefused
from psp.system_bus import PAGE_BYTES, RmpEntry
from psp.tsm.tio_buffers import NONCE_BYTES
from tio.gpu import MEMORY_BAR
from workloads.attacks.another_guest import ANY, FREE_GPA, tdi_of_tenant
from workloads.attacks.depositor import CONTENT_BYTES, DEVICE, SECRET_ON_DEVICE
from workloads.attacks.lock_breaking import placed
from workloads.attacks.target import LET_IT_RUN, Attack, Target

_WORD_BYTES = 8


def by_validation(target: Target) -> Attack:
    """A page of the victim's device is another guest's in the RMP, which validates it itself, and loads from it."""
    memory, tenant = target.device.bar(MEMORY_BAR), target.tenant
    yield LET_IT_RUN
    yield (
        RmpUpdate(memory, PAGE_BYTES, RmpEntry()),
        RmpUpdate(memory, PAGE_BYTES, RmpEntry(assigned=True, gpa=FREE_GPA, asid=tenant.asid)),
        NestedMap(tenant.vm, FREE_GPA, memory, PAGE_BYTES, large=False),
    )
    yield (PValidate(FREE_GPA, PAGE_BYTES, large=False),)
    yield _loads(FREE_GPA)
    yield LET_IT_RUN


def by_address(target: Target) -> Attack:
    """The other guest's own device says that its memory lies where the victim's does; the guest has it trusted."""
    device, memory = target.device, target.device.bar(MEMORY_BAR)
    yield LET_IT_RUN
    _, size = _memory_of(device.other)
    theirs = device.tio.given(target.tenant.vm, guest_device_id(DEVICE))
    assert theirs is not None
    yield tuple(placed(device.other, memory))
    theirs.interface.function = _moved(device.other, memory)
    yield (
        RmpUpdate(memory, size, RmpEntry()),
        NestedMap(target.tenant.vm, bar_gpa(DEVICE, MEMORY_BAR), memory, size, large=False),
    )
    with suppress(TdiRefused, MessageRefused):
        yield from tdi_of_tenant(target).attach(ANY, bytes(NONCE_BYTES))
    yield _loads(bar_gpa(DEVICE, MEMORY_BAR))
    yield LET_IT_RUN


def behind_another_port(target: Target) -> Attack:
    """The victim's device says that its memory lies where another guest's does, which has a trusted one there."""
    device = target.device
    yield from tdi_of_tenant(target).attach(ANY, bytes(NONCE_BYTES))
    memory, _ = _memory_of(device.other)
    _, size = _memory_of(device.function)
    yield tuple(placed(device.function, memory))
    device.given.interface.function = _moved(device.function, memory)
    yield (
        RmpUpdate(memory, size, RmpEntry()),  # Firmware would see that they are valid for the other.
        NestedMap(target.victim.vm, bar_gpa(DEVICE, MEMORY_BAR), memory, size, large=False),
    )
    yield LET_IT_RUN
    yield LET_IT_RUN


def taken_over(target: Target) -> Attack:
    """The victim's device is the other guest's, and the victim has its pages still: what it stores goes to the other.

    That takes them when something is there, and loads.
    """
    device, tenant = target.device, target.tenant
    theirs = device.tio.given(tenant.vm, guest_device_id(DEVICE))
    assert theirs is not None
    yield LET_IT_RUN
    device.given.assigned.clear()
    yield from device.tio.unbind(device.given, device.gctx)
    theirs.interface = device.given.interface
    try:
        yield from device.tio.bind(theirs, tenant.gctx)
        yield from device.tio.run(theirs, tenant.gctx)
    except TioRefused:
        yield LET_IT_RUN
        return
    yield LET_IT_RUN
    memory, size = _memory_of(device.function)
    yield (NestedMap(tenant.vm, bar_gpa(DEVICE, MEMORY_BAR), memory, size, large=False),)
    tdi = tdi_of_tenant(target)
    report = yield from tdi.judged(ANY, bytes(NONCE_BYTES))
    yield from tdi.accept(report, validated=True)
    yield _loads(bar_gpa(DEVICE, MEMORY_BAR))


def _loads(gpa: int) -> tuple[MmioLoad, ...]:
    """Load the victim's secret, if it is its device that answers."""
    first = gpa + SECRET_ON_DEVICE
    return tuple([MmioLoad(first + at, _WORD_BYTES, private=True) for at in range(0, CONTENT_BYTES, _WORD_BYTES)])


def _memory_of(function: Function) -> tuple[int, int]:
    """Where a card's memory is, and how much."""
    return next((spa, size) for bar, spa, size in function.bars if bar == MEMORY_BAR)


def _moved(function: Function, memory: int) -> Function:
    """A card as its hypervisor has it in its books, with its memory elsewhere."""
    bars = tuple([(bar, memory if bar == MEMORY_BAR else spa, size) for bar, spa, size in function.bars])
    return replace(function, bars=bars)
