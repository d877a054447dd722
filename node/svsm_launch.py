"""What QEMU launches with an SVSM (Coconut) beside OVMF: the SVSM at VMPL0 starts first, on every vCPU.

Both images lie whole in the flash, the SVSM below OVMF and its variable store;
the metadata is the SVSM's. Source: the coconut-svsm fork of QEMU, as
sev-snp-measure reproduces it; that tool's digest was checked against hardware.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from node.cpuid_page import cpuid_entries, cpuid_page
from node.firmware_image import FirmwareImage
from node.generation import CAPABILITIES
from node.hypervisor_port import LaunchRefused
from node.machine_spec import MachineSpec
from node.measured_launch import LaunchPage, image_pages, metadata_pages, snp_launch_pages, vmsa_pages
from node.svsm_memory import HANDLER_MARK, MOST_VCPUS, laboratory_svsm, svsm_guest
from node.vcpu_model import VcpuModel
from node.vmsa import SevFeature, initial_vmsa

_FLAT = ("ES", "SS", "DS", "FS")

_PROTECTED_MODE: Mapping[str, int] = {
    **{f"{segment}_SELECTOR": 0x10 for segment in _FLAT},
    **{f"{segment}_ATTRIBUTES": 0xC93 for segment in _FLAT},
    **{f"{segment}_LIMIT": 0xFFFF_FFFF for segment in (*_FLAT, "CS")},
    "CS_SELECTOR": 0x08, "CS_ATTRIBUTES": 0xC9B, "CS_BASE": 0, "CR0": 0x11, "FCW": 0,
}  # fmt: skip
"""An SVSM is entered in flat protected mode; GS stays as a reset leaves it."""


def svsm_below(image: FirmwareImage, spec: MachineSpec) -> FirmwareImage | None:
    """The SVSM's image for a machine with this firmware, if it wants one.

    Raises LaunchRefused, and FirmwareImageError.
    """
    if not spec.svsm:
        return None
    if not CAPABILITIES[spec.generation].rmp:
        raise LaunchRefused(f"svsm: {spec.generation.name} has no VMPLs")
    if spec.sev_features:
        raise LaunchRefused("svsm: expected no SEV_FEATURES but SNP's own")
    if spec.vcpus > MOST_VCPUS:
        raise LaunchRefused(f"svsm: expected at most {MOST_VCPUS} vCPUs, got {spec.vcpus}")
    svsm_guest(image, ())
    return laboratory_svsm(image.gpa, HANDLER_MARK if spec.migration_handler else b"")


def guest_launch_pages(
    images: Sequence[FirmwareImage], vcpus: int, vcpu_model: VcpuModel, features: int, cpuid: bytes | None = None
) -> Iterator[LaunchPage]:
    """Every page of an SNP launch as QEMU does it: of OVMF, and of an SVSM below.

    ``cpuid`` is the CPUID page, which is not measured. Raises FirmwareImageError, also where the image that comes up
    first asks for no secrets or CPUID page.
    """
    image, *below = images
    if not images[-1].launches_snp:
        raise images[-1].refusal("SEV metadata", "a SECRETS and a CPUID section", "none")
    if not below:
        return snp_launch_pages(image, vcpus, vcpu_model, features, cpuid=cpuid)
    return svsm_launch_pages(image, below[0], vcpus, vcpu_model, cpuid)


def svsm_launch_pages(
    image: FirmwareImage, svsm: FirmwareImage, vcpus: int, vcpu_model: VcpuModel, cpuid: bytes | None = None
) -> Iterator[LaunchPage]:
    """Every page of the launch, in order. Raises ``FirmwareImageError`` for an SVSM without entry point."""
    entry = svsm.tables.svsm_entry
    if entry is None:
        raise svsm.refusal("SVSM info", "an entry point", "none")
    if not entry < len(svsm.data):
        raise svsm.refusal("SVSM info", f"an entry point below {len(svsm.data):#x}", hex(entry))
    signature = vcpu_model.cpuid_signature
    start = {**_PROTECTED_MODE, "RIP": svsm.gpa + entry}
    vmsa = initial_vmsa(svsm.gpa + entry, signature, SevFeature.SNP_ACTIVE, start)
    if cpuid is None:
        cpuid = cpuid_page(cpuid_entries(signature))
    return chain(image_pages(image), image_pages(svsm), metadata_pages(svsm, cpuid), vmsa_pages((vmsa,) * vcpus))
