"""Launch measurements of both interfaces.

SNP: a SHA-384 chain over one PAGE_INFO record a page (SEV-SNP firmware ABI,
section 8.17.2). Legacy: SHA-256 over everything launched, and the keyed
measurement that LAUNCH_MEASURE returns (SEV API, section 6.5.1).
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterable
from enum import IntEnum
from functools import lru_cache

from psp.system_bus import PAGE_BYTES

_PAGE_INFO = struct.Struct("<48s48sHBBBBBBQ")
_ZERO_DIGEST = bytes(48)
NO_CONTENTS = _ZERO_DIGEST
"""CONTENTS of a page whose bytes are not measured."""
_MEASURE_TAG = 0x04
API_WITH_VERSION = (0, 17)
"""From this API on the measurement also covers the firmware's version."""


class PageType(IntEnum):
    """Page types of SNP_LAUNCH_UPDATE (section 8.17)."""

    NORMAL = 1
    VMSA = 2
    ZERO = 3
    UNMEASURED = 4
    SECRETS = 5
    CPUID = 6


MEASURED_CONTENTS = frozenset({PageType.NORMAL, PageType.VMSA})
"""Types whose contents are part of the digest; of the others only type and address are."""


class LaunchDigest:
    """The launch digest LD of one SNP guest; 48 zero bytes before the first page."""

    def __init__(self, value: bytes = _ZERO_DIGEST) -> None:
        self.value = value

    def update(
        self,
        page_type: PageType,
        gpa: int,
        contents: bytes | None = None,
        *,
        vmpl_permissions: tuple[int, int, int] = (0, 0, 0),
        imi: bool = False,
    ) -> None:
        """Extend the chain by one 4 KiB page. ``vmpl_permissions`` are those of VMPL 1, 2 and 3.

        Tools disagree whether offset 65 holds VMPL1 or VMPL3; AMD's own puts
        VMPL1 there. Raises ValueError for a measured page without its 4096 bytes.
        """
        digest = _ZERO_DIGEST
        if page_type in MEASURED_CONTENTS:
            if contents is None or len(contents) != PAGE_BYTES:
                raise ValueError(f"contents: expected {PAGE_BYTES} bytes for a page of type {page_type.name}")
            digest = hashlib.sha384(contents).digest()
        self.extend(page_type, gpa, (digest,), vmpl_permissions=vmpl_permissions, imi=imi)

    def extend(
        self,
        page_type: PageType,
        gpa: int,
        digests: Iterable[bytes],
        *,
        vmpl_permissions: tuple[int, int, int] = (0, 0, 0),
        imi: bool = False,
    ) -> None:
        """Extend the chain by pages that follow each other from ``gpa`` on, given CONTENTS of each."""
        self.value = _extended(self.value, page_type, int(imi), vmpl_permissions, gpa, tuple(digests))


@lru_cache(maxsize=128)
def _extended(
    value: bytes, page_type: int, imi: int, vmpl_permissions: tuple[int, int, int], gpa: int, digests: tuple[bytes, ...]
) -> bytes:
    """The chain's next value. Remembered: most guests of a fleet are launched alike."""
    pack, sha384 = _PAGE_INFO.pack, hashlib.sha384
    for at, digest in enumerate(digests):
        info = pack(value, digest, _PAGE_INFO.size, page_type, imi, 0, *vmpl_permissions, gpa + at * PAGE_BYTES)
        value = sha384(info).digest()
    return value


@lru_cache(maxsize=4)
def page_digests(contents: bytes) -> tuple[bytes, ...]:
    """SHA-384 of each whole page. Remembered: one image is launched again and again."""
    whole = memoryview(contents)
    return tuple(
        hashlib.sha384(whole[at : at + PAGE_BYTES]).digest()
        for at in range(0, len(contents) // PAGE_BYTES * PAGE_BYTES, PAGE_BYTES)
    )


class LegacyLaunchDigest:
    """The launch digest of a SEV guest: SHA-256 over all launched bytes in the order of the commands."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, data: bytes) -> None:
        """Take in what one LAUNCH_UPDATE covered."""
        self._hash.update(data)

    @property
    def value(self) -> bytes:
        """The digest so far, 32 bytes."""
        return self._hash.digest()


def launch_measure(tik: bytes, api: tuple[int, int, int], policy: int, digest: bytes, nonce: bytes) -> bytes:
    """HMAC-SHA256 that LAUNCH_MEASURE returns before its nonce. ``api`` is (major, minor, build)."""
    major, minor, build = api
    head = bytes((_MEASURE_TAG, major, minor, build)) if (major, minor) >= API_WITH_VERSION else b""
    return hmac.digest(tik, head + struct.pack("<I", policy) + digest + nonce, "sha256")
