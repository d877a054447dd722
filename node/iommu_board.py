"""The IOMMU that a product and a platform give a board."""

from __future__ import annotations

from collections.abc import Callable

from node.generation import Generation
from node.iommu import Iommu
from node.iommu_memory import IommuMemory, Memory
from node.platform import HostMode, Platform, Protection
from node.product import Product
from node.rmp import ReverseMapTable
from psp.system_bus import PAGE_BYTES

_FAMILY_19H = 0x19
_FULL_LOG_BYTES = 512 << 10


def board_iommu(
    product: Product, platform: Platform, fabric: Memory, rmp: Callable[[], ReverseMapTable | None]
) -> Iommu:
    """One IOMMU in front of all slots; a real board has several, set up alike."""
    affected = product.family == _FAMILY_19H
    memory = IommuMemory(
        fabric,
        rmp,
        c_bit=1 << product.c_bit if platform.mode is HostMode.SME else 0,
        logs_checked=(platform.iommu_write_safe or not affected)
        and Protection.IOMMU_LOG_CHECK not in platform.disabled,
    )
    return Iommu(
        memory,
        supports_snp=Generation.SEV_SNP in product.generations and platform.iommu_supports_snp,
        supports_tio=Generation.SEV_TIO in product.generations,
        least_log_bytes=_FULL_LOG_BYTES if platform.iommu_write_safe and affected else PAGE_BYTES,
        checks_dma=Protection.IOMMU_CHECK not in platform.disabled,
    )
