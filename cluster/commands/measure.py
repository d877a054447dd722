"""``sevfleet measure``: the launch digest a guest owner expects."""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.commands.arguments import number, one_of, whole_number
from cluster.errors import UserError

if TYPE_CHECKING:
    from node.firmware_image import FirmwareImage
    from node.kernel_hashes import KernelHashes
    from node.vcpu_model import VcpuModel
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
MOST_VCPUS = 4096
MOST_FILE_BYTES = 2 << 30
"""Kernel and initrd lie below 4 GiB in a guest."""
DIGEST_BYTES = 48
_PIECE_BYTES = 1 << 20
_WITH_SAVE_AREAS = {"seves", "snp", "snp:svsm"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--mode", required=True, type=one_of("mode", MODES), metavar="MODE", help=f"one of {', '.join(MODES)}")
    add("--vcpus", type=whole_number("vcpus", 1, MOST_VCPUS), metavar="N", help="how many vCPUs")
    add("--vcpu-type", metavar="NAME", help="their model as QEMU names it, such as EPYC-Milan;")
    add("--vcpu-sig", type=number("vcpu-sig", 32), metavar="VALUE", help="or CPUID 1 EAX as they show it;")
    add("--vcpu-family", type=whole_number("vcpu-family", 0, 270), metavar="N", help="or family,")
    add("--vcpu-model", type=whole_number("vcpu-model", 0, 255), metavar="N", help="model")
    add("--vcpu-stepping", type=whole_number("vcpu-stepping", 0, 15), metavar="N", help="and stepping")
    add("--vmm-type", default="QEMU", metavar="VMM", help="QEMU, ec2 or gce (default: QEMU)")
    add("--ovmf", metavar="FILE", help="OVMF image (default: the one that sevfleet launches guests with)")
    add("--kernel", metavar="FILE", help="kernel of a measured direct boot")
    add("--initrd", metavar="FILE", help="its initrd")
    add("--append", metavar="TEXT", help="its command line")
    features = number("guest-features", 64)
    add("--guest-features", type=features, default=1, metavar="VALUE", help="SEV_FEATURES of SNP vCPUs (default: 0x1)")
    form = one_of("output-format", FORMATS)
    add("--output-format", default="hex", type=form, metavar="F", help="hex or base64 (default: hex)")
    add("--snp-ovmf-hash", type=_digest, metavar="HEX", help="digest of the OVMF image, in place of its contents")
    add("--dump-vmsa", action="store_true", help="write the save areas as measured to vmsa0.bin, vmsa1.bin, ...")
    add("--svsm", metavar="FILE", help="SVSM image, for snp:svsm")
    add("--vars-file", metavar="FILE", help="OVMF's variable store, which lies between OVMF and the SVSM;")
    add("--vars-size", type=whole_number("vars-size", 0, 1 << 24), metavar="BYTES", help="or its size")
    add("-v", "--verbose", action="store_true", help="say first what is measured")


def execute(arguments: argparse.Namespace) -> int:
    """Compute and print."""
    from node.firmware_image import find_firmware_image, read_firmware_image

    _check(arguments)
    image = read_firmware_image(Path(arguments.ovmf)) if arguments.ovmf else find_firmware_image()
    digest, save_areas = _measured(arguments, image)
    if arguments.verbose:
        print(f"OVMF image: {image.origin}, SHA-256 {image.sha256}")
        print(f"mode {arguments.mode}, {arguments.vcpus or 0} vCPUs, VMM {arguments.vmm_type}")
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
    if mode == "snp:ovmf-hash":
        return snp_digest(image_pages(image)), ()
    hashes = _kernel_hashes(arguments)
    if mode == "sev":
        return sev_digest(sev_launch_ranges(image, hashes)), ()
    vmm = _vmm(arguments.vmm_type)
    model = _vcpu_model(arguments, needed=vmm.shows_signature)
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
    for option in ("initrd", "append"):
        if getattr(arguments, option) is not None and arguments.kernel is None:
            raise UserError(f"--{option}: expected --kernel with it")
    if mode in _WITH_SAVE_AREAS and arguments.vcpus is None:
        raise UserError(f"--vcpus: expected a number of vCPUs for mode {mode}, got none")
    for option, modes in _ONLY_IN.items():
        if getattr(arguments, option) and mode not in modes:
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


def _vmm(name: str) -> Vmm:
    from node.vmm_type import VMMS

    if name not in VMMS:
        raise UserError(f'--vmm-type: expected one of {", ".join(VMMS)}, got "{name}"')
    return VMMS[name]


def _vcpu_model(arguments: argparse.Namespace, *, needed: bool) -> VcpuModel:
    """The model in one of the three ways to name it."""
    from node.vcpu_model import UnknownVcpuModelError, VcpuModel, vcpu_model

    numbers = (arguments.vcpu_family, arguments.vcpu_model, arguments.vcpu_stepping)
    ways = [arguments.vcpu_type is not None, arguments.vcpu_sig is not None, any(n is not None for n in numbers)]
    if sum(ways) > 1 or (needed and not any(ways)):
        raise UserError("--vcpu-type: expected one of it, --vcpu-sig, and --vcpu-family with -model and -stepping")
    try:
        if arguments.vcpu_type is not None:
            return vcpu_model(arguments.vcpu_type)
        if arguments.vcpu_sig is not None:
            return VcpuModel.of_signature(arguments.vcpu_sig)
    except UnknownVcpuModelError as error:
        raise UserError(f"--vcpu-type: {str(error).removeprefix('vCPU model: ')}") from None
    except ValueError as error:
        raise UserError(f"--vcpu-sig: {str(error).removeprefix('CPUID signature: ')}") from None
    if not any(ways):
        return VcpuModel.of_signature(0)  # this VMM does not show it
    if None in numbers:
        raise UserError("--vcpu-family: expected --vcpu-model and --vcpu-stepping with it")
    return VcpuModel("vCPU", *numbers)


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


def _kernel_hashes(arguments: argparse.Namespace) -> KernelHashes | None:
    from node.kernel_hashes import KernelHashes, command_line_digest

    if arguments.kernel is None:
        return None
    initrd = hashlib.sha256().digest() if arguments.initrd is None else _file_digest(arguments.initrd)
    cmdline = command_line_digest(os.fsencode(arguments.append or ""))
    return KernelHashes(_file_digest(arguments.kernel), initrd, cmdline)


def _file_digest(name: str) -> bytes:
    """SHA-256 of a file, however large, within bounds."""
    path, digest, size = Path(name), hashlib.sha256(), 0
    try:
        if path.is_fifo():  # it would be waited for, perhaps for ever
            raise UserError(f"{name}: expected a regular file, got a pipe")
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
                size += len(piece)
                if size > MOST_FILE_BYTES:
                    raise UserError(f"{name}: expected at most {MOST_FILE_BYTES} bytes")
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from None
    return digest.digest()


def _digest(text: str) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != DIGEST_BYTES:
        raise UserError(f'--snp-ovmf-hash: expected {2 * DIGEST_BYTES} hexadecimal digits, got "{text}"')
    return found
