"""``sevfleet attest``: what lies in the folder proves the guest, and is the same each time."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cluster.cli import main
from node.laboratory_firmware import build_image

FILES = {"report.bin", "vcek.der", "ask.pem", "ark.pem", "crl.der"}
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "image.fd"
    path.write_bytes(build_image())
    return path


@pytest.fixture
def attest(image, tmp_path, capsys):
    """Attest into a folder; what lies there by name."""

    def run(name, *arguments):
        code = main(["attest", "--ovmf", str(image), "--out", str(tmp_path / name), *arguments])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        found = {one.name: one.read_bytes() for one in (tmp_path / name).iterdir()}
        assert found["report.bin"][0x90:0xC0].hex() == out.splitlines()[-1]
        return found

    return run


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize(("product", "version"), [("Milan", 3), ("Turin", 5)])
def test_the_files_prove_the_report_link_by_link(attest, product, version):
    found = attest("out", "--product", product, "--report-data", "c0ffee")
    assert found.keys() == FILES
    report = found["report.bin"]
    assert len(report) == 1184
    assert report[0] == version
    assert report[0x50:0x90] == bytes.fromhex("c0ffee").ljust(64, b"\0")
    vcek = x509.load_der_x509_certificate(found["vcek.der"])
    ask, ark = (x509.load_pem_x509_certificate(found[name]) for name in ("ask.pem", "ark.pem"))
    revoked = x509.load_der_x509_crl(found["crl.der"])
    for signed, signer in ((vcek, ask), (ask, ark), (ark, ark)):
        signer.public_key().verify(signed.signature, signed.tbs_certificate_bytes, PSS, hashes.SHA384())
    ark.public_key().verify(revoked.signature, revoked.tbs_certlist_bytes, PSS, hashes.SHA384())
    r, s = (int.from_bytes(report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    vcek.public_key().verify(encode_dss_signature(r, s), report[:0x2A0], ec.ECDSA(hashes.SHA384()))


def test_equal_options_give_equal_bytes_and_another_seed_another_chip(attest):
    options = ("--product", "Genoa", "--report-data", "")
    one, again = attest("a", *options, "--seed", "5"), attest("b", *options, "--seed", "5")
    assert one == again
    other = attest("c", *options, "--seed", "6")
    assert {name for name in FILES if other[name] == one[name]} == {"ask.pem", "ark.pem", "crl.der"}


def test_a_version_may_be_asked_for(attest):
    for version in (2, 4):
        found = attest(str(version), "--product", "Milan", "--report-data", "", "--report-version", str(version))
        assert found["report.bin"][:4] == version.to_bytes(4, "little")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--product", "Rome", "--report-data", "00"), "--product: expected one of Milan"),
        (("--product", "Milan", "--report-data", "0"), "--report-data: expected up to 128 hexadecimal digits"),
        (("--product", "Milan", "--report-data", "00" * 65), "--report-data: expected up to 128 hexadecimal digits"),
        (("--product", "Milan", "--report-data", "", "--report-version", "6"), "--report-version: expected a whole"),
        (("--product", "Milan", "--report-data", "", "--ovmf", "/nowhere"), "/nowhere: file: expected a readable"),
        (("--product", "Milan", "--report-data", "", "--out", "/dev/null/x"), "/dev/null/x: "),
    ],
)
def test_what_cannot_be_is_one_line(image, tmp_path, capsys, arguments, said):
    given = ["attest", "--ovmf", str(image), "--out", str(tmp_path / "out"), *arguments]
    assert main(given) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out" / "report.bin").exists()
