"""Arguments of commands that launch or measure a guest: its vCPUs, its firmware image, its kernel."""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.commands.arguments import number, whole_number
from cluster.errors import UserError

if TYPE_CHECKING:
    from node.firmware_image import FirmwareImage
    from node.kernel_hashes import KernelHashes
    from node.vcpu_model import VcpuModel

MOST_VCPUS = 4096
MOST_FILE_BYTES = 2 << 30
"""Kernel and initrd lie below 4 GiB in a guest."""
_PIECE_BYTES = 1 << 20


def add_vcpus(parser: argparse.ArgumentParser) -> None:
    """How many vCPUs, and three ways to say which."""
    add = parser.add_argument
    add("--vcpus", type=whole_number("vcpus", 1, MOST_VCPUS), metavar="N", help="how many vCPUs")
    add("--vcpu-type", metavar="NAME", help="their model as QEMU names it, such as EPYC-Milan;")
    add("--vcpu-sig", type=number("vcpu-sig", 32), metavar="VALUE", help="or CPUID 1 EAX as they show it;")
    add("--vcpu-family", type=whole_number("vcpu-family", 0, 270), metavar="N", help="or family,")
    add("--vcpu-model", type=whole_number("vcpu-model", 0, 255), metavar="N", help="model")
    add("--vcpu-stepping", type=whole_number("vcpu-stepping", 0, 15), metavar="N", help="and stepping")


def add_images(parser: argparse.ArgumentParser) -> None:
    """What is measured."""
    add = parser.add_argument
    add("--ovmf", metavar="FILE", help="OVMF image (default: the one that sevfleet launches guests with)")
    add("--kernel", metavar="FILE", help="kernel of a measured direct boot")
    add("--initrd", metavar="FILE", help="its initrd")
    add("--append", metavar="TEXT", help="its command line")


def chosen_image(arguments: argparse.Namespace) -> FirmwareImage:
    """The named image, or the usual one."""
    from node.firmware_image import find_firmware_image, read_firmware_image

    return read_firmware_image(Path(arguments.ovmf)) if arguments.ovmf else find_firmware_image()


def chosen_vcpu_model(arguments: argparse.Namespace, *, needed: bool) -> VcpuModel:
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


def kernel_hashes(arguments: argparse.Namespace) -> KernelHashes | None:
    """Hashes of kernel, initrd and command line, if a kernel is measured."""
    from node.kernel_hashes import KernelHashes, command_line_digest

    for option in ("initrd", "append"):
        if getattr(arguments, option) and not arguments.kernel:
            raise UserError(f"--{option}: expected --kernel with it")
    if not arguments.kernel:
        return None
    # As scripts hand them on that may have none: no name is no file.
    initrd = _file_digest(arguments.initrd) if arguments.initrd else hashlib.sha256().digest()
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
