"""Key schedule, records and signatures against independent computations with ``cryptography``."""

import base64
import subprocess

import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from spdm_device import Stream

from tio.spdm.algorithms import Aead, BaseAsym, BaseHash, DheGroup
from tio.spdm.faults import MalformedMessage, RecordRejected
from tio.spdm.key_agreement import _prime, ephemeral
from tio.spdm.key_schedule import KeySchedule
from tio.spdm.secured_message import LAST_SEQUENCE_NUMBER, Direction, RecordFormat
from tio.spdm.signing import combined_prefix, sign, signed_message, verifies

SECRET, TRANSCRIPT = bytes(range(48)), bytes(range(100, 148))
SCHEDULE = KeySchedule(0x12, BaseHash.SHA_384.value)
AEAD = Aead.AES_256_GCM.value


def expanded(secret, length, label, context=b""):
    """HKDF-Expand as the library does it, over a label spelled out here."""
    info = length.to_bytes(2, "little") + b"spdm1.2 " + label + context
    return HKDFExpand(hashes.SHA384(), length, info).derive(secret)


def mac(key, data):
    running = hmac.HMAC(key, hashes.SHA384())
    running.update(data)
    return running.finalize()


def test_the_key_schedule_is_hkdf_over_the_standards_labels():
    handshake_secret = SCHEDULE.extract(SECRET)
    assert handshake_secret == mac(bytes(48), SECRET)
    pair = SCHEDULE.handshake(handshake_secret, TRANSCRIPT)
    assert pair.request == expanded(handshake_secret, 48, b"req hs data", TRANSCRIPT)
    assert pair.response == expanded(handshake_secret, 48, b"rsp hs data", TRANSCRIPT)
    master = SCHEDULE.master(handshake_secret)
    assert master == mac(expanded(handshake_secret, 48, b"derived"), bytes(48))
    data = SCHEDULE.application(master, TRANSCRIPT)
    assert data.request == expanded(master, 48, b"req app data", TRANSCRIPT)
    assert data.response == expanded(master, 48, b"rsp app data", TRANSCRIPT)
    assert SCHEDULE.export_master(master, TRANSCRIPT) == expanded(master, 48, b"exp master", TRANSCRIPT)
    assert SCHEDULE.finished_key(pair.request) == expanded(pair.request, 48, b"finished")
    traffic = SCHEDULE.traffic(data.request, AEAD)
    assert (traffic.key, traffic.iv) == (expanded(data.request, 32, b"key"), expanded(data.request, 12, b"iv"))
    assert SCHEDULE.updated(data.request) == expanded(data.request, 48, b"traffic upd")


@pytest.mark.parametrize("sequence_bytes", [0, 2])
def test_a_record_is_sealed_under_the_iv_with_the_number_over_its_first_bytes(sequence_bytes):
    direction = Direction(SCHEDULE, AEAD, RecordFormat(sequence_bytes), SECRET)
    direction.sequence = 0x0102
    record = direction.seal(0xFFFE0001, b"message", b"pad")
    traffic = SCHEDULE.traffic(SECRET, AEAD)
    nonce = bytes((traffic.iv[0] ^ 0x02, traffic.iv[1] ^ 0x01)) + traffic.iv[2:]
    head = bytes.fromhex("0100feff") + b"\x02\x01"[:sequence_bytes] + (2 + 7 + 3 + 16).to_bytes(2, "little")
    assert record == head + AESGCM(traffic.key).encrypt(nonce, b"\x07\0message" + b"pad", head)


@pytest.mark.parametrize("encrypted", [True, False])
@pytest.mark.parametrize("row", list(Aead))
def test_a_record_opens_once_whole_and_in_its_turn(row, encrypted):
    form = RecordFormat(2, encrypted)
    sender, receiver = (Direction(SCHEDULE, row.value, form, SECRET) for _ in range(2))
    first, second = sender.seal(7, b"one"), sender.seal(7, b"two")
    with pytest.raises(RecordRejected):
        receiver.open(second)
    for at in range(len(first)):
        with pytest.raises(RecordRejected):
            receiver.open(first[:at] + bytes((first[at] ^ 1,)) + first[at + 1 :])
    with pytest.raises(RecordRejected):
        receiver.open(first[:-1])
    with pytest.raises(RecordRejected):
        receiver.open(first + b"\0", excess=0)
    assert receiver.open(first + bytes(3), excess=3) == b"one"
    with pytest.raises(RecordRejected):
        receiver.open(first)
    assert receiver.open(second) == b"two"
    assert (b"two" in second) is not encrypted


def test_a_key_update_begins_to_count_anew_and_the_old_key_opens_nothing():
    direction = Direction(SCHEDULE, AEAD, RecordFormat(), SECRET)
    direction.seal(1, b"x")
    updated = direction.rekeyed
    assert updated.sequence == 0
    record = Direction(SCHEDULE, AEAD, RecordFormat(), SCHEDULE.updated(SECRET)).seal(1, b"y")
    assert updated.open(record) == b"y"
    with pytest.raises(RecordRejected):
        Direction(SCHEDULE, AEAD, RecordFormat(), SECRET).open(record)


