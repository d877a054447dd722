"""The memory cipher: AES with a tweak of the physical address before and after.

Each 16-byte block m at address p becomes ``AES_K(m ^ T(p)) ^ T(p)``. With the
constants of AMD's memory controllers as tweaks this is their XEX mode; with the
tweaks of IEEE 1619 it is XTS.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from node.cipher_scratch import MIXED, PAGE_SCRATCH, Aes, landing, stride_scratch, strides
from node.dimm_cells import Octets, Words
from node.memory_cipher import Tweaks


class XexCipher:
    """One key's cipher. ECB keeps no state between whole blocks, so one context serves for good."""

    def __init__(self, key: bytes, tweaks: Tweaks) -> None:
        cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305 - XEX is built on single blocks
        self._encrypt: Aes = cipher.encryptor().update_into
        self._decrypt: Aes = cipher.decryptor().update_into
        self._tweaks = tweaks

    def encrypt(self, plain: Words, spa: int, out: Words) -> None:
        """Encrypt whole blocks that lie at ``spa``; ``out`` may be DRAM itself."""
        for done, end, at in strides(spa, plain.size):
            tweak = self._tweaks.in_stride(at, end - done)
            masked, octets, _ = stride_scratch(end - done)
            np.bitwise_xor(plain[done:end], tweak, masked)
            buffer, mixed = landing(out, done, end)
            self._encrypt(octets, buffer)
            np.bitwise_xor(mixed, tweak, out[done:end])

    def decrypt(self, cipher: Words, spa: int, out: Words) -> None:
        """Decrypt whole blocks that lie at ``spa``."""
        for done, end, at in strides(spa, cipher.size):
            out[done:end] = self.decrypt_in_stride(cipher[done:end], at).view(np.uint64)

    def decrypt_in_stride(self, cipher: Words, spa: int) -> Octets:
        """Decrypt whole blocks of one stride; the next call overwrites the array."""
        tweak = self._tweaks.in_stride(spa, cipher.size)
        masked, octets, mixed = stride_scratch(cipher.size)
        np.bitwise_xor(cipher, tweak, masked)
        self._decrypt(octets, MIXED)
        np.bitwise_xor(mixed, tweak, masked)
        return octets

    def encrypt_in_page(self, plain: Words, spa: int, out: Words) -> None:
        """Encrypt whole blocks of one page."""
        words = plain.size
        masked, octets, mixed = PAGE_SCRATCH[words >> 1]
        tweak = self._tweaks.in_page(spa, words)
        np.bitwise_xor(plain, tweak, masked)
        self._encrypt(octets, MIXED)
        np.bitwise_xor(mixed, tweak, out)

    def decrypt_in_page(self, cipher: Words, spa: int) -> Octets:
        """Decrypt whole blocks of one page; the next call overwrites the array."""
        words = cipher.size
        masked, octets, mixed = PAGE_SCRATCH[words >> 1]
        tweak = self._tweaks.in_page(spa, words)
        np.bitwise_xor(cipher, tweak, masked)
        self._decrypt(octets, MIXED)
        np.bitwise_xor(mixed, tweak, masked)
        return octets
