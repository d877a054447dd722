"""Guest policies: what an owner demands of firmware and platform."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

from psp.status import PspError, Status


class LegacyPolicy(IntFlag):
    """SEV guest policy (SEV API, chapter 3). Bits 31:16 hold the lowest API version."""

    NODBG = 1 << 0
    NOKS = 1 << 1
    ES = 1 << 2
    NOSEND = 1 << 3
    DOMAIN = 1 << 4
    SEV = 1 << 5


_LEGACY_KNOWN = 0xFFFF_003F


class SnpPolicy(IntFlag):
    """SNP guest policy (SEV-SNP firmware ABI, section 4.3). Bits 15:0 hold the lowest ABI version."""

    SMT = 1 << 16
    RESERVED_ONE = 1 << 17
    MIGRATE_MA = 1 << 18
    DEBUG = 1 << 19
    SINGLE_SOCKET = 1 << 20
    CXL_ALLOW = 1 << 21
    MEM_AES_256_XTS = 1 << 22
    RAPL_DIS = 1 << 23
    CIPHERTEXT_HIDING = 1 << 24
    PAGE_SWAP_DISABLE = 1 << 25


_SNP_KNOWN = (1 << 26) - 1


@dataclass(frozen=True, slots=True)
class PlatformFacts:
    """What a policy is held against. ``api`` is (major, minor); ``aes_256_xts`` is how memory is encrypted."""

    api: tuple[int, int]
    smt_enabled: bool
    ciphertext_hidden: bool = False
    aes_256_xts: bool = False
    es_enabled: bool = False
    power_readings_disabled: bool = False


def check_legacy_policy(policy: int, facts: PlatformFacts) -> None:
    """Raise PspError(POLICY_FAILURE) if the platform cannot meet a SEV policy; ES it can after an INIT for it."""
    lowest = (policy >> 16 & 0xFF, policy >> 24 & 0xFF)
    es_missing = policy & LegacyPolicy.ES and not facts.es_enabled
    if policy & ~_LEGACY_KNOWN or es_missing or facts.api < lowest:
        raise PspError(Status.POLICY_FAILURE)


def check_snp_policy(policy: int, facts: PlatformFacts) -> None:
    """Raise PspError(POLICY_FAILURE) if the platform cannot meet an SNP policy."""
    lowest = (policy >> 8 & 0xFF, policy & 0xFF)
    if (
        policy & ~_SNP_KNOWN
        or not policy & SnpPolicy.RESERVED_ONE
        or facts.api < lowest
        or (facts.smt_enabled and not policy & SnpPolicy.SMT)
        or (policy & SnpPolicy.MEM_AES_256_XTS and not facts.aes_256_xts)
        or (policy & SnpPolicy.RAPL_DIS and not facts.power_readings_disabled)
        or (policy & SnpPolicy.CIPHERTEXT_HIDING and not facts.ciphertext_hidden)
    ):
        raise PspError(Status.POLICY_FAILURE)
