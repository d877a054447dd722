"""``sevfleet attest``: an attestation report of a guest on an emulated host, with the certificates that prove it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.commands.arguments import one_of, whole_number
from cluster.commands.launch_arguments import chosen_image
from cluster.errors import UserError

if TYPE_CHECKING:
    from cluster.attested_guest import AttestedGuest

NAME = "attest"
HELP = "get an attestation report of an SNP guest"
DESCRIPTION = """\
Launches an SNP guest on an emulated host and has it ask for a report, through
its GHCB and the host's firmware. What it got lies in the folder afterwards:

  report.bin   the report, 1184 bytes
  vcek.der     the certificate of the chip's key for the TCB version reported
  ask.pem      AMD's keys for the product line, here the laboratory's own:
  ark.pem      no certificate of the real AMD is among these
  crl.der      and the list of what the ARK has revoked

sevfleet verify judges them, and so do other tools. The same options give the
same bytes."""
EXAMPLE = "sevfleet attest --product Milan --report-data 00ff --out report/"

PRODUCT_NAMES = ("Milan", "Genoa", "Bergamo", "Siena", "Turin")
_MOST_DATA_BYTES = 64
_SEEDS = (1 << 63) - 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--product", required=True, type=one_of("product", PRODUCT_NAMES), metavar="NAME",
        help=f"one of {', '.join(PRODUCT_NAMES)}")  # fmt: skip
    add("--report-data", required=True, type=_report_data, metavar="HEX", help="up to 64 bytes that the report binds")
    add("--out", required=True, metavar="DIR", help="where the files go")
    versions = whole_number("report-version", 2, 5)
    add("--report-version", type=versions, metavar="N", help="2 to 5 (default: as firmware of the product makes them)")
    add("--ovmf", metavar="FILE", help="OVMF image (default: the one that sevfleet launches guests with)")
    add("--seed", type=whole_number("seed", 0, _SEEDS), default=1, metavar="N", help="which host (default: 1)")


def execute(arguments: argparse.Namespace) -> int:
    """Attest and write."""
    from cluster.attested_guest import Attestation, attest

    image, folder = chosen_image(arguments), Path(arguments.out)
    if not image.launches_snp:
        raise image.refusal("SEV metadata", "a SECRETS and a CPUID section", "none")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None
    asked = Attestation(arguments.product, arguments.report_data, image, arguments.seed, arguments.report_version)
    found = attest(asked)
    for name, data in _files(found).items():
        try:
            (folder / name).write_bytes(data)
        except OSError as error:
            raise UserError(f"{folder / name}: {error.strerror}") from None
    version = int.from_bytes(found.report[:4], "little")
    print(f"{folder}: a report of version {version} by a {arguments.product}, launch digest")
    print(found.launch_digest)
    return 0


def _files(found: AttestedGuest) -> dict[str, bytes]:
    from psp.certificate_table import CertificateKind
    from psp.x509_profile import pem

    kinds = found.certificates
    return {
        "report.bin": found.report,
        "vcek.der": kinds[CertificateKind.VCEK],
        "ask.pem": pem(kinds[CertificateKind.ASK]).encode(),
        "ark.pem": pem(kinds[CertificateKind.ARK]).encode(),
        "crl.der": kinds[CertificateKind.CRL],
    }


def _report_data(text: str) -> bytes:
    try:
        found = bytes.fromhex(text) if text.isascii() else None
    except ValueError:
        found = None
    if found is None or len(found) > _MOST_DATA_BYTES:
        raise UserError(f'--report-data: expected up to {2 * _MOST_DATA_BYTES} hexadecimal digits, got "{text}"')
    return found
