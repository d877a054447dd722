"""A provider's key reaches one chip, goes down to lower TCB versions there, and never up."""

import hashlib

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from psp.chip_identity import ChipIdentity
from psp.product_line import PRODUCT_LINES
from psp.vlek import Hashstick, WrongHashstickError, provider_hashstick, unwrapped

SECRET = b"secret that the key service keeps for a provider"
HIGHEST = (1 << 64) - 1
TCB = 0xD1_16_00000000_00_04
KEY = ChipIdentity(PRODUCT_LINES["Genoa"], lambda: bytes(32)).symmetric_key("sev-vlek-wrapping")


def scalar(stick):
    return stick.key().private_numbers().private_value


def test_a_hashstick_is_each_component_hashed_once_for_each_version_below_the_highest():
    first = hashlib.shake_256(SECRET).digest(384)
    parts = [first[at : at + 48] for at in range(0, 384, 48)]
    for at, version in enumerate(TCB.to_bytes(8, "little")):
        for _ in range(version, 255):
            parts[at] = hashlib.sha384(parts[at]).digest()
    assert provider_hashstick(SECRET, TCB) == Hashstick(b"".join(parts), TCB)


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), min_size=8, max_size=8))
@settings(max_examples=8, deadline=None)
def test_a_chip_goes_down_to_what_the_service_would_have_sent(versions):
    high, low = (int.from_bytes(bytes(choose(pair) for pair in versions), "little") for choose in (max, min))
    assert provider_hashstick(SECRET, high).lowered(low) == provider_hashstick(SECRET, low)


@pytest.mark.parametrize("component", range(8))
def test_a_chip_never_goes_up_in_any_component(component):
    stick = Hashstick(bytes(384), TCB)
    version = TCB >> 8 * component & 0xFF
    above = TCB + (1 << 8 * component) if version < 255 else TCB
    assert stick.lowered(TCB) == stick
    with pytest.raises(ValueError, match="expected none above"):
        stick.lowered(above)
    with pytest.raises(ValueError, match="expected none above"):
        stick.lowered(HIGHEST)


def test_each_provider_and_each_tcb_has_a_key_of_its_own():
    sticks = [provider_hashstick(secret, tcb) for secret in (SECRET, b"x") for tcb in (TCB, TCB - 1, TCB - (1 << 56))]
    assert len({scalar(stick) for stick in sticks}) == len(sticks)


def test_a_wrapped_hashstick_has_the_sheet_s_places():
    """IV at 0, hashstick at 10h, TCB at 190h, tag at 1A0h; AES-256-GCM."""
    sealed = provider_hashstick(SECRET, TCB).wrapped(KEY, b"i" * 12)
    assert (sealed[:12], sealed[0x0C:0x10], sealed[0x198:0x1A0]) == (b"i" * 12, bytes(4), bytes(8))
    assert sealed[0x190:0x198] == TCB.to_bytes(8, "little")
    found = AESGCM(KEY).decrypt(b"i" * 12, sealed[0x10:0x190] + sealed[0x1A0:0x1B0], sealed[0x190:0x198])
    assert found == provider_hashstick(SECRET, TCB).octets


def test_only_its_chip_unwraps_it():
    stick = provider_hashstick(SECRET, TCB)
    sealed = stick.wrapped(KEY, b"i" * 12)
    assert len(sealed) == 432
    assert stick.octets[:16] not in sealed
    assert unwrapped(sealed, KEY) == stick
    with pytest.raises(WrongHashstickError):
        unwrapped(sealed, bytes(32))
    assert stick.octets.hex() not in repr(stick)
    assert repr(stick.octets)[2:20] not in repr(stick)
