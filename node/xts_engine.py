"""XEX of many blocks by way of the library's XTS, which is the same with tweaks of its own.

``XTS(m) = AES_K(m ^ X) ^ X``, so ``AES_K(m ^ T) ^ T`` is ``XTS(m ^ M) ^ M`` with the mask ``M = T ^ X``: as many
XORs as around single blocks, but OpenSSL's XTS uses wider instructions than its ECB. A second key decides about
``X``, which for block j is its cipher of a number times alpha^j (IEEE 1619-2018, section 5.3). Here that
product is alpha^j alone, whatever the key.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from node.cipher_scratch import STRIDE_BYTES, Aes
from node.dimm_cells import Words
from node.memory_cipher import BLOCK_BYTES

_ONE = (1).to_bytes(BLOCK_BYTES, "little")
_CARRY = 1 << 8 * BLOCK_BYTES
_POLYNOMIAL = _CARRY | 0x87
"""x^128 + x^7 + x^2 + x + 1."""


def xts_engine(key: bytes) -> tuple[Aes, Aes]:
    """Encrypt and decrypt a stride of blocks, the first with X = 1. XTS keeps no state between two calls."""
    # The standard wants two keys that differ.
    second = bytes([octet ^ 0xFF for octet in key])
    number = Cipher(algorithms.AES(second), modes.ECB()).decryptor().update(_ONE)  # noqa: S305 - one block
    cipher = Cipher(algorithms.AES(key + second), modes.XTS(number))
    return cipher.encryptor().update_into, cipher.decryptor().update_into


@cache
def powers_of_alpha() -> Words:
    """X of each block of a stride."""
    octets, power = bytearray(), 1
    for _ in range(STRIDE_BYTES // BLOCK_BYTES):
        octets += power.to_bytes(BLOCK_BYTES, "little")
        power <<= 1
        if power & _CARRY:
            power ^= _POLYNOMIAL
    return np.frombuffer(bytes(octets), np.uint64)
