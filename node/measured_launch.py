"""What KVM and QEMU feed to the launch commands for an OVMF image, in their order.

SNP: the image's pages in ascending order, the metadata's sections in table
order, the VMSAs of all vCPUs. SEV and SEV-ES: the image as one range, the hash
table of a measured kernel, then (ES) the VMSAs. Sources: QEMU
target/i386/sev.c, Linux arch/x86/kvm/svm/sev.c (snp_launch_update_vmsa).
The digests equal those of sev-snp-measure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain

from node.cpuid_page import cpuid_entries, cpuid_page
from node.firmware_image import FirmwareImage
from node.kernel_hashes import HASH_TABLE_BYTES, KernelHashes
from node.ovmf import PAGE_BYTES, GuestArea, MetadataSection, SectionType
from node.vcpu_model import VcpuModel
from node.vmm_type import QEMU, Vmm
from node.vmsa import BSP_RESET_EIP, initial_vmsa
from psp.launch_digest import PageType

VMSA_GPA = 0xFFFF_FFFF_F000
"""KVM has no guest address for a VMSA and measures this one, on every product."""


@dataclass(frozen=True, slots=True)
class LaunchPage:
    """One SNP_LAUNCH_UPDATE of 4 KiB. ``data`` is None where the firmware makes the contents."""

    page_type: PageType
    gpa: int
    data: bytes | None = field(repr=False)


_SECTION_PAGES = {
    SectionType.SECRETS: PageType.SECRETS,
    SectionType.CPUID: PageType.CPUID,
    SectionType.SVSM_CAA: PageType.ZERO,
    SectionType.KERNEL_HASHES: PageType.ZERO,
}
"""Page type of each section but SEC_MEM, which is the VMM's choice; a hash section becomes NORMAL with hashes."""


def snp_launch_pages(
    image: FirmwareImage,
    vcpus: int,
    vcpu_model: VcpuModel,
    features: int,
    kernel_hashes: KernelHashes | None = None,
    vmm: Vmm = QEMU,
    cpuid: bytes | None = None,
) -> Iterator[LaunchPage]:
    """Every page of an SNP launch, in order. ``cpuid`` is the CPUID page, which is not measured.

    Raises ``FirmwareImageError``, before the first page, for an image that lacks what ``vcpus`` or ``kernel_hashes``
    ask of it. One built without SEV-SNP, for no secrets and CPUID page, has a digest too, although no guest would come
    up from it; one that was not built for SEV at all has none.
    """
    if not image.launches_snp and image.tables.reset_eip is None:
        raise image.refusal("SEV metadata", "a SECRETS and a CPUID section", "none")
    hash_page = None if kernel_hashes is None else _hash_page(image, kernel_hashes)
    vmsas = launch_vmsas(image, vcpus, vcpu_model, features, vmm)
    if cpuid is None:
        cpuid = cpuid_page(cpuid_entries(vcpu_model.cpuid_signature))
    return chain(image_pages(image), metadata_pages(image, cpuid, hash_page, vmm), vmsa_pages(vmsas))


def sev_launch_ranges(image: FirmwareImage, kernel_hashes: KernelHashes | None = None) -> list[tuple[int, bytes]]:
    """The (GPA, bytes) ranges of LAUNCH_UPDATE_DATA, in order, for SEV and SEV-ES."""
    ranges = [(image.gpa, image.data)]
    if kernel_hashes is not None:
        ranges.append((_hash_area(image).gpa, kernel_hashes.table()))
    return ranges


def launch_vmsas(
    image: FirmwareImage, vcpus: int, vcpu_model: VcpuModel, features: int, vmm: Vmm = QEMU
) -> tuple[bytes, ...]:
    """The initial VMSA of each vCPU: the boot processor's, then the others' at the image's reset block."""
    if vcpus < 1:
        raise ValueError(f"vcpus: expected at least 1, found {vcpus}")
    signature = vcpu_model.cpuid_signature
    boot = initial_vmsa(BSP_RESET_EIP, signature, features, vmm.changes(BSP_RESET_EIP))
    if vcpus == 1:
        return (boot,)
    eip = image.tables.reset_eip
    if eip is None:
        raise image.refusal("SEV-ES reset block", f"an entry point for {vcpus - 1} more vCPUs", "none")
    return (boot, *(initial_vmsa(eip, signature, features, vmm.changes(eip)),) * (vcpus - 1))


@lru_cache(maxsize=2)
def image_pages(image: FirmwareImage) -> tuple[LaunchPage, ...]:
    """The image itself, in ascending order. Remembered: one image is launched again and again."""
    data, gpa = image.data, image.gpa
    return tuple([
        LaunchPage(PageType.NORMAL, gpa + offset, data[offset : offset + PAGE_BYTES])
        for offset in range(0, len(data), PAGE_BYTES)
    ])  # fmt: skip


def metadata_pages(
    image: FirmwareImage, cpuid: bytes, hash_page: bytes | None = None, vmm: Vmm = QEMU
) -> Iterator[LaunchPage]:
    """What the image's metadata asks for, in table order as far as the VMM keeps it."""
    last = [s for s in image.tables.sections if vmm.cpuid_last and s.section_type is SectionType.CPUID]
    for section in [*(s for s in image.tables.sections if s not in last), *last]:
        yield from _section_pages(section, hash_page, cpuid, vmm)


def vmsa_pages(vmsas: Iterable[bytes]) -> Iterator[LaunchPage]:
    """The vCPUs' save areas."""
    for vmsa in vmsas:
        yield LaunchPage(PageType.VMSA, VMSA_GPA, vmsa)


def _section_pages(section: MetadataSection, hash_page: bytes | None, cpuid: bytes, vmm: Vmm) -> Iterator[LaunchPage]:
    if section.section_type is SectionType.KERNEL_HASHES and hash_page is not None:
        yield LaunchPage(PageType.NORMAL, section.gpa, hash_page)
        return
    page_type = _SECTION_PAGES.get(section.section_type, vmm.sec_mem)
    data = cpuid if page_type is PageType.CPUID else None
    for gpa in range(section.gpa, section.gpa + section.size, PAGE_BYTES):
        yield LaunchPage(page_type, gpa, data)


def _hash_area(image: FirmwareImage) -> GuestArea:
    """Where the image wants the hash table, checked to hold one."""
    area = image.tables.hash_table
    if area is None:
        raise image.refusal("SEV hash table area", "an area for the kernel's hashes", "none")
    if area.gpa % 16:
        raise image.refusal("SEV hash table area", "a multiple of 16 as address", hex(area.gpa))
    room = min(area.size, PAGE_BYTES - area.gpa % PAGE_BYTES, image.gpa - area.gpa)
    if room < HASH_TABLE_BYTES:
        raise image.refusal("SEV hash table area", f"{HASH_TABLE_BYTES} bytes in one page below the image", str(room))
    return area


def _hash_page(image: FirmwareImage, kernel_hashes: KernelHashes) -> bytes:
    """The page of the KERNEL_HASHES section: the table at its offset, zeros elsewhere."""
    area = _hash_area(image)
    offset = area.gpa % PAGE_BYTES
    pages = [s.gpa for s in image.tables.sections if s.section_type is SectionType.KERNEL_HASHES]
    if pages != [area.gpa - offset]:
        found = ", ".join(map(hex, pages)) or "none"
        raise image.refusal("KERNEL_HASHES section", f"one at {area.gpa - offset:#x}", found)
    return (bytes(offset) + kernel_hashes.table()).ljust(PAGE_BYTES, b"\0")
