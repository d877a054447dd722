"""A hypervisor's answer to a guest's page state change: the pages get other entries in the RMP.

As KVM does it: a large entry is smashed before a part of it changes, and a shared block has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from node import operations as op
from node.generation import CAPABILITIES
from node.hypervisor_port import Reply, Task
from node.iommu_guest_table import Piece
from node.launched_vm import LaunchedVm
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

_HYPERVISOR = RmpEntry()
Shows = Callable[[str, Iterable[Piece]], Task]
"""Has the tables of a VM's devices follow its memory."""


def change_page_state(vm: str, record: LaunchedVm, change: op.PageStateChange, shows: Shows) -> Reply:
    """Reassign pages in the RMP. Returns 0, or 1 if refused."""
    if not CAPABILITIES[record.generation].key_per_vm:
        return 0
    if (change.gpa | change.length) % PAGE_BYTES or change.length <= 0:
        return 1
    backing = record.behind(change.gpa, change.length)
    if sum(length for _, _, length in backing) != change.length:
        return 1  # Before anything changes: the range is not all memory of this guest.
    if not CAPABILITIES[record.generation].rmp:
        record.shared.change(change.gpa, change.length, shared=change.shared)
        return 0
    record.shared.change(change.gpa, change.length, shared=change.shared)
    for first, spa, length in backing:
        for start, size, large in record.pieces(spa, length):
            gpa = first + start - spa
            entry = _HYPERVISOR if change.shared else RmpEntry(assigned=True, gpa=gpa, asid=record.asid)
            block = start // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES
            if not large and block not in record.smashed:
                record.smashed.add(block)
                yield (op.PSmash(block),)
                if record.functions:
                    gpa_of_block = gpa - (start - block)
                    yield from shows(vm, ((gpa_of_block, block, LARGE_PAGE_BYTES, False),))
            (code,) = yield (op.RmpUpdate(start, size, replace(entry, large=large)),)
            if code:
                return 1
    return 0
