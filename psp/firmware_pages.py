"""Which memory firmware itself uses, whatever else the RMP says of it."""

from __future__ import annotations

from psp.system_bus import PAGE_BYTES

Ranges = tuple[tuple[int, int], ...]
"""Parts of memory as (SPA, length in bytes)."""


class FirmwarePages:
    """Memory in the firmware's own use: no command reads it, writes it or gives it back.

    The RMP tells its own pages, an IOMMU's log and the trusted memory region from pages
    lent for one command by nothing: all are in Firmware state. Contexts have a state of
    their own.
    """

    def __init__(self) -> None:
        self.snp_initialised = False
        """Whether what firmware writes must be lent to it."""
        self.rmp: Ranges = ()
        """Where the RMP lies: from SNP_INIT on, and after SNP_SHUTDOWN still: the cores go on checking."""
        self.iommu_buffers: Ranges = ()
        """What the IOMMUs write by themselves: from SNP_INIT until the IOMMUs are shut down."""
        self.trusted_region: Ranges = ()
        """What INIT for SEV-ES was given, until SHUTDOWN."""

    def in_use(self, spa: int, length: int) -> bool:
        """Whether any page of a range is firmware's."""
        first, end = spa // PAGE_BYTES, -(-(spa + length) // PAGE_BYTES)
        for base, size in self.rmp + self.iommu_buffers + self.trusted_region:
            if first < -(-(base + size) // PAGE_BYTES) and base // PAGE_BYTES < end:
                return True
        return False
