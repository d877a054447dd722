"""The memory cipher of early Zen 1 steppings: AES with a tweak of the physical address before it only.

Each 16-byte block m at address p becomes ``AES_K(m ^ T(p))``. So ciphertext that
is moved from p to q decrypts to ``m ^ T(p) ^ T(q)``, which whoever knows the
constants can foretell (SEVurity, IEEE S&P 2020).
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from node.cipher_scratch import MIXED, PAGE_SCRATCH, Aes, stride_scratch, strides
from node.dimm_cells import Octets, Words
from node.memory_cipher import Tweaks


class XeCipher:
    """One key's cipher."""

    def __init__(self, key: bytes, tweaks: Tweaks) -> None:
        cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305 - XE is built on single blocks
        encryptor, decryptor = cipher.encryptor(), cipher.decryptor()
        self._encrypt: Aes = encryptor.update_into
        self._decrypt: Aes = decryptor.update_into
        self._encrypt_few, self._decrypt_few = encryptor.update, decryptor.update
        self._tweaks = tweaks

    def encrypt(self, plain: Words, spa: int, out: Words) -> None:
        """Encrypt whole blocks that lie at ``spa``; ``out`` may be DRAM itself."""
        for done, end, at in strides(spa, plain.size):
            masked, octets, mixed = stride_scratch(end - done)
            np.bitwise_xor(plain[done:end], self._tweaks.in_stride(at, end - done), masked)
            self._encrypt(octets, MIXED)
            out[done:end] = mixed

    def decrypt(self, cipher: Words, spa: int, out: Words) -> None:
        """Decrypt whole blocks that lie at ``spa``; ``out`` may be ``cipher``."""
        for done, end, at in strides(spa, cipher.size):
            mixed = stride_scratch(end - done)[2]
            self._decrypt(cipher[done:end].view(np.uint8), MIXED)
            np.bitwise_xor(mixed, self._tweaks.in_stride(at, end - done), out[done:end])

    def encrypt_in_page(self, plain: Words, spa: int, out: Words) -> None:
        """Encrypt whole blocks of one page."""
        masked, octets, mixed = PAGE_SCRATCH[plain.size >> 1]
        np.bitwise_xor(plain, self._tweaks.in_page(spa, plain.size), masked)
        self._encrypt(octets, MIXED)
        out[:] = mixed

    def decrypt_in_page(self, cipher: Words, spa: int) -> Octets:
        """Decrypt whole blocks of one page; the next call overwrites the array."""
        masked, octets, mixed = PAGE_SCRATCH[cipher.size >> 1]
        self._decrypt(cipher.view(np.uint8), MIXED)
        np.bitwise_xor(mixed, self._tweaks.in_page(spa, cipher.size), masked)
        return octets

    def encrypt_few(self, plain: bytes, spa: int) -> bytes:
        """Encrypt a few whole blocks of one page."""
        length = len(plain)
        masked = int.from_bytes(plain, "little") ^ self._tweaks.of_few(spa, length)
        return self._encrypt_few(masked.to_bytes(length, "little"))

    def decrypt_few(self, cipher: bytes, spa: int) -> bytes:
        """Decrypt a few whole blocks of one page."""
        length = len(cipher)
        mixed = int.from_bytes(self._decrypt_few(cipher), "little")
        return (mixed ^ self._tweaks.of_few(spa, length)).to_bytes(length, "little")
