"""Ephemeral keys of a session: curves, and the prime fields of RFC 7919 (DSP0274, 10.14)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from tio.spdm.algorithms import CURVES, DheAlgorithm
from tio.spdm.faults import MalformedMessage

Random = Callable[[int], bytes]
"""A source of randomness that is handed in: this many bytes."""

_EXTRA_BYTES = 8
"""Beyond the order's size, so that no scalar is likelier than another (FIPS 186-5, A.2.1)."""
_ORDERS = {
    256: 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    384: 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
    521: int("1FF" + "F" * 63 + "A51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409", 16),
}
_FFDHE_OFFSETS = {2048: 560316, 3072: 2625351, 4096: 5736041}
"""RFC 7919, appendix A: what is added to the digits of e so that a safe prime comes out."""
_FFDHE_SECRET_BYTES = {2048: 32, 3072: 40, 4096: 48}
"""Short exponents (RFC 7919, 5.2), rounded up."""


class Ephemeral(Protocol):
    """One side's key of one session."""

    public: bytes

    def agree(self, peer: bytes) -> bytes: ...


def ephemeral(group: DheAlgorithm, random: Random) -> Ephemeral:
    """A fresh key."""
    return _CurveKey(group, random) if group.elliptic else _FieldKey(group, random)


class _CurveKey:
    """ECDH; a point is X and Y, big-endian, and the secret is X."""

    def __init__(self, group: DheAlgorithm, random: Random) -> None:
        self._curve = CURVES[group.field_bits]
        self._half = group.exchange_bytes // 2
        order = _ORDERS[group.field_bits]
        scalar = int.from_bytes(random((order.bit_length() + 7) // 8 + _EXTRA_BYTES), "big") % (order - 1) + 1
        self._key = ec.derive_private_key(scalar, self._curve)
        point = self._key.public_key().public_numbers()
        self.public = point.x.to_bytes(self._half, "big") + point.y.to_bytes(self._half, "big")

    def agree(self, peer: bytes) -> bytes:
        """The shared secret. Raises MalformedMessage for what is no point of the curve."""
        try:
            key = ec.EllipticCurvePublicKey.from_encoded_point(self._curve, b"\x04" + peer)
            return self._key.exchange(ec.ECDH(), key)
        except ValueError:
            raise MalformedMessage("ExchangeData", "a point on the curve", "none") from None


class _FieldKey:
    """Diffie-Hellman in a prime field; all numbers big-endian, as long as the prime.

    Computed here: the library is about to drop it. The prime is a safe one, so that
    1 and p - 1 are all the numbers of small order.
    """

    def __init__(self, group: DheAlgorithm, random: Random) -> None:
        self._prime = _prime(group.field_bits)
        self._size = group.exchange_bytes
        self._secret = int.from_bytes(random(_FFDHE_SECRET_BYTES[group.field_bits]), "big") | 1 << 224
        self.public = pow(2, self._secret, self._prime).to_bytes(self._size, "big")

    def agree(self, peer: bytes) -> bytes:
        """The shared secret. Raises MalformedMessage for 0, 1, p - 1 and what is outside the field."""
        number = int.from_bytes(peer, "big")
        if not 1 < number < self._prime - 1:
            raise MalformedMessage("ExchangeData", "a number inside the field", "none")
        return pow(number, self._secret, self._prime).to_bytes(self._size, "big")


@lru_cache(maxsize=3)
def _prime(bits: int) -> int:
    """The prime that RFC 7919 builds from the digits of e."""
    return (1 << bits) - (1 << (bits - 64)) + ((_e_digits(bits - 130) + _FFDHE_OFFSETS[bits]) << 64) - 1


def _e_digits(bits: int) -> int:
    """The integer part of e * 2^bits."""
    guard = 64
    term = total = 1 << (bits + guard)
    n = 0
    while term:
        n += 1
        term //= n
        total += term
    return total >> guard
