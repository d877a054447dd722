"""Firmware images by the keys that scenarios give them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from node.firmware_image import FirmwareImage, find_firmware_image, read_firmware_image

AUTO = "auto"
"""Firmware key of the machine's own OVMF, or sevfleet's laboratory image."""


@cache
def firmware_image(key: str) -> FirmwareImage:
    """The image of a firmware key, read once in a process."""
    return find_firmware_image() if key == AUTO else read_firmware_image(Path(key))
