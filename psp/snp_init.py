"""What SNP_INIT demands of the machine before it changes anything (SEV-SNP firmware ABI, section 8.8).

The order is: cores, place of the RMP, IOMMUs. What is wrong with the cores or the
RMP is INVALID_CONFIG; an IOMMU that is off or cannot check is HWERROR_PLATFORM;
its logs are INVALID_CONFIG.
"""

from __future__ import annotations

from psp.firmware_pages import Ranges
from psp.page_state import PageState, page_state
from psp.status import PspError, Status
from psp.system_bus import PAGE_BYTES, IommuBuffer, SystemBus

_RMP_ALIGNMENT = 1 << 20
_LONGEST_BUFFER = 1 << 20
"""No log is longer than 512 KiB; so a hostile range costs no more than this."""
_FREE = frozenset({PageState.HYPERVISOR, PageState.FIRMWARE})


def check_cores(bus: SystemBus) -> None:
    """SNP_EN, VMPL_EN, MtrrFixDramModEn and VM_HSAVE_PA = 0 on every core. Raises PspError(INVALID_CONFIG)."""
    cores = bus.core_configuration()
    enabled = cores.snp_enabled and cores.vmpl_enabled and cores.memory_encryption_enabled
    if not (enabled and cores.mtrr_fix_dram_mod_enabled and cores.hsave_pa_zero):
        raise PspError(Status.INVALID_CONFIG)


def checked_rmp(bus: SystemBus) -> Ranges:
    """Where the RMP lies: one place on all cores, whole megabytes, in memory, with entries for itself.

    Raises PspError(INVALID_CONFIG). That it must cover itself is inferred: firmware could
    not take its pages from the host otherwise.
    """
    settings = bus.core_configuration().rmp
    placement = bus.rmp_placement()
    if len(settings) != 1 or placement is None or not placement.covers_itself:
        raise PspError(Status.INVALID_CONFIG)
    aligned = not (settings[0].base | settings[0].end + 1) % _RMP_ALIGNMENT
    if not aligned or any(spa < 0 or spa + length > bus.dram_bytes for spa, length in placement.ranges):
        raise PspError(Status.INVALID_CONFIG)
    return placement.ranges


def checked_iommu_buffers(bus: SystemBus, *, fresh: bool) -> tuple[IommuBuffer, ...]:
    """The memory that IOMMUs write by themselves, whose pages are to be firmware's.

    ``fresh`` says that the RMP is about to be zeroed. Raises PspError: HWERROR_PLATFORM
    for an IOMMU that is off or does not support SNP, INVALID_CONFIG for buffers that
    are too short, not in memory, without RMP entries, in the RMP, or somebody's.
    """
    iommus = bus.iommus()
    if not iommus or not all(one.enabled and one.supports_snp for one in iommus):
        raise PspError(Status.HWERROR_PLATFORM)
    buffers = tuple(buffer for iommu in iommus for buffer in iommu.buffers)
    placement = bus.rmp_placement()
    taken = placement.ranges if placement is not None else ()
    for buffer in buffers:
        start, end = buffer.base, buffer.base + buffer.length_bytes
        pages = range(start, end, PAGE_BYTES)
        if (
            not buffer.least_bytes <= buffer.length_bytes <= _LONGEST_BUFFER
            or end > bus.dram_bytes
            or not bus.rmp_covers(start, len(pages))
            or any(start < spa + length and spa < end for spa, length in taken)
            or (not fresh and any(page_state(bus.rmp_entry(page)) not in _FREE for page in pages))
        ):
            raise PspError(Status.INVALID_CONFIG)
    return buffers
