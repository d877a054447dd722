"""``sevfleet measure``: the launch digest a guest owner expects."""

from __future__ import annotations

import argparse
import base64
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.commands.arguments import number, one_of, whole_number
from cluster.commands.launch_arguments import (
    add_images,
    add_vcpus,
    chosen_image,
    chosen_vcpu_model,
    kernel_hashes,
)
from cluster.errors import UserError

if TYPE_CHECKING:
    from node.firmware_image import FirmwareImage
    from node.vmm_type import Vmm

NAME = "measure"
HELP = "compute the launch digest of a guest"
DESCRIPTION = """\
Computes the launch digest of a guest, which its owner compares with what the
firmware proves: a hexadecimal number, alone on the last line. The options are
those of sev-snp-measure, and so are the digests.

Modes: sev, seves, snp; snp:svsm with an SVSM below OVMF; snp:ovmf-hash for the
digest of the OVMF image alone, which --snp-ovmf-hash takes in place of it.

VMMs: QEMU; ec2 and gce as sev-snp-measure knows them, which need not be what
these clouds do today."""
EXAMPLE = """\
sevfleet measure --mode snp --vcpus 4 --vcpu-type EPYC-v4 --ovmf OVMF.fd \\
    --kernel vmlinuz --initrd initrd.img --append "console=ttyS0\""""

