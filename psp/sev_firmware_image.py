"""Images of SEV firmware in the laboratory's own format, for DOWNLOAD_FIRMWARE and SNP_DOWNLOAD_FIRMWARE_EX.

AMD publishes images (``amd_sev_fam19h_model0xh.sbin``) and no description of them. What a host can tell of one here: it
is made for one line of processors, brings a version and the security version of SEV firmware alone, and is signed.
Bootloader, TEE, FMC and microcode come with the board's firmware, at boot. The signing keys are functions of this
file, one for each line; they stand in for AMD's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from cryptography.hazmat.primitives import hashes

from psp import elliptic
from psp.byte_layout import ByteLayout, at
from psp.installed_firmware import Version

MOST_BYTES = 1 << 20
"""No image is longer; firmware looks at no more."""
NEEDS_SHUTDOWN = 1 << 0
"""Flag: what this firmware keeps of guests is laid out in another way, so it cannot be put under running ones."""
_MAGIC = b"sevfleet"
_FORMAT = 1
_BODY_BYTES = 4096
"""What stands for code."""
_SEED = b"sevfleet laboratory signer of firmware, not AMD's"


@dataclass(frozen=True, slots=True)
class ImageHeader(ByteLayout):
    """What an image says of itself, in front of its code."""

    SIZE: ClassVar[int] = 0x40
    magic: bytes = at(0x00, 8, _MAGIC)
    format: int = at(0x08, 4, _FORMAT)
    length: int = at(0x0C, 4)
    """Of the whole image, signature included."""
    line: bytes = at(0x10, 16, bytes(16))
    build: int = at(0x20, 1)
    minor: int = at(0x21, 1)
    major: int = at(0x22, 1)
    svn: int = at(0x23, 1)
    flags: int = at(0x24, 4)


LEAST_BYTES = ImageHeader.SIZE + elliptic.SIGNATURE_BYTES


@dataclass(frozen=True, slots=True)
class SevFirmware:
    """What an image brings."""

    version: Version
    svn: int = 0
    needs_shutdown: bool = False


class BadImageError(ValueError):
    """An image that is not signed for this line of processors."""


@lru_cache(maxsize=16)
def signed_image(line: str, firmware: SevFirmware) -> bytes:
    """The image that the laboratory gives out for a line."""
    major, minor, build = firmware.version
    header = ImageHeader(
        length=LEAST_BYTES + _BODY_BYTES,
        line=line.encode().ljust(16, b"\0"),
        build=build,
        minor=minor,
        major=major,
        svn=firmware.svn,
        flags=NEEDS_SHUTDOWN * firmware.needs_shutdown,
    ).pack()
    code = header + hashlib.shake_256(header).digest(_BODY_BYTES)
    return code + elliptic.sign(_signer(line), code, hashes.SHA384())


def opened_image(line: str, image: bytes) -> SevFirmware:
    """What an image brings that is signed for a line. Raises BadImageError for anything else."""
    code, signature = image[: -elliptic.SIGNATURE_BYTES], image[-elliptic.SIGNATURE_BYTES :]
    if len(image) < LEAST_BYTES:
        raise BadImageError(f"firmware image: expected at least {LEAST_BYTES} bytes, got {len(image)}")
    header = ImageHeader.parse(code[: ImageHeader.SIZE])
    form = header.magic, header.format, header.length
    if form != (_MAGIC, _FORMAT, len(image)) or header.line.rstrip(b"\0") != line.encode():
        raise BadImageError(f"firmware image: expected one for {line}")
    if not elliptic.verifies(_signer(line).public_key(), signature, code, hashes.SHA384()):
        raise BadImageError("firmware image: expected a signature that verifies")
    return SevFirmware((header.major, header.minor, header.build), header.svn, bool(header.flags & NEEDS_SHUTDOWN))


def _signer(line: str) -> elliptic.PrivateKey:
    return elliptic.private_key(hashlib.shake_256(_SEED + line.encode()).digest(elliptic.SEED_BYTES))
