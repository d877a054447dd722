"""Our own verifier, which knows nothing of the key server, has one reason for each of its lies."""

from datetime import UTC, datetime

import pytest

from cluster.attested_guest import HOST, Attestation, attest
from cluster.key_server.chip_register import ChipRegister
from cluster.key_server.failures import Failures, Lie
from cluster.key_server.gate import Gate
from cluster.key_server.host_certificates import table_of
from cluster.key_server.key_service import KeyService
from cluster.key_server.key_urls import vcek_url
from cluster.root_keys import product_root
from node.chip_of_host import chip_of_host
from node.counter_random import CounterRandom
from node.firmware_image import laboratory_image
from node.product import PRODUCTS
from psp.certificate_table import CertificateKind, parsed
from psp.product_root import RootName
from psp.verifier import Expectations, Reason, Rejected, root_of, verify
from psp.verifier.verify import Evidence

SEED = 9
NOW = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp())
REASONS = {
    # The certificate is good, and another's.
    Lie.OTHER_CHIP: Reason.CHIP_ID_MISMATCH,
    Lie.OTHER_TCB: Reason.REPORTED_TCB_MISMATCH,
    Lie.OTHER_ROOT: Reason.ROOT_UNKNOWN,
    Lie.EXPIRED: Reason.LEAF_EXPIRED,
    Lie.REVOKED: Reason.ASK_REVOKED,
}


@pytest.fixture(scope="module", params=["Milan", "Turin"])
def attested(request):
    """A product, and a report of one's guest."""
    return request.param, attest(Attestation(request.param, b"nonce", laboratory_image(), SEED)).report


def judged(product, report, lie):
    """By certificates that a host fetched of such a server."""
    row = PRODUCTS[product]
    service = KeyService(ChipRegister([(HOST, row)], SEED), product_root, gate=Gate(failures=Failures(lie=lie)))
    chip = chip_of_host(row, HOST, CounterRandom(SEED))
    found = parsed(table_of(service, chip, int.from_bytes(report[0x180:0x188], "little")))
    roots = root_of(product_root(row.line.name).certificate(RootName.ARK))
    kinds = (CertificateKind.ARK, CertificateKind.ASK, CertificateKind.VCEK)
    evidence = Evidence(report, *(found[kind] for kind in kinds), (found[CertificateKind.CRL],))
    return verify(evidence, Expectations(crl_demanded=True), NOW, roots)


def test_it_believes_an_honest_server(attested):
    assert judged(*attested, None).passed


@pytest.mark.parametrize("lie", REASONS)
def test_each_lie_has_its_reason(attested, lie):
    with pytest.raises(Rejected) as rejected:
        judged(*attested, lie)
    assert rejected.value.reason is REASONS[lie]


def test_a_host_that_is_served_garbage_has_no_certificates(attested):
    product, report = attested
    chip = chip_of_host(PRODUCTS[product], HOST, CounterRandom(SEED))
    for failures in (Failures(lie=Lie.GARBAGE), Failures(down_until_ns=1)):
        gate = Gate(failures=failures)
        service = KeyService(ChipRegister([(HOST, PRODUCTS[product])], SEED), product_root, gate=gate)
        assert table_of(service, chip, int.from_bytes(report[0x180:0x188], "little")) == b""
    assert service.answer(vcek_url(chip.line, chip.chip_id, 0), "", 1).body.startswith(b"\x30\x82")
