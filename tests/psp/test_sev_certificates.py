"""Certificates in AMD's formats: a real Naples chain verifies, anything changed in it does not."""

import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.root_keys import product_root
from psp import amd_certificate, elliptic, sev_certificate
from psp.installed_firmware import FirmwareLevel, InstalledFirmware
from psp.platform_keys import PlatformKeys
from psp.product_line import PRODUCT_LINES
from psp.product_root import RootName, laboratory_root
from psp.rsa_signing import EXPONENT, rsa_key, sign_pss
from psp.sev_certificate import CertificateError, KeyUsage, SevCertificate
from psp.sev_chain import PlatformChain, check_chain

NAPLES = laboratory_root(PRODUCT_LINES["Naples"])
USAGES = {"pdh": KeyUsage.PDH, "pek": KeyUsage.PEK, "oca": KeyUsage.OCA, "cek": KeyUsage.CEK}
ORDER = ["ark", "ask", "cek", "oca", "pek", "pdh"]


@pytest.fixture
def naples(test_data):
    """The six files of a real platform."""
    return {name: (test_data / "vectors" / f"naples-{name}.cert").read_bytes() for name in ORDER}


def check(files):
    """What a guest owner does with the six files."""
    ark = amd_certificate.parse(files["ark"], KeyUsage.ARK)
    ask = amd_certificate.parse(files["ask"], KeyUsage.ASK)
    chain = PlatformChain.parse(files["pdh"], files["pek"] + files["oca"] + files["cek"])
    check_chain(chain, ark, ask)


def platform(seed=b"seed"):
    firmware = InstalledFirmware(FirmwareLevel((1, 55, 40)))
    keys = PlatformKeys(lambda purpose, length: hashlib.shake_128(seed + purpose.encode()).digest(length), firmware)
    keys.complete()
    return keys


def test_platforms_of_one_seed_share_no_key_between_product_lines():
    def random(purpose, length):
        return hashlib.shake_128(purpose.encode()).digest(length)

    seeds = []
    for line in PRODUCT_LINES.values():
        keys = PlatformKeys(random, InstalledFirmware(FirmwareLevel((1, 55, 40))), line)
        keys.complete()
        seeds += [keys.oca_seed, keys.pek_seed, keys.pdh_seed]
    assert len(set(seeds)) == len(seeds)


def laboratory_files():
    chain = platform().chain()
    return {
        "ark": NAPLES.amd_certificate(KeyUsage.ARK).pack(), "ask": NAPLES.amd_certificate(KeyUsage.ASK).pack(),
        "cek": NAPLES.certified_cek(chain.cek).pack(),
        "oca": chain.oca.pack(), "pek": chain.pek.pack(), "pdh": chain.pdh.pack(),
    }  # fmt: skip


def test_a_real_naples_platform_verifies_up_to_amds_root(naples):
    check(naples)
    ark = amd_certificate.parse(naples["ark"], KeyUsage.ARK)
    ask = amd_certificate.parse(naples["ask"], KeyUsage.ASK)
    assert ark.key_id.hex() == "1bb987c359494606b174945601c9ea5b"
    assert ask.key_id.hex() == "e139970cfc464377ae61b289e2f9e96e"
    assert (ark.bits, ark.exponent, len(naples["ark"])) == (2048, 65537, 832)


def test_real_certificates_are_parsed_and_packed_again_byte_for_byte(naples):
    for name, usage in USAGES.items():
        assert sev_certificate.parse(naples[name], usage).pack() == naples[name]
    for name, usage in (("ark", KeyUsage.ARK), ("ask", KeyUsage.ASK)):
        assert amd_certificate.parse(naples[name], usage).pack() == naples[name]


