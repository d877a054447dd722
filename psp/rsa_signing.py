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
_ROUNDS = 5
"""With random bases, for primes of 1,024 bits and more and an error below 2^-100 (FIPS 186-5, table B.1)."""
_SIEVED = 1 << 17
"""Candidates with a factor below this are not tested."""
_WINDOW = 1 << 13
"""Odd numbers sieved at a time; a prime of 2,048 bits is among them but once in ten thousand times."""


@dataclass(frozen=True, slots=True)
class RsaKey:
    """A key pair of ``bits``, by its primes."""

    bits: int
    p: int = field(repr=False)
    q: int = field(repr=False)

    @property
    def modulus(self) -> int:
        """The public number."""
        return self.p * self.q

    def power(self, number: int) -> int:
        """A number to the private exponent, by the Chinese remainder theorem (RFC 8017, 5.1.2)."""
        p, q = self.p, self.q
        at_p = pow(number % p, pow(EXPONENT, -1, p - 1), p)
        at_q = pow(number % q, pow(EXPONENT, -1, q - 1), q)
        return at_q + q * ((at_p - at_q) * pow(q, -1, p) % p)


@lru_cache(maxsize=16)
def rsa_key(seed: bytes, bits: int) -> RsaKey:
    """The key of a seed. At 4,096 bits it takes some seconds."""
    return RsaKey(bits, *(prime(seed + label, bits // 2) for label in (b"p", b"q")))


def prime(seed: bytes, bits: int) -> int:
    """The first prime, from a seed's number on, whose predecessor shares no factor with the exponent."""
    start = int.from_bytes(hashlib.shake_256(seed).digest(bits // 8), "big") | 3 << (bits - 2) | 1
    while True:
        for candidate in _without_small_factors(start):
            if candidate % EXPONENT != 1 and is_prime(candidate):
                return candidate
        start += 2 * _WINDOW


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
    return key.power(number).to_bytes(key.bits // 8, "big")


def is_prime(number: int) -> bool:
    """Miller-Rabin for an odd number: base 2, which nearly all others fail, then bases derived from the number."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    stream = hashlib.shake_256(number.to_bytes(number.bit_length() // 8 + 1, "big")).digest(8 * _ROUNDS)
    for base in (2, *(2 + int.from_bytes(stream[at : at + 8], "big") for at in range(0, len(stream), 8))):
        power = pow(base, odd, number)
        if power in {1, number - 1}:
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def _mask(seed: bytes, length: int, hash_name: str) -> bytes:
    """MGF1 (RFC 8017, B.2.1)."""
    size = hashlib.new(hash_name).digest_size
    counters = range(-(-length // size))
    return b"".join(hashlib.new(hash_name, seed + i.to_bytes(4, "big")).digest() for i in counters)[:length]


def _without_small_factors(start: int) -> list[int]:
    """Of the odd numbers of a window those that no small prime divides, in order."""
    divided = bytearray(_WINDOW)
    for small in _small_primes():
        # start + 2i is divisible where i = -start/2 modulo the prime.
        first = -start * ((small + 1) // 2) % small
        if first < _WINDOW:
            divided[first::small] = b"\1" * len(range(first, _WINDOW, small))
    return [start + 2 * at for at, found in enumerate(divided) if not found]


@lru_cache(maxsize=1)
def _small_primes() -> tuple[int, ...]:
    """Odd ones, by Eratosthenes."""
    divided = bytearray(_SIEVED)
    for number in range(3, math.isqrt(_SIEVED) + 1, 2):
        if not divided[number]:
            divided[number * number :: 2 * number] = b"\1" * len(range(number * number, _SIEVED, 2 * number))
    return tuple(number for number in range(3, _SIEVED, 2) if not divided[number])
