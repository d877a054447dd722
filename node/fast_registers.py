"""FASTREGCNTL and FASTREG: two registers through which the security processor reaches the Control Fabric (BreakFAST).

On Zen 4 and 5 a host can have the security processor's accesses to a page of DRAM end at
them (CVE-2025-61971). A command whose output the host chooses, and which it directs there,
then writes to the Control Fabric with the rights of the security processor, which may
switch off what the IOMMU checks for SNP. Published is that; which address the register of
the IOMMU has there, and how the two lie beside each other, is the laboratory's choice.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from psp.system_bus import PAGE_BYTES

PAIR = struct.Struct("<II")
"""FASTREGCNTL, the address in the Control Fabric; FASTREG, the value for it."""
IOMMU_ENFORCEMENT = 0x1700_0160
"""Bit 0: the IOMMU checks against the RMP."""


class FastRegisters:
    """``reachable`` on products whose routes a host can turn so.

    ``least_privilege`` is the fix (AMD-SB-3030): the security processor has no right to what decides about enforcement.
    """

    def __init__(self, *, reachable: bool, least_privilege: bool, release_iommu: Callable[[], None]) -> None:
        self.page: int | None = None
        """SPA of the page that the security processor finds them at; None for none."""
        self._reachable = reachable
        self._least_privilege = least_privilege
        self._release_iommu = release_iommu

    def divert(self, spa: int | None) -> None:
        """Have the security processor's accesses to the page of an SPA end here; None for no page's."""
        if self._reachable:
            self.page = None if spa is None else spa // PAGE_BYTES * PAGE_BYTES

    def store(self, offset: int, data: bytes) -> None:
        """What reaches the page; only the pair at its begin is there."""
        if offset or len(data) < PAIR.size:
            return
        address, value = PAIR.unpack_from(data)
        if address == IOMMU_ENFORCEMENT and not value & 1 and not self._least_privilege:
            self._release_iommu()
