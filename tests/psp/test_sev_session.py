"""Sessions, measurements and secret packets: known answers of virtee/sev, and what a changed byte does."""

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from psp import sev_session
from psp.key_derivation import derive
from psp.launch_digest import launch_measure
from psp.secret_packet import PacketHeader, pack_secret, secret_mac
from psp.sev_session import Session, SessionError, TransportKeys

ZERO = bytes(16)
ZERO_KEYS = TransportKeys(ZERO, ZERO)


def test_a_session_of_zeros_has_the_published_keys_and_macs():
    keys = sev_session.wrapping_keys(ZERO, ZERO)
    assert keys.master.hex() == "ab4d269fcc62bedb4511d56c386ce706"
    assert keys.kek.hex() == "b6abfbfb75ea1ea74ed8750b8afdb973"
    assert keys.kik.hex() == "53b524bf5669a363f365c864acba8572"
    session = sev_session.seal(ZERO, 0, ZERO_KEYS, ZERO, ZERO)
    assert session.wrapped_keys.hex() == "2137bc7f9bb8bd7c3e55a576a15d3454b3856b8ba27afadf46dcfee9f02c02c4"
    assert session.wrap_mac.hex() == "3176c0752738bd9d5e86689534020f528c088f16238826b000b327dee6aeed7d"
    assert session.policy_mac.hex() == "aa7855e13839dd767cd5da7c1ff5036540c9264b7a803029315e55375287b4af"


def test_the_published_measurement_comes_out():
    tik = bytes.fromhex("66320db73158a35a255d051758e95ed4")
    nonce = bytes.fromhex("4fbe0bedbad6c86ae8f68971d103e554")
    measure = launch_measure(tik, (0, 0x12, 0x0F), 0, hashlib.sha256(b"").digest(), nonce)
    assert measure.hex() == "6faab2daae389bcd3405a05d6cafe33c0414f7bedd0bae19ba5f38b7fd1664ea"


def test_longer_keys_are_blocks_that_differ_in_their_counter():
    """Known answers have one block; the second is laid here by hand: u32 counter, label, zero, context, u32 bits."""
    blocks = [
        hmac.digest(b"key", counter + b"sev-chip-endorsement-key\0ctx" + b"\xc0\x01\0\0", "sha256")
        for counter in (b"\x01\0\0\0", b"\x02\0\0\0")
    ]
    assert derive(b"key", "sev-chip-endorsement-key", b"ctx", 56) == b"".join(blocks)[:56]


@given(
    z=st.binary(min_size=48, max_size=48), policy=st.integers(0, 2**32 - 1), tek=st.binary(min_size=16, max_size=16),
    tik=st.binary(min_size=16, max_size=16), nonce=st.binary(min_size=16, max_size=16),
    iv=st.binary(min_size=16, max_size=16), at=st.integers(0, 0x7F), flips=st.integers(1, 255),
)  # fmt: skip
def test_a_session_opens_with_its_secret_and_policy_and_with_no_changed_byte(
    z, policy, tek, tik, nonce, iv, at, flips
):
    keys = TransportKeys(tek, tik)
    sealed = sev_session.seal(z, policy, keys, nonce, iv)
    assert sev_session.open_session(z, policy, Session.parse(sealed.pack())) == keys
    changed = bytearray(sealed.pack())
    changed[at] ^= flips
    for block, used_policy, secret in [
        (bytes(changed), policy, z),
        (sealed.pack(), policy ^ 1, z),
        (sealed.pack(), policy, bytes([z[0] ^ flips]) + z[1:]),
    ]:
        with pytest.raises(SessionError):
            sev_session.open_session(secret, used_policy, Session.parse(block))


def test_keys_do_not_show_in_a_representation():
    assert "TransportKeys()" in repr(ZERO_KEYS)
    assert "WrappingKeys()" in repr(sev_session.wrapping_keys(ZERO, ZERO))


@given(secret=st.binary(min_size=1, max_size=64), measure=st.binary(min_size=32, max_size=32))
def test_a_secret_is_encrypted_and_bound_as_the_specification_lays_it_out(secret, measure):
    secret = secret.ljust(-(-len(secret) // 16) * 16, b"\0")
    keys, iv = TransportKeys(b"e" * 16, b"i" * 16), b"v" * 16
    header, ciphertext = pack_secret(keys, secret, measure, iv, (0, 17))
    decryptor = Cipher(algorithms.AES(keys.tek), modes.CTR(iv)).decryptor()
    assert decryptor.update(ciphertext) == secret
    length = len(secret).to_bytes(4, "little")
    message = b"\x01" + bytes(4) + iv + length + length + ciphertext
    assert header.mac == hmac.new(keys.tik, message + measure, "sha256").digest()
    assert header.pack() == bytes(4) + iv + header.mac
    # Before API 0.17 the packet was not bound to the measurement.
    assert secret_mac(keys.tik, header, len(secret), ciphertext, measure, (0, 16)) == hmac.digest(
        keys.tik, message, "sha256"
    )


@pytest.mark.parametrize("secret", [b"", bytes(15), bytes(16 * 1024 + 16)])
def test_a_secret_is_whole_blocks_within_bounds(secret):
    with pytest.raises(ValueError, match="whole blocks"):
        pack_secret(ZERO_KEYS, secret, bytes(32), ZERO, (1, 55))


def test_the_header_has_its_size():
    assert PacketHeader.SIZE == len(PacketHeader().pack()) == 0x34