@given(name=st.sampled_from(ORDER), at=st.integers(0, 0x823), flips=st.integers(1, 255))
@settings(max_examples=62, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_byte_changed_in_a_real_chain_breaks_it(naples, name, at, flips):
    files = dict(naples)
    changed = bytearray(files[name])
    at %= len(changed)
    changed[at] ^= flips
    files[name] = bytes(changed)
    with pytest.raises(CertificateError):
        check(files)


EMPTY = {"algorithm": 0x620, "its first byte": 0x624, "its last byte": 0x823}


@pytest.mark.parametrize("at", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("name", ["pdh", "oca", "cek"])
def test_a_slot_that_is_not_used_holds_nothing(naples, name, at):
    changed = bytearray(naples[name])
    changed[at] ^= 0x80
    with pytest.raises(CertificateError, match=f"^{name.upper()} certificate: expected nothing in the empty second"):
        check({**naples, name: bytes(changed)})


def test_signatures_may_stand_in_either_slot_and_are_of_those_who_sign_such_certificates(naples):
    pdh = naples["pdh"]
    swapped = pdh[:0x414] + pdh[0x61C:] + pdh[0x414:0x61C]
    check({**naples, "pdh": swapped})
    for usage in (KeyUsage.ARK, KeyUsage.CEK, 0xFFFF_FFFF):
        stranger = pdh[:0x61C] + int(usage).to_bytes(4, "little") + pdh[0x620:]
        with pytest.raises(CertificateError, match=f"expected a second signature by PEK, got one by usage {usage:#x}$"):
            check({**naples, "pdh": stranger})
    twice = pdh[:0x61C] + pdh[0x414:0x61C]
    with pytest.raises(CertificateError, match="expected one signature by PEK, got 2"):
        check({**naples, "pdh": twice})


@given(data=st.binary(max_size=0x900))
@settings(max_examples=46, deadline=None)
def test_any_bytes_as_a_certificate_are_refused_by_that_error_alone(data):
    for usage in USAGES.values():
        with pytest.raises(CertificateError):
            sev_certificate.parse(data, usage)
    for usage in (KeyUsage.ARK, KeyUsage.ASK):
        with pytest.raises(CertificateError):
            amd_certificate.parse(data, usage)


def test_certificates_of_one_platform_do_not_stand_for_each_other(naples):
    for one in USAGES:
        for other in USAGES:
            if one != other:
                with pytest.raises(CertificateError, match="expected usage"):
                    check({**naples, one: naples[other]})
    with pytest.raises(CertificateError):
        check({**naples, "ark": naples["ask"]})
    for name in ORDER:
        for damaged in (naples[name][:-1], naples[name] + b"\0", b""):
            with pytest.raises(CertificateError):
                check({**naples, name: damaged})


def test_an_emulated_platform_verifies_up_to_the_laboratorys_root_and_not_to_amds(naples):
    ours = laboratory_files()
    check(ours)
    with pytest.raises(CertificateError, match="CEK certificate"):
        check({**ours, "ark": naples["ark"], "ask": naples["ask"]})
    with pytest.raises(CertificateError, match="CEK certificate"):
        check({**naples, "ark": ours["ark"], "ask": ours["ask"]})


def test_a_cek_as_the_platform_exports_it_lacks_amds_signature():
    files = laboratory_files()
    with pytest.raises(CertificateError, match="expected one signature by ASK, got 0"):
        check({**files, "cek": platform().chain().cek.pack()})


def test_each_link_is_needed():
    """Another platform's certificate in any place, valid by itself, breaks the chain."""
    files, other = laboratory_files(), platform(b"other").chain()
    others = {
        "cek": NAPLES.certified_cek(other.cek).pack(), "oca": other.oca.pack(), "pek": other.pek.pack(),
        "pdh": other.pdh.pack(),
    }  # fmt: skip
    for name, certificate in others.items():
        with pytest.raises(CertificateError):
            check({**files, name: certificate})
    check({**files, **others})


BAD_POINTS = {
    "other curve": lambda field: (1).to_bytes(4, "little") + field[4:],
    "no point": lambda field: field[:4] + bytes(0x400),
    "off the curve": lambda field: field[:4] + bytes([field[4] ^ 1]) + field[5:],
    "coordinates swapped": lambda field: field[:4] + field[76:148] + field[4:76] + field[148:],
    "wide coordinate": lambda field: field[:75] + b"\x01" + field[76:],
    "bytes behind": lambda field: field[:-1] + b"\x01",
}


@pytest.mark.parametrize("kind", BAD_POINTS)
def test_a_key_that_is_no_point_of_p384_is_refused(kind):
    field = elliptic.pack_public_key(platform().pdh_key.public_key())
    bad = BAD_POINTS[kind](field)
    assert len(bad) == len(field)
    with pytest.raises(ValueError, match="public key: expected"):
        elliptic.parse_public_key(bad)


@pytest.mark.parametrize("bits", [512, 1024, 2048])
def test_rsa_signatures_verify_with_another_implementation_and_repeat(bits):
    key = rsa_key(b"test", bits)
    assert key.modulus.bit_length() == bits
    if bits < 1024:
        return  # too small for a salt of 32 bytes in every library
    public = rsa.RSAPublicNumbers(EXPONENT, key.modulus).public_key()
    for message in (b"", b"message"):
        signature = sign_pss(key, message, "sha256")
        assert signature == sign_pss(key, message, "sha256")
        public.verify(signature, message, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())


def test_ecdsa_signatures_repeat_and_verify():
    key = elliptic.private_key(bytes(range(56)))
    field = elliptic.sign(key, b"message", hashes.SHA256())
    assert field == elliptic.sign(key, b"message", hashes.SHA256())
    assert len(field) == 512
    assert elliptic.verifies(key.public_key(), field, b"message", hashes.SHA256())
    assert not elliptic.verifies(key.public_key(), field, b"massage", hashes.SHA256())
    assert not elliptic.verifies(key.public_key(), field[:-1] + b"\x01", b"message", hashes.SHA256())
    assert not elliptic.verifies(key.public_key(), bytes(512), b"message", hashes.SHA256())


def test_certificates_have_their_size():
    assert SevCertificate.SIZE == len(SevCertificate().pack()) == 0x824


@pytest.mark.parametrize("line", ["Rome", "Turin"])
def test_a_line_of_4096_bits_signs_with_sha384_and_with_the_key_of_its_x509_certificates(line):
    root = product_root(line)
    chain = platform().chain()
    ark, ask = (root.amd_certificate(usage) for usage in (KeyUsage.ARK, KeyUsage.ASK))
    check_chain(PlatformChain(chain.pdh, chain.pek, chain.oca, root.certified_cek(chain.cek)), ark, ask)
    assert len(ask.pack()) == len(ark.pack()) == 1600
    if line == "Rome":
        return  # which has no SEV-SNP
    for usage, name in ((ark, RootName.ARK), (ask, RootName.ASK)):
        assert x509.load_der_x509_certificate(root.certificate(name)).public_key().public_numbers().n == usage.modulus
