"""Signatures from 1.2 on: prefix, context, hash of the transcript; keys of every scheme (DSP0274, chapter 15)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from tio.spdm.algorithms import AsymAlgorithm, BaseAsym, BaseHash, HashAlgorithm, Scheme

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey

CHALLENGE_CONTEXT = "responder-challenge_auth signing"
MEASUREMENTS_CONTEXT = "responder-measurements signing"
KEY_EXCHANGE_CONTEXT = "responder-key_exchange_rsp signing"

_PREFIX_REPEATS = 4
_CONTEXT_BYTES = 36


class Signer(Protocol):
    """Who holds a device's key and signs with it."""

    def __call__(self, message: bytes, asym: BaseAsym, base_hash: BaseHash, /) -> bytes: ...


def combined_prefix(version: int, context: str) -> bytes:
    """The 100 bytes before what is signed."""
    head = f"dmtf-spdm-v{version >> 4}.{version & 0xF}.*".encode() * _PREFIX_REPEATS
    return head + context.encode().rjust(_CONTEXT_BYTES, b"\0")


def signed_message(version: int, context: str, transcript_hash: bytes) -> bytes:
    """What the algorithm signs. It hashes this again: the transcript is hashed twice."""
    return combined_prefix(version, context) + transcript_hash


def sign(key: PrivateKey, message: bytes, asym: BaseAsym, base_hash: BaseHash) -> bytes:
    """A signature as the wire carries it, a function of key and message. Raises ValueError for another kind of key."""
    algorithm, chosen = asym.value, base_hash.value
    match algorithm.scheme, key:
        case Scheme.ECDSA, ec.EllipticCurvePrivateKey() if key.key_size == algorithm.key_bits:
            deterministic = ec.ECDSA(chosen.primitive(), deterministic_signing=True)
            return _raw_ecdsa(key.sign(message, deterministic), algorithm)
        case Scheme.RSASSA, rsa.RSAPrivateKey() if key.key_size == algorithm.key_bits:
            return key.sign(message, padding.PKCS1v15(), chosen.primitive())
        case Scheme.RSAPSS, rsa.RSAPrivateKey() if key.key_size == algorithm.key_bits:
            return _sign_pss(key, message, chosen)
        case Scheme.EDDSA, ed25519.Ed25519PrivateKey() | ed448.Ed448PrivateKey():
            signature = key.sign(message)
            if len(signature) == algorithm.signature_bytes:
                return signature
    raise ValueError(f"key: expected one for {algorithm.name}, found {type(key).__name__}")


def verifies(key: PublicKey, signature: bytes, message: bytes, asym: BaseAsym, base_hash: BaseHash) -> bool:
    """Whether a signature is that of the key's holder over the message; False for a key of another kind."""
    algorithm, chosen = asym.value, base_hash.value
    if len(signature) != algorithm.signature_bytes or not fits(key, asym):
        return False
    try:
        match key:
            case ec.EllipticCurvePublicKey():
                half = len(signature) // 2
                r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
                key.verify(encode_dss_signature(r, s), message, ec.ECDSA(chosen.primitive()))
            case rsa.RSAPublicKey():
                scheme: padding.AsymmetricPadding = padding.PKCS1v15()
                if algorithm.scheme is Scheme.RSAPSS:
                    scheme = padding.PSS(padding.MGF1(chosen.primitive()), chosen.size_bytes)
                key.verify(signature, message, scheme, chosen.primitive())
            case _:
                key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def fits(key: object, asym: BaseAsym) -> bool:
    """Whether a public key is one of this algorithm."""
    algorithm = asym.value
    match key:
        case ec.EllipticCurvePublicKey():
            return algorithm.scheme is Scheme.ECDSA and key.key_size == algorithm.key_bits
        case rsa.RSAPublicKey():
            return algorithm.scheme in {Scheme.RSASSA, Scheme.RSAPSS} and key.key_size == algorithm.key_bits
        case ed25519.Ed25519PublicKey():
            return asym is BaseAsym.ED25519
        case ed448.Ed448PublicKey():
            return asym is BaseAsym.ED448
    return False


def signer(key: PrivateKey) -> Callable[[bytes, BaseAsym, BaseHash], bytes]:
    """A ``Signer`` that holds ``key``."""
    return lambda message, asym, base_hash: sign(key, message, asym, base_hash)


def _raw_ecdsa(der: bytes, algorithm: AsymAlgorithm) -> bytes:
    """The two numbers, big-endian, each in half of the field."""
    half = algorithm.signature_bytes // 2
    return b"".join([part.to_bytes(half, "big") for part in decode_dss_signature(der)])


def _sign_pss(key: rsa.RSAPrivateKey, message: bytes, chosen: HashAlgorithm) -> bytes:
    """RSASSA-PSS (RFC 8017, 8.1.1 and 9.1.1) with a salt that is a function of key and message.

    The library draws salts from the machine's randomness, which a device has no way to.
    """
    numbers = key.private_numbers()
    modulus, size = numbers.public_numbers.n, chosen.size_bytes
    length = (modulus.bit_length() + 7) // 8
    digest = chosen.digest(message)
    salt = chosen.hmac(numbers.d.to_bytes(length, "big"), digest)
    proof = chosen.digest(bytes(8) + digest + salt)
    block = (b"\x01" + salt).rjust(length - size - 1, b"\0")
    masked = bytearray(a ^ b for a, b in zip(block, _mask(proof, len(block), chosen), strict=True))
    masked[0] &= 0x7F  # the encoded number has one bit less than the modulus
    number = int.from_bytes(bytes(masked) + proof + b"\xbc", "big")
    return pow(number, numbers.d, modulus).to_bytes(length, "big")


def _mask(seed: bytes, length: int, chosen: HashAlgorithm) -> bytes:
    """MGF1 (RFC 8017, B.2.1)."""
    rounds = range(-(-length // chosen.size_bytes))
    return b"".join([hashlib.new(chosen.digest_name, seed + n.to_bytes(4, "big")).digest() for n in rounds])[:length]
