"""What is sealed for a key is opened by that key, and by no other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.secret_channel import OVERHEAD_BYTES, ChannelError, ChannelKey, seal_for

KEY, OTHER, EPHEMERAL = ChannelKey(b"\1" * 32), ChannelKey(b"\2" * 32), b"\3" * 32


def test_the_holder_of_the_key_reads_it():
    box = seal_for(KEY.public, b"disk key", EPHEMERAL)
    assert KEY.open(box) == b"disk key"
    assert len(box) == len(b"disk key") + OVERHEAD_BYTES
    assert b"disk key" not in box
    with pytest.raises(ChannelError):
        OTHER.open(box)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 600))
def test_a_changed_box_opens_nothing(secret, bit):
    box = bytearray(seal_for(KEY.public, secret, EPHEMERAL))
    bit %= 8 * len(box)
    box[bit // 8] ^= 1 << bit % 8
    if bit == 255:
        return  # the top bit of a point means nothing (RFC 7748, section 5)
    with pytest.raises(ChannelError):
        KEY.open(bytes(box))


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=100))
def test_noise_opens_nothing(noise):
    with pytest.raises(ChannelError):
        KEY.open(noise)


@pytest.mark.parametrize("public", [b"", b"\1" * 31, bytes(32), (1).to_bytes(32, "little")])
def test_nothing_is_sealed_for_what_is_no_key(public):
    with pytest.raises(ChannelError):
        seal_for(public, b"secret", EPHEMERAL)
