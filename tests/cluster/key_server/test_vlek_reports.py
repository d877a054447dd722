"""A provider's key: SNP_VLEK_LOAD brings it to a chip, it signs reports that name none, and the line's root vouches."""

import subprocess
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from cluster import attested_guest
from cluster.attested_guest import HOST, Attestation, attest
from cluster.cli import main
from cluster.key_server.chip_register import ChipRegister
from cluster.key_server.failures import Failures, Lie
from cluster.key_server.gate import Gate
from cluster.key_server.key_service import KeyService, provider_secret
from cluster.key_server.key_urls import vcek_url, vlek_url
from cluster.root_keys import product_root
from node import operations as op
from node.firmware_image import laboratory_image
from node.product import PRODUCTS
from psp import command_buffers as buffers
from psp.certificate_table import CertificateKind, packed
from psp.commands import SnpCommand
from psp.product_root import RootName
from psp.status import Status
from psp.verifier import Evidence, Expectations, Reason, Rejected, root_of, verify
from psp.x509_profile import pem

pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number")

SEED, PROVIDER = 5, "CN=cloud.example"
COMMAND, BLOB = 3 << 30, (3 << 30) + 4096
"""Memory of the host's that no guest has."""
MOMENT = "1780000000"  # within the validity of all


def service(product):
    return KeyService(
        ChipRegister([(HOST, PRODUCTS[product])], SEED), product_root, provider=PROVIDER,
        provider_secret=provider_secret(PROVIDER, SEED),
    )  # fmt: skip


def loaded(host, blob):
    """The firmware's answer to a hashstick."""
    load = op.PspCommand(SnpCommand.VLEK_LOAD, COMMAND, buffers.SnpVlekLoad(buffers.SnpVlekLoad.SIZE, 0, BLOB).pack())
    wrote, answer = host.board.execute_host((op.HostWrite(BLOB, blob), load))
    assert wrote is None
    return Status(answer.status)


@pytest.fixture(scope="module", params=["Milan", "Turin"])
def attested(request):
    """A product, its key service, and what a guest shows on a host that has a hashstick of it."""
    product = request.param
    keys = service(product)

    def table(host, _laboratory):
        psp = host.board.psp
        tcb = psp.firmware.reported_tcb
        chip = psp.legacy.keys.chip
        sealed = keys.hashstick(chip.chip_id, tcb)
        assert loaded(host, bytes(12) + sealed[12:]) is Status.INVALID_KEY
        assert loaded(host, sealed) is Status.SUCCESS
        vlek, vcek = (keys.answer(url, "", 0).body for url in (
            vlek_url(chip.line, tcb), vcek_url(chip.line, chip.chip_id, tcb)
        ))  # fmt: skip
        return packed({CertificateKind.VLEK: vlek, CertificateKind.VCEK: vcek})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(attested_guest, "_table", table)
        return product, keys, attest(Attestation(product, b"nonce".ljust(64), laboratory_image(), SEED))


