"""The algorithms that can be negotiated, as tables: bit, sizes, and what computes them (DSP0274, 10.5).

Of the sheet of the standard all are here that ``cryptography`` computes; SM2, and
with it SM3 and SM4, is not.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

IV_BYTES = 12
TAG_BYTES = 16


@dataclass(frozen=True, slots=True)
class HashAlgorithm:
    """A row of BaseHashAlgo; measurement hashes are the same ones under another bit."""

    name: str
    bit: int
    measurement_bit: int
    size_bytes: int
    digest_name: str
    """As ``hashlib`` calls it."""
    primitive: Callable[[], hashes.HashAlgorithm]

    def new(self, data: bytes = b"") -> hashlib._Hash:
        """A running hash."""
        return hashlib.new(self.digest_name, data)

    def digest(self, data: bytes) -> bytes:
        """The hash of ``data``."""
        return hashlib.new(self.digest_name, data).digest()

    def hmac(self, key: bytes, data: bytes) -> bytes:
        """HMAC with this hash."""
        return hmac.digest(key, data, self.digest_name)


class BaseHash(Enum):
    """BaseHashAlgo, weakest first."""

    SHA_256 = HashAlgorithm("SHA-256", 0x01, 0x02, 32, "sha256", hashes.SHA256)
    SHA3_256 = HashAlgorithm("SHA3-256", 0x08, 0x10, 32, "sha3_256", hashes.SHA3_256)
    SHA_384 = HashAlgorithm("SHA-384", 0x02, 0x04, 48, "sha384", hashes.SHA384)
    SHA3_384 = HashAlgorithm("SHA3-384", 0x10, 0x20, 48, "sha3_384", hashes.SHA3_384)
    SHA_512 = HashAlgorithm("SHA-512", 0x04, 0x08, 64, "sha512", hashes.SHA512)
    SHA3_512 = HashAlgorithm("SHA3-512", 0x20, 0x40, 64, "sha3_512", hashes.SHA3_512)


RAW_MEASUREMENTS_BIT = 0x01
"""MeasurementHashAlgo of a responder that has raw bit streams only."""


class Scheme(Enum):
    """How a signature is made."""

    RSASSA = "RSASSA"
    RSAPSS = "RSAPSS"
    ECDSA = "ECDSA"
    EDDSA = "EdDSA"


@dataclass(frozen=True, slots=True)
class AsymAlgorithm:
    """A row of BaseAsymAlgo. ``key_bits`` is RSA's modulus or the curve's size."""

    name: str
    bit: int
    scheme: Scheme
    key_bits: int
    signature_bytes: int


class BaseAsym(Enum):
    """BaseAsymAlgo, in the order in which a responder prefers the later."""

    RSASSA_2048 = AsymAlgorithm("RSASSA-2048", 0x001, Scheme.RSASSA, 2048, 256)
    RSAPSS_2048 = AsymAlgorithm("RSAPSS-2048", 0x002, Scheme.RSAPSS, 2048, 256)
    RSASSA_3072 = AsymAlgorithm("RSASSA-3072", 0x004, Scheme.RSASSA, 3072, 384)
    RSAPSS_3072 = AsymAlgorithm("RSAPSS-3072", 0x008, Scheme.RSAPSS, 3072, 384)
    RSASSA_4096 = AsymAlgorithm("RSASSA-4096", 0x020, Scheme.RSASSA, 4096, 512)
    RSAPSS_4096 = AsymAlgorithm("RSAPSS-4096", 0x040, Scheme.RSAPSS, 4096, 512)
    ED25519 = AsymAlgorithm("Ed25519", 0x400, Scheme.EDDSA, 255, 64)
    ED448 = AsymAlgorithm("Ed448", 0x800, Scheme.EDDSA, 448, 114)
    ECDSA_P256 = AsymAlgorithm("ECDSA P-256", 0x010, Scheme.ECDSA, 256, 64)
    ECDSA_P521 = AsymAlgorithm("ECDSA P-521", 0x100, Scheme.ECDSA, 521, 132)
    ECDSA_P384 = AsymAlgorithm("ECDSA P-384", 0x080, Scheme.ECDSA, 384, 96)


CURVES: dict[int, ec.EllipticCurve] = {256: ec.SECP256R1(), 384: ec.SECP384R1(), 521: ec.SECP521R1()}
"""Curves by the bits of their field."""


@dataclass(frozen=True, slots=True)
class DheAlgorithm:
    """A row of DHE. ``field_bits`` is the curve's or the prime's size; ``exchange_bytes`` what each side sends."""

    name: str
    bit: int
    field_bits: int
    elliptic: bool
    exchange_bytes: int


class DheGroup(Enum):
    """DHE groups, in the order in which a responder prefers the later."""

    FFDHE_2048 = DheAlgorithm("FFDHE2048", 0x01, 2048, False, 256)
    FFDHE_3072 = DheAlgorithm("FFDHE3072", 0x02, 3072, False, 384)
    FFDHE_4096 = DheAlgorithm("FFDHE4096", 0x04, 4096, False, 512)
    SECP_256_R1 = DheAlgorithm("secp256r1", 0x08, 256, True, 64)
    SECP_521_R1 = DheAlgorithm("secp521r1", 0x20, 521, True, 132)
    SECP_384_R1 = DheAlgorithm("secp384r1", 0x10, 384, True, 96)


@dataclass(frozen=True, slots=True)
class AeadAlgorithm:
    """A row of AEAD."""

    name: str
    bit: int
    key_bytes: int
    cipher: Callable[[bytes], AESGCM | ChaCha20Poly1305]


class Aead(Enum):
    """AEAD ciphers, in the order in which a responder prefers the later."""

    AES_128_GCM = AeadAlgorithm("AES-128-GCM", 0x01, 16, AESGCM)
    CHACHA20_POLY1305 = AeadAlgorithm("ChaCha20-Poly1305", 0x04, 32, ChaCha20Poly1305)
    AES_256_GCM = AeadAlgorithm("AES-256-GCM", 0x02, 32, AESGCM)


_Row = TypeVar("_Row", bound=Enum)


def mask(rows: Iterable[Any]) -> int:
    """The bits of rows, for a request's bitmap."""
    return sum([row.value.bit for row in rows])


def strongest(rows: Iterable[_Row], bits: int) -> _Row | None:
    """The last of ``rows`` whose bit is set; None if none is."""
    chosen = None
    for row in rows:
        if row.value.bit & bits:
            chosen = row
    return chosen


def named(rows: type[_Row], bit: int) -> _Row | None:
    """The row of a one-hot selection; None for a selection that is none, or of nothing here."""
    for row in rows:
        if row.value.bit == bit:
            return row
    return None
