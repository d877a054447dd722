"""Command buffers of the commands that bring other firmware (SEV API, chapter 5; SEV-SNP firmware ABI, chapter 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from psp.byte_layout import ByteLayout, at

COMMIT_AT_ONCE = 1 << 0
"""SNP_DOWNLOAD_FIRMWARE_EX flag: commit what was installed."""


@dataclass(frozen=True, slots=True)
class DownloadFirmware(ByteLayout):
    """DOWNLOAD_FIRMWARE: an image in memory."""

    SIZE: ClassVar[int] = 0x0C
    address: int = at(0x00, 8)
    length: int = at(0x08, 4)


@dataclass(frozen=True, slots=True)
class SnpDownloadFirmwareEx(ByteLayout):
    """SNP_DOWNLOAD_FIRMWARE_EX. Patches to Linux agree on this layout; older descriptions have the flags at 4."""

    SIZE: ClassVar[int] = 0x18
    length: int = at(0x00, 4)
    reserved: int = at(0x04, 4)
    image_address: int = at(0x08, 8)
    image_length: int = at(0x10, 4)
    flags: int = at(0x14, 4)
