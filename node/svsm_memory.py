"""Where an SVSM lies in its guest's memory, and what its image says.

The SVSM keeps 2 MiB of RAM below the device pool, in pages of 4 KiB: the hypervisor
launches the first few, where firmware puts secrets, CPUID leaves and zeros, and the
SVSM takes the rest as it needs it. Its image lies below OVMF in the flash.
Real SVSMs choose the place at launch; the secrets page that they hand on says where.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from uuid import UUID

from node.firmware_image import FirmwareImage, firmware_image
from node.guest_memory_map import Range
from node.laboratory_firmware import METADATA_OFFSET, build_image
from node.ovmf import SEV_METADATA, SVSM_INFO, MetadataSection, SectionType
from node.vmsa import BSP_RESET_EIP
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

SVSM = Range(0x00C0_0000, LARGE_PAGE_BYTES)
GUEST_VMPL = 2
"""At which the guest's own kernel runs, as with Coconut."""

_AT = SVSM.gpa
SECRETS_GPA, CPUID_GPA = _AT, _AT + 0x1000
BOOK_GPA = _AT + 0x2000
"""For each vCPU: calling area and save area of the guest's VMPL."""
TPM_GPA = _AT + 0x3000
SEED_GPA = TPM_GPA + 0x7E0
"""What the vTPM's random numbers follow from."""
LOCKS_GPA = BOOK_GPA + 0x800
"""For each vCPU a byte: whether a call is being served there."""
POOL_GPA = _AT + 0x4000
"""Memory that the guest deposited: how many pages, and where."""
POOL_PAGES = PAGE_BYTES // 8 - 1
_GHCBS_GPA, _SAVE_AREAS_GPA = _AT + 0x1_0000, _AT + 0x10_0000
MOST_VCPUS = 128
"""For each of them the kernel above has two pages in ``SvsmGuest.heap_gpa``."""

BOOK_RECORD = struct.Struct("<QQ")

SECTIONS = (
    MetadataSection(SectionType.SECRETS, SECRETS_GPA, PAGE_BYTES),
    MetadataSection(SectionType.CPUID, CPUID_GPA, PAGE_BYTES),
    MetadataSection(SectionType.SEC_MEM, BOOK_GPA, POOL_GPA + PAGE_BYTES - BOOK_GPA),
)
IMAGE_BYTES = 16 * 1024
HANDLER_MARK = b"sevfleet migration handler 1"
"""What an image begins with that has a migration handler."""


def ghcb_gpa(vcpu: int) -> int:
    """The page for the GHCB of a vCPU's VMPL0."""
    return _GHCBS_GPA + vcpu * PAGE_BYTES


def save_area_gpa(vcpu: int) -> int:
    """The page for the save area of a vCPU's lower VMPL, where the SVSM makes it."""
    return _SAVE_AREAS_GPA + vcpu * PAGE_BYTES


def lock_gpa(vcpu: int) -> int:
    """A vCPU's lock; those of all vCPUs follow one another."""
    return LOCKS_GPA + vcpu


def book_gpa(vcpu: int) -> int:
    """A vCPU's record in the book."""
    return BOOK_GPA + vcpu * BOOK_RECORD.size


@lru_cache(maxsize=16)
def laboratory_svsm(end: int, mark: bytes = b"") -> FirmwareImage:
    """The laboratory's own SVSM image below ``end``: its tables are valid, its code only halts.

    ``mark`` is what it begins with, so that its measurement is no other's.
    """
    entries: dict[UUID, bytes] = {
        SEV_METADATA: METADATA_OFFSET.to_bytes(4, "little"),
        SVSM_INFO: bytes(4),
    }
    data = build_image(IMAGE_BYTES, SECTIONS, entries)
    return firmware_image(mark + data[len(mark) :], "laboratory SVSM", end)


@dataclass(frozen=True, slots=True)
class SvsmGuest:
    """What the software of a VM with an SVSM is built with.

    ``boot_rips`` are where the vCPUs' VMPL0 comes out of reset; ``firmware_gpa`` is where OVMF begins, above the
    SVSM's image; ``secrets_gpa`` is OVMF's secrets page.
    """

    boot_rips: tuple[int, ...]
    firmware_gpa: int
    secrets_gpa: int

    @property
    def early(self) -> Range:
        """The 2 MiB that OVMF needs from its first instruction on: the SVSM accepts them, in pages of 4 KiB."""
        return Range(self.secrets_gpa // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES, LARGE_PAGE_BYTES)

    @property
    def heap_gpa(self) -> int:
        """The upper half of that, which is free for the kernel's first pages."""
        return self.early.gpa + LARGE_PAGE_BYTES // 2


def serves_svsm(image: FirmwareImage) -> bool:
    """Whether an OVMF image knows how to live above an SVSM: it has a place for a calling area."""
    return any(one.section_type is SectionType.SVSM_CAA for one in image.tables.sections)


def svsm_guest(image: FirmwareImage, boot_rips: tuple[int, ...]) -> SvsmGuest:
    """What there is to know of a VM with an OVMF image above its SVSM. Raises FirmwareImageError."""
    secrets = next((one.gpa for one in image.tables.sections if one.section_type is SectionType.SECRETS), None)
    if secrets is None:
        raise image.refusal("SEV metadata", "a SECRETS section", "none")
    if not serves_svsm(image):
        raise image.refusal("SEV metadata", "an SVSM_CAA section, as OVMF has it from SVSM support on", "none")
    guest = SvsmGuest(boot_rips, image.gpa, secrets)
    for section in image.tables.sections:
        end = guest.heap_gpa
        if not guest.early.gpa <= section.gpa <= section.gpa + section.size <= end:
            raise image.refusal("SEV metadata", f"sections from {guest.early.gpa:#x} to {end:#x}", hex(section.gpa))
    return guest


def guest_reset_rips(image: FirmwareImage, vcpus: int) -> tuple[int, ...]:
    """Where the vCPUs' lower VMPL comes out of reset: as OVMF's alone would."""
    others = (image.tables.reset_eip or BSP_RESET_EIP) & 0xFFFF
    return (BSP_RESET_EIP & 0xFFFF, *(others,) * (vcpus - 1))
