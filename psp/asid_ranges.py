"""Which ASIDs guests of each kind may have: the split of MinSEVASID, and that of SNP_INIT_EX below it.

Without ciphertext hiding SEV-ES and SNP guests share 1 to MinSEVASID - 1. With it SNP
guests have 1 to MAX_SNP_ASID and SEV-ES guests the rest (SEV-SNP firmware ABI, SNP_INIT_EX).
"""

from __future__ import annotations

from psp.system_bus import SystemBus


class AsidRanges:
    """The ranges of one platform; both interfaces of the firmware go by them."""

    def __init__(self, bus: SystemBus) -> None:
        self._bus = bus
        self.max_snp_asid = 0
        """0 while ciphertext is not hidden."""

    @property
    def sev(self) -> range:
        """For guests that are neither ES nor SNP."""
        return range(max(self._bus.min_sev_asid, 1), self._bus.max_asid + 1)

    @property
    def es(self) -> range:
        """For SEV-ES guests."""
        return range(self.max_snp_asid + 1, self._joint_end)

    @property
    def snp(self) -> range:
        """For SNP guests."""
        return range(1, min(self.max_snp_asid + 1, self._joint_end) if self.max_snp_asid else self._joint_end)

    def can_split_at(self, max_snp_asid: int) -> bool:
        """Whether an ASID may be MAX_SNP_ASID: one that ES and SNP guests share. None need be left for ES."""
        return 1 <= max_snp_asid < self._joint_end

    @property
    def _joint_end(self) -> int:
        return min(self._bus.min_sev_asid, self._bus.max_asid + 1)
