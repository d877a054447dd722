"""What firmware leaves in the cores' registers when it starts the hypervisor."""

from __future__ import annotations

from node.core_msrs import MEM_ENCRYPTION_MODE_EN, SMM_LOCK, CoreMsrs, Msr
from node.platform import HostMode, Platform
from node.product import Product
from node.rmp_layout import RmpLayout
from node.rmp_registers import registers_of


def msrs_at_reset(product: Product, platform: Platform, rmp: RmpLayout | None, memory_bytes: int) -> CoreMsrs:
    """The registers of all cores: SMM locked, SME as the platform has it, and the place reserved for the RMP."""
    sme = MEM_ENCRYPTION_MODE_EN if platform.mode is HostMode.SME else 0
    reset: dict[int, int] = {Msr.HWCR: SMM_LOCK, Msr.SYSCFG: sme}
    if rmp is not None:
        place = registers_of(rmp, memory_bytes)
        reset |= {Msr.RMP_BASE: place.base, Msr.RMP_END: place.end, Msr.RMP_CFG: place.config}
    return CoreMsrs(
        product.sockets * product.cores * product.threads_per_core,
        product.physical_address_bits,
        reset,
        snp=rmp is not None,
        segmented=product.rmp.segmented,
    )
