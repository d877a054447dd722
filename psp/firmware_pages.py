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
        self._parts: dict[str, Ranges] = {"rmp": (), "iommu_buffers": (), "trusted_region": ()}
        self._used: Ranges = ()
        """First page and end of each, for every command asks."""

    @property
    def rmp(self) -> Ranges:
        """Where the RMP lies: from SNP_INIT on, and after SNP_SHUTDOWN still: the cores go on checking."""
        return self._parts["rmp"]

    @rmp.setter
    def rmp(self, ranges: Ranges) -> None:
        self._use("rmp", ranges)

    @property
    def iommu_buffers(self) -> Ranges:
        """What the IOMMUs write by themselves: from SNP_INIT until the IOMMUs are shut down."""
        return self._parts["iommu_buffers"]

    @iommu_buffers.setter
    def iommu_buffers(self, ranges: Ranges) -> None:
        self._use("iommu_buffers", ranges)

    @property
    def trusted_region(self) -> Ranges:
        """What INIT for SEV-ES was given, until SHUTDOWN."""
        return self._parts["trusted_region"]

    @trusted_region.setter
    def trusted_region(self, ranges: Ranges) -> None:
        self._use("trusted_region", ranges)

    def in_use(self, spa: int, length: int) -> bool:
        """Whether any page of a range is firmware's."""
        first, end = spa // PAGE_BYTES, -(-(spa + length) // PAGE_BYTES)
        return bool([one for one in self._used if first < one[1] and one[0] < end])

    def _use(self, part: str, ranges: Ranges) -> None:
        self._parts[part] = ranges
        self._used = tuple(
            (base // PAGE_BYTES, -(-(base + size) // PAGE_BYTES))
            for some in self._parts.values()
            for base, size in some
        )
