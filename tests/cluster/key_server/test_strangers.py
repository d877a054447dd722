"""Reports of emulated guests convince tools that others wrote for real ones, and whatever is changed does not.

``omne_attest`` judges report and certificates; ``secretvm`` fetches the certificates from our key server.
"""

import hashlib
from datetime import UTC, datetime

import pytest
import secretvm.verify.amd as secretvm
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from omne_attest import Fail, FailKind, Policy, verify
from open_door import opened

from cluster.attested_guest import HOST, Attestation, attest
from cluster.key_server.chip_register import ChipRegister
from cluster.key_server.failures import FOR_EVER_NS, NO_FAILURES, Failures, Lie
from cluster.key_server.gate import Gate
from cluster.key_server.key_service import KeyService
from cluster.key_server.rate_limit import RateLimit
from cluster.root_keys import product_root
from node.firmware_image import laboratory_image
from node.product import PRODUCTS
from psp.certificate_table import CertificateKind
from psp.product_root import RootName

# AMD's VCEKs have the serial number 0, to which the library that both stand on objects.
pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number")

LINES, VERSIONS = ("Milan", "Genoa"), (2, 3, 4, 5)
SEED = 3
DATA = bytes(range(64))
POLICY = Policy(report_data=DATA)


@pytest.fixture(scope="module")
def attested():
    """What guests of each line and report version showed."""
    image = laboratory_image()
    return {
        (line, version): attest(Attestation(line, DATA, image, SEED, version)) for line in LINES for version in VERSIONS
    }


def judged(found, *, report=None, vcek=None, policy=POLICY):
    """By omne_attest, under the root that came with it."""
    kinds = found.certificates
    ark = kinds[CertificateKind.ARK]
    verify(
        report or found.report, vcek or kinds[CertificateKind.VCEK], kinds[CertificateKind.ASK], ark,
        hashlib.sha256(ark).digest(), policy,
    )  # fmt: skip


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("line", LINES)
def test_omne_attest_accepts_a_report_of_each_version(attested, line, version):
    found = attested[line, version]
    assert found.report[0] == version
    judged(found, policy=Policy(report_data=DATA, measurement=bytes.fromhex(found.launch_digest)))


# Version, policy, measurement, chip id, the last byte that is signed, R, S.
@pytest.mark.parametrize("at", [4, 8, 0x90, 0x1A0, 0x29F, 0x2A0, 0x2E8])
def test_omne_attest_refuses_a_report_with_a_byte_changed(attested, at):
    with pytest.raises(Fail) as refused:
        judged(attested["Genoa", 5], report=flipped(attested["Genoa", 5].report, at))
    assert refused.value.kind is FailKind.REPORT_SIGNATURE


def test_omne_attest_refuses_another_line_s_certificate_and_other_data(attested):
    other = attested["Milan", 5].certificates[CertificateKind.VCEK]
    wrong = Policy(report_data=bytes(64)), Policy(measurement=bytes(48))
    for change in ({"vcek": other}, *({"policy": policy} for policy in wrong)):
        with pytest.raises(Fail):
            judged(attested["Genoa", 5], **change)


@pytest.mark.parametrize("at", [20, 700, 1000])
def test_omne_attest_refuses_a_certificate_with_a_byte_changed(attested, at):
    vcek = attested["Genoa", 5].certificates[CertificateKind.VCEK]
    with pytest.raises(Fail):
        judged(attested["Genoa", 5], vcek=flipped(vcek, at))


def server(failures=NO_FAILURES, limit=None):
    """The key server of the attested hosts."""
    register = ChipRegister([(HOST, PRODUCTS[line]) for line in LINES], SEED)
    issued = datetime(datetime.now(UTC).year, 1, 1, tzinfo=UTC)
    return opened(KeyService(register, product_root, issued, gate=Gate(limit, failures)).answer)


@pytest.fixture(scope="module")
def honest():
    """The port of one without failures."""
    with server() as port:
        yield port


@pytest.fixture
def client(monkeypatch, tmp_path):
    """secretvm's verifier for a report, asking the server at a port, and believing the laboratory's roots."""
    monkeypatch.setenv("SECRETVM_VERIFY_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(secretvm, "_PINNED_ARK_SPKI_SHA256", {line: _fingerprint(line) for line in LINES})

    def check(report, port):
        monkeypatch.setattr(secretvm, "_AMD_KDS_BASE", f"http://127.0.0.1:{port}")
        return secretvm.check_sev_cpu_attestation(report.hex(), strict=True, reload_amd_kds=True)

    return check


def _fingerprint(line):
    key = x509.load_der_x509_certificate(product_root(line).certificate(RootName.ARK)).public_key()
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("line", LINES)
def test_secretvm_accepts_a_report_of_each_version_with_what_it_fetches(attested, client, honest, line, version):
    result = client(attested[line, version].report, honest)
    assert (result.valid, result.errors) == (True, [])
    assert result.report["product"] == line


FAILED = {
    Lie.OTHER_CHIP: {"vcek_matches_report", "report_signature_valid"},
    Lie.OTHER_TCB: {"vcek_matches_report", "report_signature_valid"},
    Lie.OTHER_ROOT: {"cert_chain_valid"},
    Lie.EXPIRED: {"cert_chain_valid"},
    Lie.REVOKED: {"crl_check_passed"},
    Lie.GARBAGE: {"vcek_fetched"},
}


@pytest.mark.parametrize("lie", Lie)
def test_secretvm_finds_what_a_lying_server_lies_about(attested, client, lie):
    with server(Failures(lie=lie)) as port:
        result = client(attested["Genoa", 5].report, port)
    assert not result.valid
    assert {name for name, passed in result.checks.items() if not passed} == FAILED[lie]


def test_secretvm_gets_nothing_from_a_server_that_is_down_or_has_had_enough(attested, client):
    with server(Failures(down_until_ns=FOR_EVER_NS)) as port:
        down = client(attested["Genoa", 5].report, port)
    assert (down.valid, down.checks["vcek_fetched"]) == (False, False)
    # The VCEK is the first that it asks for; then its turn is over.
    with server(limit=RateLimit(0.01)) as port:
        late = client(attested["Genoa", 5].report, port)
    assert (late.valid, late.checks["vcek_fetched"], late.checks["cert_chain_valid"]) == (False, True, False)


@pytest.mark.parametrize("at", [0x50, 0x1A0, 0x180, 0x2A0])
def test_secretvm_refuses_a_report_with_a_byte_changed(attested, client, honest, at):
    assert not client(flipped(attested["Genoa", 5].report, at), honest).valid
