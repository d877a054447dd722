"""What a host's owner fetches of a key service for guests: the certificates of its chip, as a table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from http import HTTPStatus

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cluster.key_server.chip_register import ChipRegister
from cluster.key_server.failures import Failures, Lie
from cluster.key_server.gate import Gate
from cluster.key_server.key_service import KeyService
from cluster.key_server.key_urls import vcek_url
from cluster.root_keys import product_root
from node.certificate_store import CertificateStore
from node.counter_random import CounterRandom
from node.host import Host
from psp.certificate_table import CertificateKind, packed
from psp.chip_identity import ChipIdentity


def store_of(host: Host, ask: Callable[[], None], laboratory: int, lie: str | None) -> CertificateStore:
    """What a host of a scenario keeps: ``ask`` sends a request to the key service of a laboratory, which may lie."""
    spec, psp = host.spec, host.board.psp

    def table() -> bytes:
        gate = Gate(failures=Failures(lie=None if lie is None else Lie(lie)))
        register = ChipRegister([(spec.name, spec.product)], spec.seed)
        service = KeyService(register, partial(product_root, laboratory=laboratory), gate=gate)
        return table_of(service, psp.legacy.keys.chip, psp.firmware.reported_tcb)

    return CertificateStore(host.clock, ask, table, partial(CounterRandom(spec.seed).uniform, spec.name, "key service"))


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
