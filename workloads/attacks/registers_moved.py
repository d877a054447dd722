"""The hypervisor maps a device's registers elsewhere than the guest believes (row 79).

It does so before the guest has its device, and gives it those pages in the RMP too where there is one: a guest that
accepts what it finds believes it then, and one that has each page proved does not.
"""

from __future__ import annotations

from dataclasses import replace

from node.device_window import bar_gpa
from node.iommu_driver import IommuDriver
from node.iommu_guest_table import LEVELS
from node.operations import NestedMap
from node.pci_driver import enable
from psp.system_bus import PAGE_BYTES
from tio.gpu import MEMORY_BAR
from workloads.attacks.depositor import DEVICE, WORDS_ON_DEVICE
from workloads.attacks.target import LET_IT_RUN, Attack, Target

_FIRST, _SECOND = WORDS_ON_DEVICE


def swap_pages(target: Target) -> Attack:
    """Two pages of its memory change places."""
    yield from _map_memory(target, {_FIRST: _SECOND, _SECOND: _FIRST})


def overlap_pages(target: Target) -> Attack:
    """One page is there twice, another not at all."""
    yield from _map_memory(target, {_SECOND: _FIRST})


def map_another_device(target: Target) -> Attack:
    """The registers are those of a card of the attacker's, which reaches what the victim's would."""
    device = target.device
    yield from enable(device.other, on=True)
    frames = iter(target.spare)
    driver = IommuDriver(lambda: next(frames), device.tio.device_table[0])
    yield from driver.show(device.other.requester, device.other.requester, device.given.table.root, LEVELS)
    pages = [
        (bar, at, device.bar(bar, device.other) + at)
        for bar, _, size in device.function.bars
        for at in range(0, size, PAGE_BYTES)
    ]
    yield from _map(target, pages)


def _map_memory(target: Target, moved: dict[int, int]) -> Attack:
    memory = target.device.bar(MEMORY_BAR)
    yield from _map(target, [(MEMORY_BAR, at, memory + to) for at, to in moved.items()])


def _map(target: Target, pages: list[tuple[int, int, int]]) -> Attack:
    """Map pages, each by its BAR, its offset there and where it leads; and write them so into the books."""
    interface = target.device.given.interface
    told = tuple([(bar, spa - at, at + PAGE_BYTES) for bar, at, spa in sorted(pages)])
    # Whoever looks there for a page takes the first entry that reaches as far.
    proper = interface.function.bars
    first = min(at for _, at, _ in pages)
    before = tuple([(bar, spa, first) for bar, spa, _ in proper if first and bar in {one for one, _, _ in pages}])
    interface.function = replace(interface.function, bars=before + told + proper)
    yield tuple(
        NestedMap(target.victim.vm, bar_gpa(DEVICE, bar) + at, spa, PAGE_BYTES, large=False) for bar, at, spa in pages
    )
    yield LET_IT_RUN
    yield LET_IT_RUN
