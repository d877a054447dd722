"""The guest firmware a host hands its VMs: found on the machine, or built here.

The launch digest depends on the image's every byte, so a result that must be
the same on another machine needs the same image: ``sha256`` says which it was.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from node.laboratory_firmware import VERIFIER_SECTIONS, build_image
from node.ovmf import FOUR_GIB, MAX_IMAGE_BYTES, FirmwareImageError, OvmfTables, SectionType, parse_ovmf

IMAGE_VARIABLE = "SEVFLEET_OVMF"
"""Environment variable that names the image to use."""

LABORATORY_ORIGIN = "laboratory image"


@dataclass(frozen=True)  # without slots: what was asked for once is kept
class FirmwareImage:
    """An image with what it says of itself. ``origin`` is its file, or ``laboratory image``.

    ``end`` is the guest-physical address it ends at: 4 GiB, but for an image below another.
    """

    data: bytes = field(repr=False)
    origin: str
    tables: OvmfTables = field(repr=False)
    end: int = FOUR_GIB

    @cached_property
    def gpa(self) -> int:
        """Guest-physical address of the first byte."""
        return self.end - len(self.data)

    @cached_property
    def sha256(self) -> str:
        """Digest of the image, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def launches_snp(self) -> bool:
        """Whether the image has what an SNP guest needs: metadata with a secrets and a CPUID page."""
        kinds = {section.section_type for section in self.tables.sections}
        return {SectionType.SECRETS, SectionType.CPUID} <= kinds

    @cached_property
    def cpuid_gpa(self) -> int | None:
        """Where the image wants the CPUID page of an SNP guest."""
        kind = SectionType.CPUID
        return next((one.gpa for one in self.tables.sections if one.section_type is kind), None)

    @cached_property
    def secrets_gpa(self) -> int | None:
        """Where it wants the secrets page."""
        kind = SectionType.SECRETS
        return next((one.gpa for one in self.tables.sections if one.section_type is kind), None)

    def refusal(self, field_name: str, expected: str, found: str = "") -> FirmwareImageError:
        """An error that names this image."""
        return FirmwareImageError(field_name, expected, found, origin=self.origin)


def firmware_image(data: bytes, origin: str, end: int = FOUR_GIB) -> FirmwareImage:
    """Parse an image that ends at ``end``; its ``FirmwareImageError`` names ``origin``."""
    try:
        return FirmwareImage(data, origin, parse_ovmf(data, end), end)
    except FirmwareImageError as error:
        raise FirmwareImageError(error.field, error.expected, error.found, origin=origin) from None


def laboratory_image() -> FirmwareImage:
    """The deterministic image of our own making."""
    return firmware_image(build_image(), LABORATORY_ORIGIN)


def verifier_image() -> FirmwareImage:
    """The same in place of a small verifier: less of it is launched."""
    return firmware_image(build_image(sections=VERIFIER_SECTIONS), LABORATORY_ORIGIN)


def read_firmware_image(path: Path, end: int = FOUR_GIB) -> FirmwareImage:
    """The image in a file; reads no more than the largest image, whatever the file is."""
    try:
        if path.is_fifo():  # it would be waited for, perhaps for ever
            raise FirmwareImageError("file", "a regular file", "a pipe", origin=str(path))
        with path.open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise FirmwareImageError("file", "a readable file", error.strerror or str(error), origin=str(path)) from None
    return firmware_image(data, str(path), end)


def usual_paths() -> tuple[Path, ...]:
    """Where distributions and wheels put an OVMF build with SEV support."""
    return (
        Path("/usr/share/ovmf/OVMF.fd"),
        Path("/usr/share/OVMF/OVMF.fd"),
        Path("/usr/share/edk2/ovmf/OVMF.amdsev.fd"),
        Path("/usr/share/edk2/x64/OVMF.fd"),
        Path("/usr/share/qemu/OVMF.fd"),
        Path(sys.prefix) / "share" / "ovmf" / "OVMF.fd",
    )


def find_firmware_image(
    environment: Mapping[str, str] | None = None, paths: Iterable[Path] | None = None
) -> FirmwareImage:
    """The image to launch VMs with.

    The named one, which must launch SNP guests; else the first usual path whose
    image does; else the laboratory's. A broken file is an error, not a reason to
    go on: the next image would silently give other digests.
    """
    named = (os.environ if environment is None else environment).get(IMAGE_VARIABLE)
    if named:
        image = read_firmware_image(Path(named))
        if not image.launches_snp:
            raise image.refusal("SEV metadata", "a SECRETS and a CPUID section", "none")
        return image
    for path in usual_paths() if paths is None else paths:
        if path.is_file():
            image = read_firmware_image(path)
            if image.launches_snp:
                return image
    return laboratory_image()
