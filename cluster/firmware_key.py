"""Firmware images by the keys that scenarios give them."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from node.firmware_image import (
    IMAGE_VARIABLE,
    FirmwareImage,
    find_firmware_image,
    laboratory_image,
    read_firmware_image,
    verifier_image,
)
from node.svsm_memory import serves_svsm

AUTO = "auto"
"""Firmware key of the machine's own OVMF, or sevfleet's laboratory image."""
AUTO_ON_SVSM = "auto on SVSM"
"""The same, for a machine with an SVSM: OVMF builds that know nothing of one are passed over."""

VERIFIER = "auto verifier"
"""What stands for a small verifier, for a machine that a small monitor starts."""


@cache
def firmware_image(key: str) -> FirmwareImage:
    """The image of a firmware key, read once in a process."""
    if key == VERIFIER:
        return verifier_image()
    if key not in (AUTO, AUTO_ON_SVSM):
        return read_firmware_image(Path(key))
    image = find_firmware_image()
    # One that was named is used or refused, never passed over.
    passed_over = key == AUTO_ON_SVSM and not serves_svsm(image) and not os.environ.get(IMAGE_VARIABLE)
    return laboratory_image() if passed_over else image
