"""The attestation report: what firmware says of a guest and its platform, signed (SEV-SNP firmware ABI, table 23).

Firmware's age decides the version: 3 adds what processor it is, 5 what mitigations were on. Which
interface of firmware brought which is not all published; ``report_version`` says what is taken here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cryptography.hazmat.primitives import hashes

from psp import elliptic
from psp.byte_layout import ByteLayout, at
from psp.guest_context import DIGEST_BYTES, REPORT_ID_BYTES

REPORT_BYTES = 0x4A0
SIGNED_BYTES = 0x2A0
REPORT_DATA_BYTES = 64
CHIP_ID_BYTES = 64
ECDSA_P384_SHA384 = 1

PLATFORM_SMT = 1 << 0
PLATFORM_TSME = 1 << 1
PLATFORM_ECC = 1 << 2
PLATFORM_RAPL_DISABLED = 1 << 3
PLATFORM_CIPHERTEXT_HIDING = 1 << 4
PLATFORM_ALIAS_CHECK_COMPLETE = 1 << 5
PLATFORM_TIO = 1 << 7

KEY_AUTHOR_EN = 1 << 0
KEY_MASK_CHIP_KEY = 1 << 1
KEY_SIGNING_SHIFT = 2

FIRST_VERSION, LAST_VERSION = 2, 5
VERSION_WITH_PROCESSOR, VERSION_WITH_MITIGATIONS = 3, 5
_NEWEST_FIRST = (((1, 58), 5), ((1, 56), 4), ((1, 54), 3))
"""Lowest firmware interface (major, minor) of a version; older ones make version 2.

Seen in real reports: 2 from 1.49 and 1.52, 3 from 1.55. That 3 began with 1.54, 4 with 1.56 and 5 with 1.58, which
has the command on mitigations, is uncertain.
"""


def report_version(api: tuple[int, int, int]) -> int:
    """The version that firmware of an interface (major, minor, build) makes."""
    for lowest, version in _NEWEST_FIRST:
        if api[:2] >= lowest:
            return version
    return FIRST_VERSION


@dataclass(frozen=True, slots=True)
class AttestationReport(ByteLayout):
    """A report without its signature: the part that is signed. Fields that a version has not are zero."""

    SIZE: ClassVar[int] = SIGNED_BYTES
    version: int = at(0x000, 4)
    guest_svn: int = at(0x004, 4)
    policy: int = at(0x008, 8)
    family_id: bytes = at(0x010, 16, bytes(16))
    image_id: bytes = at(0x020, 16, bytes(16))
    vmpl: int = at(0x030, 4)
    signature_algorithm: int = at(0x034, 4, ECDSA_P384_SHA384)
    current_tcb: int = at(0x038, 8)
    platform_info: int = at(0x040, 8)
    key_info: int = at(0x048, 4)
    report_data: bytes = at(0x050, REPORT_DATA_BYTES, bytes(REPORT_DATA_BYTES))
    measurement: bytes = at(0x090, DIGEST_BYTES, bytes(DIGEST_BYTES))
    host_data: bytes = at(0x0C0, 32, bytes(32))
    id_key_digest: bytes = at(0x0E0, DIGEST_BYTES, bytes(DIGEST_BYTES))
    author_key_digest: bytes = at(0x110, DIGEST_BYTES, bytes(DIGEST_BYTES))
    report_id: bytes = at(0x140, REPORT_ID_BYTES, bytes(REPORT_ID_BYTES))
    report_id_ma: bytes = at(0x160, REPORT_ID_BYTES, bytes(REPORT_ID_BYTES))
    reported_tcb: int = at(0x180, 8)
    cpuid_family: int = at(0x188, 1)
    cpuid_model: int = at(0x189, 1)
    cpuid_stepping: int = at(0x18A, 1)
    chip_id: bytes = at(0x1A0, CHIP_ID_BYTES, bytes(CHIP_ID_BYTES))
    committed_tcb: int = at(0x1E0, 8)
    current_build: int = at(0x1E8, 1)
    current_minor: int = at(0x1E9, 1)
    current_major: int = at(0x1EA, 1)
    committed_build: int = at(0x1EC, 1)
    committed_minor: int = at(0x1ED, 1)
    committed_major: int = at(0x1EE, 1)
    launch_tcb: int = at(0x1F0, 8)
    launch_mitigations: int = at(0x1F8, 8)
    current_mitigations: int = at(0x200, 8)


def signed(body: bytes, key: elliptic.PrivateKey | None) -> bytes:
    """A report with its signature, 1,184 bytes; without a key, that of a masked one, zeros."""
    if key is None:
        return body.ljust(REPORT_BYTES, b"\0")
    return body + elliptic.sign(key, body, hashes.SHA384())


def family_model_stepping(cpuid_1_eax: int) -> tuple[int, int, int]:
    """The processor as reports tell it, base and extended fields joined (APM volume 3, CPUID 1)."""
    family = (cpuid_1_eax >> 8 & 0xF) + (cpuid_1_eax >> 20 & 0xFF)
    return family, (cpuid_1_eax >> 12 & 0xF0) | (cpuid_1_eax >> 4 & 0xF), cpuid_1_eax & 0xF
