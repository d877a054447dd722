"""What stands in our certificates is what stands in AMD's, byte for byte where AMD's are public."""

import subprocess
import warnings
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from cluster.root_keys import product_root
from psp import der, x509_profile
from psp.chip_identity import ChipIdentity
from psp.product_line import PRODUCT_LINES
from psp.product_root import ProductRoot, RootName
from psp.tcb_version import TcbComponent, TcbLayout
from psp.x509_profile import Authority

MILAN, TURIN = PRODUCT_LINES["Milan"], PRODUCT_LINES["Turin"]
SNP_LINES = ("Milan", "Genoa", "Turin")
FUSES = bytes(range(32))
OIDS = {
    TcbComponent.BOOT_LOADER: "1",
    TcbComponent.TEE: "2",
    TcbComponent.SNP: "3",
    TcbComponent.MICROCODE: "8",
}
# Within the validity of all, whatever day it is.
MOMENT = str(int(datetime(2026, 6, 1, tzinfo=UTC).timestamp()))


@pytest.fixture(scope="module")
def amd(test_data):
    """AMD's ASK and ARK of Milan, and two real VCEKs."""
    folder = test_data / "vectors"
    ask, ark = x509.load_pem_x509_certificates((folder / "milan-ask-ark.pem").read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a serial number of 0 is not what RFC 5280 wants
        vceks = [
            x509.load_der_x509_certificate((folder / f"milan-v2-vcek-{one}.der").read_bytes()) for one in "ab"
        ]
    return {"ask": ask, "ark": ark, "a": vceks[0], "b": vceks[1]}


def raw(certificate, suffix):
    return certificate.extensions.get_extension_for_oid(
        x509.ObjectIdentifier(f"1.3.6.1.4.1.3704.1.{suffix}")
    ).value.value


def authority(certificate, name):
    numbers = certificate.public_key().public_numbers()
    return Authority(name, numbers.n, numbers.e)


def whole(certificate):
    return certificate.public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_vcek_is_a_real_one_byte_for_byte(amd, name):
    real = amd[name]
    versions = {component: raw(real, f"3.{number}")[-1] for component, number in OIDS.items()}
    ours = x509_profile.vcek(
        real.public_key(), MILAN, raw(real, "4"), TcbLayout.MILAN.pack(versions), "SEV-Milan",
        real.not_valid_before_utc,
    )  # fmt: skip
    assert ours == real.tbs_certificate_bytes
    assert x509_profile.signed(ours, real.signature) == whole(real)


def test_root_and_intermediate_are_real_ones_byte_for_byte(amd):
    url = "https://kdsintf.amd.com/vcek/v1/Milan/crl"
    ark, ask = authority(amd["ark"], "ARK-Milan"), authority(amd["ask"], "SEV-Milan")
    ours = x509_profile.root(ark, 65536, url, amd["ark"].not_valid_before_utc)
    assert x509_profile.signed(ours, amd["ark"].signature) == whole(amd["ark"])
    ours = x509_profile.intermediate(ask, ark, 65537, url, amd["ask"].not_valid_before_utc)
    assert x509_profile.signed(ours, amd["ask"].signature) == whole(amd["ask"])


@pytest.mark.parametrize("line", SNP_LINES)
def test_names_keys_and_serial_numbers_of_a_line(line):
    root = product_root(line)
    certificates = {name: x509.load_der_x509_certificate(root.certificate(name)) for name in RootName}
    first = {"Milan": 65536, "Genoa": 131072, "Turin": 196608}[line]
    for at, (name, common) in enumerate(
        [(RootName.ARK, f"ARK-{line}"), (RootName.ASK, f"SEV-{line}"), (RootName.ASVK, f"SEV-VLEK-{line}")]
    ):
        one = certificates[name]
        assert one.serial_number == first + at
        assert one.subject.rfc4514_string() == (
            f"CN={common},O=Advanced Micro Devices,ST=CA,L=Santa Clara,C=US,OU=Engineering"
        )
        assert one.issuer == certificates[RootName.ARK].subject
        assert one.public_key().key_size == 4096
        assert one.not_valid_after_utc.year - one.not_valid_before_utc.year == 25


def test_the_vcek_of_a_turin_has_its_own_components_and_eight_bytes():
    tcb = TcbLayout.TURIN.pack({TcbComponent.FMC: 1, TcbComponent.SNP: 4, TcbComponent.MICROCODE: 0xCE})
    chip = ChipIdentity(TURIN, lambda: FUSES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = x509.load_der_x509_certificate(
            product_root("Turin").vcek(chip.vcek_key(tcb).public_key(), chip.chip_id, tcb)
        )
        assert made.serial_number == 0
    found = {one.oid.dotted_string.removeprefix("1.3.6.1.4.1.3704.1."): one.value.value for one in made.extensions}
    assert found == {
        "1": bytes.fromhex("020101"), "2": b"\x16\x05Turin", "3.9": bytes.fromhex("020101"),
        "3.1": bytes.fromhex("020100"), "3.2": bytes.fromhex("020100"), "3.3": bytes.fromhex("020104"),
        "3.5": bytes.fromhex("020100"), "3.6": bytes.fromhex("020100"), "3.7": bytes.fromhex("020100"),
        "3.8": bytes.fromhex("020200CE"), "4": chip.chip_id,
    }  # fmt: skip
    assert len(chip.chip_id) == 8
    assert not any(one.critical for one in made.extensions)
    assert made.public_key() == chip.vcek_key(tcb).public_key()


def elements(data, depth=0):
    """Every value of a certificate: depth, tag, and its bytes unless it holds others; lengths are left out."""
    at, found = 0, []
    while at < len(data):
        tag, size, at = data[at], data[at + 1], at + 2
        if size & 0x80:
            size, at = int.from_bytes(data[at : at + (size & 0x7F)], "big"), at + (size & 0x7F)
        body, at = data[at : at + size], at + size
        found += [(depth, tag, b""), *elements(body, depth + 1)] if tag & 0x20 else [(depth, tag, body)]
    return found


def parted(certificate):
    """A certificate's elements before, in and behind its extensions; those as (suffix of the OID, value)."""
    every = elements(whole(certificate))
    start = [one[:2] for one in every].index((2, 0xA3))
    end = next(at for at in range(start + 1, len(every)) if every[at][0] < 2)
    amd = bytes.fromhex("2b060104019c78")
    leaves = [body for _, tag, body in every[start:end] if tag in {0x06, 0x04}]
    pairs = zip(leaves[::2], leaves[1::2], strict=True)
    return every[:start], [(oid.removeprefix(amd), value) for oid, value in pairs], every[end:]


def test_a_turin_s_certificate_is_a_real_milan_s_element_by_element_but_for_what_the_profile_names(amd):
    tcb = TcbLayout.TURIN.pack({TcbComponent.FMC: 1, TcbComponent.SNP: 4, TcbComponent.MICROCODE: 0x52})
    chip = ChipIdentity(TURIN, lambda: FUSES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = x509.load_der_x509_certificate(
            product_root("Turin").vcek(chip.vcek_key(tcb).public_key(), chip.chip_id, tcb)
        )
    (first, ours, last), (real_first, real, real_last) = parted(made), parted(amd["a"])
    own = {0x17, 0x03}  # Times, and what is of a key.
    for mine, theirs in ((first, real_first), (last, real_last)):
        assert [one[:2] for one in mine] == [one[:2] for one in theirs]
        different = [(a[2], b[2]) for a, b in zip(mine, theirs, strict=True) if a != b and a[1] not in own]
        assert different == ([(b"SEV-Turin", b"SEV-Milan")] if mine is first else [])
    # A number for each byte of a TCB version, in the order of the bytes, between the same two at each end.
    assert [suffix.hex() for suffix, _ in real] == [
        "0101", "0102", "010301", "010302", "010304", "010305", "010306", "010307", "010303", "010308", "0104",
    ]  # fmt: skip
    assert [(suffix.hex(), value.hex()) for suffix, value in ours] == [
        ("0101", "020101"), ("0102", "1605" + b"Turin".hex()), ("010309", "020101"), ("010301", "020100"),
        ("010302", "020100"), ("010303", "020104"), ("010305", "020100"), ("010306", "020100"), ("010307", "020100"),
        ("010308", "020152"), ("0104", chip.chip_id.hex()),
    ]  # fmt: skip


def test_a_vlek_names_a_provider_and_no_chip():
    key = ChipIdentity(MILAN, lambda: FUSES).vcek_key(0).public_key()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = x509.load_der_x509_certificate(product_root("Milan").vlek(key, "CN=cc-us-east-2.amazonaws.com", 3))
    found = {one.oid.dotted_string.removeprefix("1.3.6.1.4.1.3704.1."): one.value.value for one in made.extensions}
    assert found["2"] == b"\x16\x05Milan"
    assert found["5"] == b"\x16\x1dCN=cc-us-east-2.amazonaws.com"
    assert "4" not in found
    assert made.issuer.rfc4514_string().startswith("CN=SEV-VLEK-Milan,")
    assert made.not_valid_after_utc.year - made.not_valid_before_utc.year == 1


def openssl(*words):
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def pem(folder, name, data, kind="CERTIFICATE"):
    path = folder / name
    path.write_text(x509_profile.pem(data, kind))
    return str(path)


@pytest.fixture(scope="module", params=SNP_LINES)
def files(request, tmp_path_factory):
    """A chip's certificates, its line's, and lists that revoke nothing and the ASK."""
    folder, root = tmp_path_factory.mktemp(request.param), product_root(request.param)
    chip = ChipIdentity(root.line, lambda: FUSES)
    key = chip.vcek_key(0).public_key()
    return {
        **{name.lower(): pem(folder, name, root.certificate(name)) for name in RootName},
        "vcek": pem(folder, "vcek", root.vcek(key, chip.chip_id, 0)),
        "vlek": pem(folder, "vlek", root.vlek(key, "CN=cloud.example", 0)),
        "empty": pem(folder, "empty", root.revocation_list(), "X509 CRL"),
        "ask gone": pem(folder, "gone", root.revocation_list([root.line.first_serial + 1]), "X509 CRL"),
    }


def verify(files, leaf, *untrusted, crl=None):
    words = ["verify", "-attime", MOMENT, "-x509_strict", "-CAfile", files["ark"]]
    for one in untrusted:
        words += ["-untrusted", files[one]]
    return openssl(*words, *(["-crl_check", "-CRLfile", files[crl]] if crl else []), files[leaf])


def test_openssl_accepts_both_chains_of_each_line(files):
    assert verify(files, "ask")[0]
    # -x509_strict wants key ids in every certificate, which AMD's VCEKs and VLEKs have not.
    for leaf, issuer in (("vcek", "ask"), ("vlek", "asvk")):
        loose = ["verify", "-attime", MOMENT, "-CAfile", files["ark"], "-untrusted", files[issuer], files[leaf]]
        assert openssl(*loose) == (True, f"{files[leaf]}: OK\n")


def test_openssl_refuses_a_leaf_under_the_other_intermediate(files):
    for leaf, issuer in (("vcek", "asvk"), ("vlek", "ask")):
        words = ["verify", "-attime", MOMENT, "-CAfile", files["ark"], "-untrusted", files[issuer], files[leaf]]
        assert not openssl(*words)[0]


def test_openssl_takes_the_revocation_list_and_finds_who_is_on_it(files):
    assert openssl("crl", "-in", files["empty"], "-noout", "-CAfile", files["ark"])[0]
    assert verify(files, "ask", crl="empty")[0]
    good, said = verify(files, "ask", crl="ask gone")
    assert not good
    assert "certificate revoked" in said
    assert verify(files, "asvk", crl="ask gone")[0]


def test_another_laboratory_has_another_root_of_the_same_names():
    # Keys of so few bits are found in no time.
    small = replace(PRODUCT_LINES["Naples"], root_bits=512)
    here, there = (ProductRoot(small, seed) for seed in (b"0", b"1"))
    assert here.key(RootName.ARK).modulus != there.key(RootName.ARK).modulus
    assert len({here.key(name).modulus for name in RootName}) == 3
    with pytest.raises(ValueError, match="Naples has no SEV-SNP"):
        here.certificate(RootName.ARK)


@given(st.integers(0, 1 << 80))
def test_numbers_are_encoded_as_another_implementation_does(number):
    encoded = der.integer(number)
    assert encoded[0] == 2
    assert encoded[1] == len(encoded) - 2
    assert int.from_bytes(encoded[2:], "big", signed=True) == number
    assert len(encoded) == 3 or int.from_bytes(encoded[2:4], "big") >> 7 != 0


def test_times_from_2050_on_have_four_digits_of_the_year():
    assert der.time(datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)) == b"\x17\x0d491231235959Z"
    assert der.time(datetime(2050, 1, 1, tzinfo=UTC)) == b"\x18\x0f20500101000000Z"


def test_what_no_certificate_can_say_is_refused():
    with pytest.raises(ValueError, match="no negative"):
        der.integer(-1)
    with pytest.raises(ValueError, match="Rome has no SEV-SNP"):
        product_root("Rome").vcek(ChipIdentity(MILAN, lambda: FUSES).vcek_key(0).public_key(), bytes(64), 0)
