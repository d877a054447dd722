"""How one host is set up beyond its line of processors: firmware settings, and what a laboratory switches off."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class HostMode(StrEnum):
    """How a host encrypts memory that belongs to no guest's key (APM volume 2, 7.10)."""

    NONE = "none"
    SME = "sme"
    """SYSCFG.MemEncryptionModeEn: pages mapped with the C-bit go through the host's key."""
    TSME = "tsme"
    """Firmware's setting: everything without a guest's key goes through the host's, whoever asks."""


class Protection(StrEnum):
    """Mechanisms that a laboratory can switch off in the chip, one at a time, to see what they stop."""

    RMP_WRITE_CHECK = "rmp write check"
    """Of the host's stores and of guests' to shared memory; what devices do is ``IOMMU_CHECK``'s."""
    GPA_MATCH = "gpa match"
    """Of an entry's guest address with the one accessed, or named by PVALIDATE, RMPADJUST and RMPQUERY."""
    VALIDATED_BIT = "validated bit"
    """Its being asked for by accesses, RMPADJUST, RMPQUERY and VMRUN; PVALIDATE sets it and tells of it as ever."""
    IOMMU_CHECK = "iommu check"
    TWEAK = "tweak"


@dataclass(frozen=True, slots=True)
class Platform:
    """Settings of one host."""

    mode: HostMode = HostMode.NONE
    disabled: frozenset[Protection] = frozenset()
    """Mechanisms that do not work; empty outside of experiments that show what each is good for."""
    max_snp_asid: int = 0
    """Last ASID for SNP guests, whose ciphertext the host then asks firmware to hide; 0 for no hiding."""
    caches: bool = False
    """Whether cores have data caches that hold something. Without, every line is as good as written back at once."""
    cache_timing: bool = False
    """Whether loads take as long as the line's place says; has caches with it. Without, all take the same."""
    invd_writes_back: bool = False
    """INVD acts as WBINVD: HWCR.INVDWBINVD set and kept so, or microcode that sees to it (AMD-SB-3005).

    Off by default, for firmware's setting of the bit is the hypervisor's to clear.
    """
    rmp_init_barrier: bool = False
    """Cores cannot store to the RMP while firmware zeroes it (the fix of AMD-SB-3020).

    Without it, dirty lines of the table outlive SNP_INIT, which is one instant here: a
    store before it stands for one that races with it.
    """


AS_USUAL = Platform()
"""A host as it comes: no encryption of its own memory, every mechanism at work."""