MODES = ("sev", "seves", "snp", "snp:ovmf-hash", "snp:svsm")
FORMATS = ("hex", "base64")
DIGEST_BYTES = 48
_WITH_SAVE_AREAS = {"seves", "snp", "snp:svsm"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--mode", required=True, type=one_of("mode", MODES), metavar="MODE", help=f"one of {', '.join(MODES)}")
    add_vcpus(parser)
    add("--vmm-type", default="QEMU", metavar="VMM", help="QEMU, ec2 or gce (default: QEMU)")
    add_images(parser)
    features = number("guest-features", 64)
    add("--guest-features", type=features, default=1, metavar="VALUE", help="SEV_FEATURES of SNP vCPUs (default: 0x1)")
    form = one_of("output-format", FORMATS)
    add("--output-format", default="hex", type=form, metavar="F", help="hex or base64 (default: hex)")
    add("--snp-ovmf-hash", type=_digest, metavar="HEX", help="digest of the OVMF image, in place of its contents")
    areas = "write the save areas as measured to vmsa0.bin, vmsa1.bin, ..."
    add("--dump-vmsa", action="store_true", default=None, help=areas)
    add("--svsm", metavar="FILE", help="SVSM image, for snp:svsm")
    add("--vars-file", metavar="FILE", help="OVMF's variable store, which lies between OVMF and the SVSM;")
    add("--vars-size", type=whole_number("vars-size", 0, 1 << 24), metavar="BYTES", help="or its size")
    add("-v", "--verbose", action="store_true", help="say first what is measured")


def execute(arguments: argparse.Namespace) -> int:
    """Compute and print."""
    _check(arguments)
    image = chosen_image(arguments)
    digest, save_areas = _measured(arguments, image)
    if arguments.verbose:
        print(f"OVMF image: {image.origin}, SHA-256 {image.sha256}")
        vcpus = f", {arguments.vcpus} vCPUs, VMM {arguments.vmm_type}" if arguments.mode in _WITH_SAVE_AREAS else ""
        print(f"mode {arguments.mode}{vcpus}")
    if arguments.dump_vmsa:
        for index, page in enumerate(save_areas):
            Path(f"vmsa{index}.bin").write_bytes(page)
    print(digest.hex() if arguments.output_format == "hex" else base64.b64encode(digest).decode())
    return 0


def _measured(arguments: argparse.Namespace, image: FirmwareImage) -> tuple[bytes, tuple[bytes, ...]]:
    """The digest and the save areas that are part of it."""
    from node.expected_measurement import sev_digest, snp_digest
    from node.measured_launch import image_pages, launch_vmsas, sev_launch_ranges, snp_launch_pages
    from node.svsm_launch import svsm_launch_pages
    from psp.launch_digest import PageType

    mode = arguments.mode
    # Also where a mode has no use for them, a wrong value is somebody's mistake.
    hashes, vmm = kernel_hashes(arguments), _vmm(arguments.vmm_type)
    model = chosen_vcpu_model(arguments, needed=mode in _WITH_SAVE_AREAS and vmm.shows_signature)
    if mode == "snp:ovmf-hash":
        return snp_digest(image_pages(image)), ()
    if mode == "sev":
        return sev_digest(sev_launch_ranges(image, hashes)), ()
    if mode == "seves":
        areas = launch_vmsas(image, arguments.vcpus, model, 0, vmm)
        return sev_digest(sev_launch_ranges(image, hashes), areas), areas
    if mode == "snp:svsm":
        pages = list(svsm_launch_pages(image, _svsm(arguments, image), arguments.vcpus, model))
    else:
        pages = list(snp_launch_pages(image, arguments.vcpus, model, arguments.guest_features, hashes, vmm))
    areas = tuple(page.data for page in pages if page.page_type is PageType.VMSA and page.data)
    if arguments.snp_ovmf_hash:
        return snp_digest(pages[len(tuple(image_pages(image))) :], arguments.snp_ovmf_hash), areas
    return snp_digest(pages), areas


def _check(arguments: argparse.Namespace) -> None:
    """Options that do not go together."""
    mode = arguments.mode
    if mode in _WITH_SAVE_AREAS and arguments.vcpus is None:
        raise UserError(f"--vcpus: expected a number of vCPUs for mode {mode}, got none")
    for option, modes in _ONLY_IN.items():
        if getattr(arguments, option) not in _UNSAID and mode not in modes:
            raise UserError(f"--{option.replace('_', '-')}: expected mode {' or '.join(sorted(modes))}, got {mode}")
    if mode == "snp:svsm":
        if arguments.svsm is None:
            raise UserError("--svsm: expected an SVSM image for mode snp:svsm, got none")
        if (arguments.vars_file is None) == (arguments.vars_size is None):
            raise UserError("--vars-file: expected it or --vars-size for mode snp:svsm, and one of them only")
        if arguments.vmm_type != "QEMU":
            raise UserError(f"--vmm-type: expected QEMU for mode snp:svsm, got {arguments.vmm_type}")


_ONLY_IN = {
    "kernel": {"sev", "seves", "snp"},
    "snp_ovmf_hash": {"snp"},
    "dump_vmsa": _WITH_SAVE_AREAS,
    "svsm": {"snp:svsm"},
    "vars_file": {"snp:svsm"},
    "vars_size": {"snp:svsm"},
}
"""Options that would change nothing in another mode."""
_UNSAID = (None, "")
"""As scripts hand options on that they have no value for."""


def _vmm(name: str) -> Vmm:
    from node.vmm_type import VMMS

    if name not in VMMS:
        raise UserError(f'--vmm-type: expected one of {", ".join(VMMS)}, got "{name}"')
    return VMMS[name]


def _svsm(arguments: argparse.Namespace, image: FirmwareImage) -> FirmwareImage:
    """The SVSM, which ends where OVMF's variable store begins."""
    from node.firmware_image import read_firmware_image
    from node.ovmf import PAGE_BYTES

    size = arguments.vars_size
    if size is None:
        try:
            size = Path(arguments.vars_file).stat().st_size
        except OSError as error:
            raise UserError(f"{arguments.vars_file}: {error.strerror}") from None
    if size % PAGE_BYTES or size > 1 << 24:
        raise UserError(f"--vars-size: expected a multiple of {PAGE_BYTES} up to {1 << 24}, got {size}")
    return read_firmware_image(Path(arguments.svsm), image.gpa - size)


def _digest(text: str) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != DIGEST_BYTES:
        raise UserError(f'--snp-ovmf-hash: expected {2 * DIGEST_BYTES} hexadecimal digits, got "{text}"')
    return found
