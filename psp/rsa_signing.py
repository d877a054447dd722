"""RSA keys and PSS signatures that are functions of handed-in bytes: same seed, same files.

Libraries draw primes and salts from the machine's randomness; here the primes
are found by counting from a seed (FIPS 186, A.1.3 in spirit: top two bits set,
Miller-Rabin) and the salt is derived. For a laboratory's root only.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import lru_cache

EXPONENT = 65537
_ROUNDS = 24
_SMALL = math.prod(n for n in range(3, 2000) if all(n % d for d in range(2, math.isqrt(n) + 1)))


@dataclass(frozen=True, slots=True)
class RsaKey:
    """A key pair of ``bits``."""

    bits: int
    modulus: int
    private_exponent: int = field(repr=False)


@lru_cache(maxsize=4)
def rsa_key(seed: bytes, bits: int) -> RsaKey:
    """The key of a seed."""
    p, q = (_prime(hashlib.shake_256(seed + label).digest(bits // 16), bits // 2) for label in (b"p", b"q"))
    return RsaKey(bits, p * q, pow(EXPONENT, -1, math.lcm(p - 1, q - 1)))


def sign_pss(key: RsaKey, message: bytes, hash_name: str) -> bytes:
    """RSASSA-PSS with MGF1 and a salt of the hash's length (RFC 8017, 8.1.1 and 9.1.1), big-endian."""
    digest = hashlib.new(hash_name, message).digest()
    size, encoded_bits = len(digest), key.bits - 1
    salt = hashlib.new(hash_name, b"salt" + digest).digest()
    proof = hashlib.new(hash_name, bytes(8) + digest + salt).digest()
    block = (b"\x01" + salt).rjust(key.bits // 8 - size - 1, b"\0")
    masked = bytearray(a ^ b for a, b in zip(block, _mask(proof, len(block), hash_name), strict=True))
    masked[0] &= 0xFF >> (8 * (key.bits // 8) - encoded_bits)
    number = int.from_bytes(bytes(masked) + proof + b"\xbc", "big")
    return pow(number, key.private_exponent, key.modulus).to_bytes(key.bits // 8, "big")


def _mask(seed: bytes, length: int, hash_name: str) -> bytes:
    """MGF1 (RFC 8017, B.2.1)."""
    size = hashlib.new(hash_name).digest_size
    counters = range(-(-length // size))
    return b"".join(hashlib.new(hash_name, seed + i.to_bytes(4, "big")).digest() for i in counters)[:length]


def _prime(start: bytes, bits: int) -> int:
    """The first prime from a number on, whose predecessor shares no factor with the exponent."""
    candidate = int.from_bytes(start, "big") | 3 << (bits - 2) | 1
    while not (math.gcd(candidate, _SMALL) == 1 and candidate % EXPONENT != 1 and _is_prime(candidate)):
        candidate += 2
    return candidate


def _is_prime(number: int) -> bool:
    """Miller-Rabin with bases derived from the number."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    stream = hashlib.shake_256(number.to_bytes(number.bit_length() // 8 + 1, "big")).digest(8 * _ROUNDS)
    for at in range(0, len(stream), 8):
        power = pow(2 + int.from_bytes(stream[at : at + 8], "big"), odd, number)
        if power in {1, number - 1}:
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True
