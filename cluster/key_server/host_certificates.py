"""What a host's owner fetches of a key service for guests: the certificates of its chip, as a table."""

from __future__ import annotations

from http import HTTPStatus

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cluster.key_server.key_service import KeyService
from cluster.key_server.key_urls import vcek_url
from psp.certificate_table import CertificateKind, packed
from psp.chip_identity import ChipIdentity


def table_of(service: KeyService, chip: ChipIdentity, tcb: int) -> bytes:
    """VCEK, ASK, ARK and list, as the service answers; empty where it will not, or with what is no certificate."""
    family = f"/vcek/v1/{chip.line.name}"
    urls = vcek_url(chip.line, chip.chip_id, tcb), f"{family}/cert_chain", f"{family}/crl"
    answers = [service.answer(url, "", 0) for url in urls]
    if any(answer.status is not HTTPStatus.OK for answer in answers):
        return b""
    vcek, chain, revoked = (answer.body for answer in answers)
    try:
        ask, ark = (one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(chain))
    except ValueError:
        return b""
    return packed({
        CertificateKind.VCEK: vcek,
        CertificateKind.ASK: ask,
        CertificateKind.ARK: ark,
        CertificateKind.CRL: revoked,
    })  # fmt: skip