def test_numbers_never_come_round():
    direction = Direction(SCHEDULE, AEAD, RecordFormat(), SECRET)
    direction.sequence = LAST_SEQUENCE_NUMBER
    direction.seal(1, b"the last")
    with pytest.raises(RecordRejected):
        direction.seal(1, b"one too many")


def test_what_is_signed_begins_with_the_version_four_times_and_ends_with_context_and_hash():
    prefix = combined_prefix(0x13, "responder-measurements signing")
    assert len(prefix) == 100
    assert prefix == b"dmtf-spdm-v1.3.*" * 4 + bytes(6) + b"responder-measurements signing"


@pytest.fixture(scope="module")
def rsa_key():
    return rsa.generate_private_key(65537, 2048)


@pytest.mark.parametrize("base_hash", list(BaseHash))
@pytest.mark.parametrize("asym", [BaseAsym.ECDSA_P256, BaseAsym.ECDSA_P384, BaseAsym.ECDSA_P521])
def test_curves_sign_as_the_library_verifies(asym, base_hash):
    key = ec.derive_private_key(12345, {256: ec.SECP256R1(), 384: ec.SECP384R1(), 521: ec.SECP521R1()}[
        asym.value.key_bits
    ])
    message = signed_message(0x12, "responder-challenge_auth signing", bytes(base_hash.value.size_bytes))
    signature = sign(key, message, asym, base_hash)
    half = asym.value.signature_bytes // 2
    r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
    key.public_key().verify(encode_dss_signature(r, s), message, ec.ECDSA(base_hash.value.primitive()))
    assert verifies(key.public_key(), signature, message, asym, base_hash)
    assert not verifies(key.public_key(), signature, message + b"x", asym, base_hash)
    assert sign(key, message, asym, base_hash) == signature


@pytest.mark.parametrize("base_hash", list(BaseHash))
@pytest.mark.parametrize("asym", [BaseAsym.RSASSA_2048, BaseAsym.RSAPSS_2048])
def test_rsa_signs_as_the_library_verifies(rsa_key, asym, base_hash):
    signature = sign(rsa_key, b"message", asym, base_hash)
    primitive = base_hash.value.primitive()
    scheme = padding.PKCS1v15()
    if asym is BaseAsym.RSAPSS_2048:
        scheme = padding.PSS(padding.MGF1(primitive), base_hash.value.size_bytes)
    rsa_key.public_key().verify(signature, b"message", scheme, primitive)
    assert verifies(rsa_key.public_key(), signature, b"message", asym, base_hash)
    assert sign(rsa_key, b"message", asym, base_hash) == signature
    other = BaseAsym.RSAPSS_2048 if asym is BaseAsym.RSASSA_2048 else BaseAsym.RSASSA_2048
    assert not verifies(rsa_key.public_key(), signature, b"message", other, base_hash)


@pytest.mark.parametrize(
    ("asym", "key"),
    [
        (BaseAsym.ED25519, ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))),
        (BaseAsym.ED448, ed448.Ed448PrivateKey.from_private_bytes(bytes(57))),
    ],
)
def test_edwards_curves_sign(asym, key):
    signature = sign(key, b"message", asym, BaseHash.SHA_384)
    key.public_key().verify(signature, b"message")
    assert verifies(key.public_key(), signature, b"message", asym, BaseHash.SHA_384)


def test_a_key_of_another_kind_neither_signs_nor_verifies(rsa_key):
    curve = ec.derive_private_key(5, ec.SECP256R1())
    for key, asym in ((rsa_key, BaseAsym.RSASSA_3072), (curve, BaseAsym.ECDSA_P384), (curve, BaseAsym.ED25519)):
        with pytest.raises(ValueError):
            sign(key, b"message", asym, BaseHash.SHA_256)
        assert not verifies(key.public_key(), bytes(asym.value.signature_bytes), b"message", asym, BaseHash.SHA_256)


@pytest.mark.parametrize("group", list(DheGroup))
def test_both_sides_agree_on_one_secret(group):
    ours, theirs = (ephemeral(group.value, Stream(side)) for side in ("ours", "theirs"))
    assert len(ours.public) == group.value.exchange_bytes
    assert ours.agree(theirs.public) == theirs.agree(ours.public)
    for bad in (bytes(len(ours.public)), b"\xff" * len(ours.public), bytes(len(ours.public) - 1) + b"\x01"):
        with pytest.raises(MalformedMessage):
            ours.agree(bad)


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_the_primes_are_the_standards(bits):
    """Openssl knows the groups of RFC 7919 by name."""
    lines = subprocess.run(
        ["openssl", "genpkey", "-genparam", "-algorithm", "DH", "-pkeyopt", f"group:ffdhe{bits}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    made = base64.b64decode("".join(line for line in lines.splitlines() if not line.startswith("-")))
    assert _prime(bits).to_bytes(bits // 8, "big") in made
