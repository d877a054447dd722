"""``sevfleet owner``: a guest owner and the platform that launches its SEV guest, step by step, in AMD's formats."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.commands.arguments import number, one_of, whole_number
from cluster.commands.launch_arguments import add_images, add_vcpus, chosen_image, chosen_vcpu_model, kernel_hashes
from cluster.commands.small_files import read_small
from cluster.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from node.firmware_image import FirmwareImage
    from node.owner_platform import LaunchOrder, OwnerPlatform
    from psp.guest_owner import Expected
    from psp.sev_session import TransportKeys

NAME = "owner"
HELP = "play the owner of a SEV guest against an emulated platform"
DESCRIPTION = """\
Plays both ends of a SEV launch, through files in AMD's formats, one step after
another. The owner trusts only what it verifies: certificates up to AMD's root
(here the laboratory's own), and the measurement of its guest.

  platform   the host exports its certificates              pdh pek oca cek ask ark .cert
  session    the owner checks them and opens a session      godh.cert launch_blob.bin tmp_tk.bin
  launch     the host launches and measures a guest         measurement.bin
  secret     the owner checks that and packs a secret       packaged_secret_header.bin packaged_secret.bin
  inject     the host gives it to the guest, which reads it

All files lie in one folder (--folder). tmp_tk.bin is the owner's alone: the
host's steps never read it. Keys follow from seeds; keep nothing of worth in
them. Each step's --help has an example."""
EXAMPLE = "sevfleet owner platform --folder guest/"

PRODUCT_NAMES = ("Naples", "Rome", "Milan", "Genoa", "Bergamo", "Siena", "Turin")
CERTIFICATES = ("pdh", "pek", "oca", "cek", "ask", "ark")
GODH, BLOB, KEYS, MEASUREMENT = "godh.cert", "launch_blob.bin", "tmp_tk.bin", "measurement.bin"
HEADER, PACKET = "packaged_secret_header.bin", "packaged_secret.bin"
OVMF_SECRET_AREA = 0x0081_0000
"""Where OVMF's AmdSev build keeps it; other builds have none, and would not look at what lies there."""
ES = 1 << 2
DIGEST_BYTES = 32
_MOST_BYTES = 1 << 16
_SEEDS = (1 << 63) - 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the steps and their arguments."""
    steps = parser.add_subparsers(metavar="STEP", required=True)
    for name, (described, example, declare, step) in _STEPS.items():
        inner = steps.add_parser(
            name,
            help=described,
            description=described,
            epilog=f"example:\n  sevfleet owner {name} {example}\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        inner.add_argument("--folder", required=True, metavar="DIR", help="where the files lie")
        declare(inner)
        inner.set_defaults(step=step)


def execute(arguments: argparse.Namespace) -> int:
    """Take one step."""
    from node.owner_platform import PlatformRefusal
    from psp.guest_owner import WrongMeasurementError
    from psp.sev_certificate import CertificateError

    try:
        arguments.step(arguments, Path(arguments.folder))
    except PlatformRefusal as refusal:
        raise UserError(f"the platform refused {refusal}") from None
    except (CertificateError, WrongMeasurementError) as error:
        raise UserError(f"the owner refused: {error}") from None
    return 0


# The host's steps.


def _export(arguments: argparse.Namespace, folder: Path) -> None:
    from cluster.root_keys import product_root
    from psp.sev_certificate import KeyUsage

    platform = _platform(arguments)
    chain = platform.chain()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None
    root = product_root(platform.line)
    ours = (chain.pdh, chain.pek, chain.oca, root.certified_cek(chain.cek))
    files = [certificate.pack() for certificate in ours]
    files += [root.amd_certificate(usage).pack() for usage in (KeyUsage.ASK, KeyUsage.ARK)]
    for name, data in zip(CERTIFICATES, files, strict=True):
        _write(folder / f"{name}.cert", data)
    print(f"{folder}: certificates of a {arguments.product} with firmware {'.'.join(map(str, platform.api))}")


def _launch(arguments: argparse.Namespace, folder: Path) -> None:
    platform, image = _platform(arguments), chosen_image(arguments)
    measurement = platform.launch(_order(arguments, folder, image))
    _write(folder / MEASUREMENT, measurement)
    print(f"{folder / MEASUREMENT}: launched from {image.origin}, measured, waiting for the owner's secret")


def _inject(arguments: argparse.Namespace, folder: Path) -> None:
    from node.owner_platform import SIZES

    platform, image = _platform(arguments), chosen_image(arguments)
    header, packet = _read(folder / HEADER, SIZES["header"]), _read(folder / PACKET)
    gpa = _secret_address(arguments, image)
    if not platform.holds(gpa, len(packet)):
        raise UserError(f"--address: expected an address in the guest's RAM, got {gpa:#x}")
    platform.launch(_order(arguments, folder, image))  # the same steps from the same seed: where `launch` ended
    platform.inject(gpa, header, packet)
    platform.finish()
    print(f"the host reads at {gpa:#x}: {platform.host_reads(gpa, 16).hex()}...")
    print(f"the guest reads there: {platform.guest_reads(gpa, len(packet)).rstrip(bytes(1))!r}")


# The owner's steps.


def _session(arguments: argparse.Namespace, folder: Path) -> None:
    from psp import amd_certificate, guest_owner
    from psp.sev_certificate import KeyUsage
    from psp.sev_chain import PlatformChain

    pdh, pek, oca, cek, ask, ark = (_read(folder / f"{name}.cert") for name in CERTIFICATES)
    root = hashlib.sha256(ark)
    if arguments.root not in (None, root.digest()):
        wanted = arguments.root.hex()
        raise UserError(f"{folder / 'ark.cert'}: expected a root of SHA-256 {wanted}, got {root.hexdigest()}")
    opened = guest_owner.open_session(
        PlatformChain.parse(pdh, pek + oca + cek),
        amd_certificate.parse(ark, KeyUsage.ARK),
        amd_certificate.parse(ask, KeyUsage.ASK),
        arguments.policy,
        _random(arguments.owner_seed),
    )
    _write(folder / GODH, opened.certificate.pack())
    _write(folder / BLOB, opened.session.pack())
    _write(folder / KEYS, opened.keys.tek + opened.keys.tik)
    whose = "the root that you trust" if arguments.root else "ark.cert: your root if its SHA-256 is"
    print(f"the platform's certificates verify up to {whose} {root.hexdigest()}")
    print(f"{folder}: session for policy {arguments.policy:#x}")


def _secret(arguments: argparse.Namespace, folder: Path) -> None:
    from psp import guest_owner
    from psp.secret_packet import BLOCK_BYTES, MOST_BYTES
    from psp.sev_session import NONCE_BYTES

    keys, expected = _keys(folder), _expected(arguments)
    measurement = _read(folder / MEASUREMENT)
    if arguments.secret is None:
        guest_owner.check_measurement(keys, expected, measurement)
        print("the measurement is that of the guest you expect")
        return
    secret = _read(Path(arguments.secret))
    if not 0 < len(secret) <= MOST_BYTES:
        raise UserError(f"{arguments.secret}: expected 1 to {MOST_BYTES} bytes, got {len(secret)}")
    padded = secret.ljust(-(-len(secret) // BLOCK_BYTES) * BLOCK_BYTES, b"\0")
    # One initial vector never serves two secrets: it would show what they have in common.
    purpose = f"secret IV {measurement.hex()} {hashlib.sha256(padded).hexdigest()}"
    iv = _random(arguments.owner_seed)(purpose, NONCE_BYTES)
    header, packet = guest_owner.secret_for(keys, expected, measurement, padded, iv)
    _write(folder / HEADER, header.pack())
    _write(folder / PACKET, packet)
    print(f"{folder / PACKET}: the measurement is that of the guest you expect; {len(secret)} bytes packed for it")


# Arguments.


def _declare_platform(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--product", type=one_of("product", PRODUCT_NAMES), default="Naples", metavar="NAME", help="default: Naples"
    )
    parser.add_argument(
        "--seed", type=whole_number("seed", 0, _SEEDS), default=1, metavar="N", help="which platform (default: 1)"
    )


def _declare_owner(parser: argparse.ArgumentParser) -> None:
    seed = whole_number("owner-seed", 0, _SEEDS)
    parser.add_argument("--owner-seed", type=seed, default=1, metavar="N", help="which owner (default: 1)")
    _declare_policy(parser)


def _declare_session(parser: argparse.ArgumentParser) -> None:
    _declare_owner(parser)
    parser.add_argument(
        "--root", type=_root, metavar="HEX", help="SHA-256 of the ark.cert that you trust (default: print what it is)"
    )


def _declare_policy(parser: argparse.ArgumentParser) -> None:
    policy = number("policy", 32)
    parser.add_argument(
        "--policy", type=policy, default=1, metavar="VALUE", help="bit 0: no debugging, bit 2: SEV-ES (default: 1)"
    )


def _declare_launch(parser: argparse.ArgumentParser) -> None:
    _declare_platform(parser)
    _declare_policy(parser)
    add_vcpus(parser)
    add_images(parser)


def _declare_inject(parser: argparse.ArgumentParser) -> None:
    _declare_launch(parser)
    parser.add_argument(
        "--address", type=number("address", 32), metavar="GPA", help="where (default: the image's secret area)"
    )


def _declare_secret(parser: argparse.ArgumentParser) -> None:
    _declare_owner(parser)
    parser.add_argument("--digest", required=True, type=_digest, metavar="HEX", help="what sevfleet measure printed")
    parser.add_argument(
        "--firmware", required=True, type=_firmware, metavar="A.B.C", help="firmware you accept, as platform printed it"
    )
    parser.add_argument("--secret", metavar="FILE", help="what the guest shall get (default: only check)")


_STEPS = {
    "platform": ("the host exports its certificates", "--folder guest/ --seed 7", _declare_platform, _export),
    "session": (
        "the owner checks the platform's certificates and opens a session",
        "--folder guest/ --policy 0x1", _declare_session, _session),
    "launch": (
        "the host launches a guest with the owner's session, and measures it",
        "--folder guest/ --seed 7 --ovmf OVMF.fd", _declare_launch, _launch),
    "secret": (
        "the owner checks the measurement and packs a secret for this guest alone",
        "--folder guest/ --digest HEX --firmware 0.24.15 --secret key.txt", _declare_secret, _secret),
    "inject": (
        "the host gives the secret to the guest, which reads it",
        "--folder guest/ --seed 7 --ovmf OVMF.fd", _declare_inject, _inject),
}  # fmt: skip


def _platform(arguments: argparse.Namespace) -> OwnerPlatform:
    from node.owner_platform import OwnerPlatform

    return OwnerPlatform(arguments.product, arguments.seed)


def _order(arguments: argparse.Namespace, folder: Path, image: FirmwareImage) -> LaunchOrder:
    """The launch that the host's arguments name, with the owner's files as they lie there."""
    from node.measured_launch import launch_vmsas, sev_launch_ranges
    from node.owner_platform import SIZES, LaunchOrder

    areas: tuple[bytes, ...] = ()
    if arguments.policy & ES:
        if arguments.vcpus is None:
            raise UserError("--vcpus: expected a number of vCPUs for a SEV-ES policy, got none")
        areas = launch_vmsas(image, arguments.vcpus, chosen_vcpu_model(arguments, needed=True), 0)
    return LaunchOrder(
        sev_launch_ranges(image, kernel_hashes(arguments)),
        areas,
        arguments.policy,
        _read(folder / GODH, SIZES["certificate"]),
        _read(folder / BLOB, SIZES["session"]),
    )


def _secret_address(arguments: argparse.Namespace, image: FirmwareImage) -> int:
    if arguments.address is not None:
        return int(arguments.address)
    area = image.tables.secret_block
    return OVMF_SECRET_AREA if area is None else area.gpa


def _expected(arguments: argparse.Namespace) -> Expected:
    from psp.guest_owner import Expected

    return Expected(arguments.firmware, arguments.policy, arguments.digest)


def _keys(folder: Path) -> TransportKeys:
    from psp.sev_session import KEY_BYTES, TransportKeys

    keys = _read(folder / KEYS, 2 * KEY_BYTES)
    return TransportKeys(keys[:KEY_BYTES], keys[KEY_BYTES:])


def _random(seed: int) -> Callable[[str, int], bytes]:
    """The owner's own random bytes, each purpose drawn once in a run of a step."""
    from node.counter_random import CounterRandom

    random = CounterRandom(seed)
    return lambda purpose, length: random.octets("owner", purpose, 0, length)


def _digest(text: str) -> bytes:
    return _sha_256("digest", text)


def _root(text: str) -> bytes:
    return _sha_256("root", text)


def _sha_256(option: str, text: str) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != DIGEST_BYTES:
        raise UserError(f'--{option}: expected {2 * DIGEST_BYTES} hexadecimal digits, got "{text}"')
    return found


def _firmware(text: str) -> tuple[int, ...]:
    parts = text.split(".")
    if len(parts) != 3 or not all(_is_octet(part) for part in parts):
        raise UserError(f'--firmware: expected three numbers such as 0.24.15, got "{text}"')
    return tuple(int(part) for part in parts)


def _is_octet(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 3 and int(text) < 256


def _read(path: Path, size: int | None = None) -> bytes:
    """A file, of a size where one is known."""
    data = read_small(path, _MOST_BYTES)
    if size is not None and len(data) != size:
        raise UserError(f"{path}: expected {size} bytes, got {len(data)}")
    return data


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
