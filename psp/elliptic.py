"""P-384 as AMD's firmware stores it: little-endian numbers in fields of 72 bytes, keys made from handed-in bytes.

Sources: SEV API (55766), chapter "Certificates"; FIPS 186, B.4.1; RFC 6979 (a
signature is a function of key and message).
"""

from __future__ import annotations

from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

SEED_BYTES = 56
"""Extra random bits for a scalar below the order, so that none is likelier than another (FIPS 186, B.4.1)."""
PUBLIC_KEY_BYTES = 0x404
SIGNATURE_BYTES = 512
COORDINATE_BYTES = 48

FIELD = 2**384 - 2**128 - 2**96 + 2**32 - 1
"""The prime of P-384 (FIPS 186, D.2.4)."""
_CURVE = ec.SECP384R1()
_CURVE_ID = 2
_FIELD_BYTES = 72
_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey


@lru_cache(maxsize=64)
def private_key(seed: bytes) -> PrivateKey:
    """The key of 56 random bytes."""
    return made_key(seed)


def made_key(seed: bytes) -> PrivateKey:
    """The same, made anew: for who keeps it himself."""
    if len(seed) != SEED_BYTES:
        raise ValueError(f"seed: expected {SEED_BYTES} bytes, got {len(seed)}")
    return ec.derive_private_key(int.from_bytes(seed, "little") % (_ORDER - 1) + 1, _CURVE)


def pack_public_key(key: PublicKey) -> bytes:
    """The field of a certificate: curve, X, Y, zeros."""
    numbers = key.public_numbers()
    return pack_coordinates(numbers.x, numbers.y)


def pack_coordinates(x: int, y: int) -> bytes:
    """The field of any two coordinates, whether or not they are a point on the curve."""
    point = x.to_bytes(_FIELD_BYTES, "little") + y.to_bytes(_FIELD_BYTES, "little")
    return (_CURVE_ID.to_bytes(4, "little") + point).ljust(PUBLIC_KEY_BYTES, b"\0")


def coordinates(field: bytes) -> tuple[int, int]:
    """The two coordinates in a certificate's field. Raises ValueError for another curve or other bytes."""
    if int.from_bytes(field[:4], "little") != _CURVE_ID:
        raise ValueError("public key: expected curve P-384")
    end = 4 + 2 * _FIELD_BYTES
    if any(field[end:]):
        raise ValueError("public key: expected zeros behind the point")
    return (
        int.from_bytes(field[4 : 4 + _FIELD_BYTES], "little"),
        int.from_bytes(field[4 + _FIELD_BYTES : end], "little"),
    )


def parse_public_key(field: bytes) -> PublicKey:
    """The key in a certificate's field. Raises ValueError for another curve, a point off the curve, other bytes."""
    x, y = coordinates(field)
    if x >= FIELD or y >= FIELD:  # A library may take them for what they are modulo the prime.
        raise ValueError("public key: expected coordinates below the prime of P-384")
    try:
        return ec.EllipticCurvePublicNumbers(x, y, _CURVE).public_key()
    except ValueError:
        raise ValueError("public key: expected a point on P-384") from None


def sign(key: PrivateKey, message: bytes, algorithm: hashes.HashAlgorithm) -> bytes:
    """The signature field over a message: R, S, zeros."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(algorithm, deterministic_signing=True)))
    field = r.to_bytes(_FIELD_BYTES, "little") + s.to_bytes(_FIELD_BYTES, "little")
    return field.ljust(SIGNATURE_BYTES, b"\0")


def verifies(key: PublicKey, field: bytes, message: bytes, algorithm: hashes.HashAlgorithm) -> bool:
    """Whether a signature field is the key's over a message; bytes behind R and S must be zero."""
    if any(field[2 * _FIELD_BYTES :]):
        return False
    r, s = (int.from_bytes(field[at : at + _FIELD_BYTES], "little") for at in (0, _FIELD_BYTES))
    try:
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True


def shared_secret(ours: PrivateKey, theirs: PublicKey) -> bytes:
    """The x coordinate of the joint point, 48 bytes big-endian."""
    return ours.exchange(ec.ECDH(), theirs)