def test_a_guest_s_report_is_signed_by_its_provider_s_key(attested, tmp_path):
    product, keys, found = attested
    report = found.report
    # Signing key 1, no chip named, and nothing masked.
    assert report[0x48:0x4C] == bytes([1 << 2, 0, 0, 0])
    assert report[0x1A0:0x1E0] == bytes(64)
    der = found.certificates[CertificateKind.VLEK]
    r, s = (int.from_bytes(report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    key = x509.load_der_x509_certificate(der).public_key()
    key.verify(encode_dss_signature(r, s), report[:0x2A0], ec.ECDSA(hashes.SHA384()))
    # And by the line's VLEK chain, as a client fetches it, up to the line's root.
    chain = keys.answer(f"/vlek/v1/{PRODUCTS[product].line.name}/cert_chain", "", 0).body
    (tmp_path / "chain").write_bytes(chain)
    (tmp_path / "vlek").write_text(pem(der))
    (tmp_path / "ark").write_text(pem(product_root(product).certificate(RootName.ARK)))
    words = ["openssl", "verify", "-attime", MOMENT, "-CAfile", "ark", "-untrusted", "chain", "vlek"]
    assert subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout == "vlek: OK\n"


ALLOWED = Expectations(vlek_allowed=True, csp_id=PROVIDER, crl_demanded=True)


def judged(attested, expected=ALLOWED, lie=None, **changes):
    """By our own verifier, with the intermediates and the list that a key service gives out for VLEKs."""
    product, keys, found = attested
    line = PRODUCTS[product].line.name
    if lie is not None:
        keys = replace(keys, gate=Gate(failures=Failures(lie=lie)))
    asvk, ark = (
        one.public_bytes(Encoding.DER)
        for one in x509.load_pem_x509_certificates(keys.answer(f"/vlek/v1/{line}/cert_chain", "", 0).body)
    )
    crl = keys.answer(f"/vlek/v1/{line}/crl", "", 0).body
    evidence = Evidence(found.report, ark, asvk, found.certificates[CertificateKind.VLEK], (crl,))
    roots = root_of(product_root(product).certificate(RootName.ARK))
    return verify(replace(evidence, **changes), expected, int(MOMENT), roots)


def reason(*arguments, **changes):
    with pytest.raises(Rejected) as rejected:
        judged(*arguments, **changes)
    return rejected.value.reason


def test_our_verifier_believes_a_provider_s_key_where_one_is_allowed(attested):
    verdict = judged(attested)
    assert verdict.key.endorsement.csp_id == PROVIDER
    assert Reason.CHIP_ID_MASKED in verdict.left_out, "a provider's report names no chip"
    assert judged(attested, Expectations(vlek_allowed=True)).passed, "of any provider, unless one is named"


def test_what_is_wrong_with_a_provider_s_evidence_has_its_reason(attested):
    product, _, found = attested
    vcek, ask = found.certificates[CertificateKind.VCEK], product_root(product).certificate(RootName.ASK)
    assert reason(attested, Expectations()) is Reason.VLEK_REFUSED
    assert reason(attested, replace(ALLOWED, csp_id="CN=another.example")) is Reason.CSP_ID
    # A chip's certificate in its place, with its own intermediate and with the provider's; and the other way round.
    assert reason(attested, leaf=vcek, ask=ask) is Reason.SIGNING_KEY
    assert reason(attested, leaf=vcek) is Reason.LEAF_NAMES
    assert reason(attested, ask=ask) is Reason.LEAF_NAMES
    assert reason(attested, lie=Lie.REVOKED) is Reason.ASK_REVOKED
    assert reason(attested, lie=Lie.OTHER_ROOT) is Reason.ROOT_UNKNOWN
    listed = replace(ALLOWED, chip_ids=frozenset({b"\1" * 64}))
    assert reason(attested, listed) is Reason.CHIP_UNLISTED


@pytest.mark.parametrize("at", [0x38, 0x48, 0x180, 0x1A0, 0x1F0, 0x29F, 0x2A0])
def test_no_byte_of_a_provider_s_report_can_be_changed(attested, at):
    report = bytearray(attested[2].report)
    report[at] ^= 1
    with pytest.raises(Rejected):
        judged(attested, report=bytes(report))


def test_a_provider_s_key_for_another_tcb_proves_nothing(attested):
    product, keys, found = attested
    line = PRODUCTS[product].line
    tcb = int.from_bytes(found.report[0x180:0x188], "little")
    lower = tcb - 1 if product == "Milan" else tcb - (1 << 24)
    assert reason(attested, leaf=keys.answer(vlek_url(line, lower), "", 0).body) is Reason.REPORTED_TCB_MISMATCH


def test_the_command_judges_it_the_same(attested, tmp_path, capsys):
    product, keys, found = attested
    (tmp_path / "report.bin").write_bytes(found.report)
    (tmp_path / "vlek.der").write_bytes(found.certificates[CertificateKind.VLEK])
    line = PRODUCTS[product].line.name
    (tmp_path / "chain.pem").write_bytes(keys.answer(f"/vlek/v1/{line}/cert_chain", "", 0).body)
    words = ["verify", str(tmp_path / "report.bin"), "--certs", str(tmp_path), "--at", "2026-06-01"]
    for more, code in ((["--allow-vlek"], 0), (["--csp", PROVIDER], 0), ([], 1), (["--csp", "CN=another"], 1)):
        assert main([*words, *more]) == code
        said = capsys.readouterr().out.splitlines()[-1]
        assert said.startswith("rejected: " if code else "believed: ")


def test_a_hashstick_for_a_chip_that_was_not_made_is_not_given_out():
    with pytest.raises(KeyError):
        service("Milan").hashstick(bytes(64), 0)
