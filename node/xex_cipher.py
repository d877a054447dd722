"""The memory cipher: AES with a tweak of the physical address before and after.

Each 16-byte block m at address p becomes ``AES_K(m ^ T(p)) ^ T(p)``. With the
constants of AMD's memory controllers as tweaks this is their XEX mode; with the
tweaks of IEEE 1619 it is XTS.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from node.cipher_scratch import MASKED, MASKED_WORDS, MIXED, PAGE_SCRATCH, STRIDE_WORDS, Aes, stride_scratch, strides
from node.dimm_cells import WORD_BYTES, Octets, Words
from node.memory_cipher import Tweaks
from node.xts_engine import xts_engine


class XexCipher:
    """One key's cipher. ECB keeps no state between whole blocks, so one context serves for good."""

    def __init__(self, key: bytes, tweaks: Tweaks) -> None:
        cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305 - XEX is built on single blocks
        encryptor, decryptor = cipher.encryptor(), cipher.decryptor()
        self._encrypt: Aes = encryptor.update_into
        self._decrypt: Aes = decryptor.update_into
        self._encrypt_few, self._decrypt_few = encryptor.update, decryptor.update
        self._key = key
        self._tweaks = tweaks

    @cached_property
    def _xts(self) -> tuple[Aes, Aes]:
        # Most keys never see more than pages.
        return xts_engine(self._key)

    def encrypt(self, plain: Words, spa: int, out: Words) -> None:
        """Encrypt whole blocks that lie at ``spa``; ``out`` may be DRAM itself."""
        xor, masks, xts, octets = np.bitwise_xor, self._tweaks.masks, self._xts[0], out.view(np.uint8)
        for done, end, at in strides(spa, plain.size):
            part, there = plain[done:end], out[done:end]
            if end - done < STRIDE_WORDS:
                self._by_blocks(self._encrypt, part, at, there)
                continue
            mask = masks(at)
            xor(part, mask, MASKED_WORDS)
            # Into its place, where nothing is seen but what leaves the cipher: that takes so long that the fetching
            # of memory which is in no cache goes on beside it.
            xts(MASKED, octets[done * WORD_BYTES : end * WORD_BYTES])
            xor(there, mask, there)

    def decrypt(self, cipher: Words, spa: int, out: Words) -> None:
        """Decrypt whole blocks that lie at ``spa``; ``out`` may be ``cipher``."""
        xor, masks, xts, octets = np.bitwise_xor, self._tweaks.masks, self._xts[1], out.view(np.uint8)
        for done, end, at in strides(spa, cipher.size):
            part, there = cipher[done:end], out[done:end]
            if end - done < STRIDE_WORDS:
                self._by_blocks(self._decrypt, part, at, there)
                continue
            masked = octets[done * WORD_BYTES : end * WORD_BYTES]
            mask = masks(at)
            xor(part, mask, there)
            xts(masked, masked)
            xor(there, mask, there)

    def _by_blocks(self, blocks: Aes, source: Words, spa: int, out: Words) -> None:
        masked, octets, mixed = stride_scratch(source.size)
        tweak = self._tweaks.in_stride(spa, source.size)
        np.bitwise_xor(source, tweak, masked)
        blocks(octets, MIXED)
        np.bitwise_xor(mixed, tweak, out)

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

    def encrypt_few(self, plain: bytes, spa: int) -> bytes:
        """Encrypt a few whole blocks of one page."""
        length = len(plain)
        tweak = self._tweaks.of_few(spa, length)
        mixed = self._encrypt_few((int.from_bytes(plain, "little") ^ tweak).to_bytes(length, "little"))
        return (int.from_bytes(mixed, "little") ^ tweak).to_bytes(length, "little")

    def decrypt_few(self, cipher: bytes, spa: int) -> bytes:
        """Decrypt a few whole blocks of one page."""
        length = len(cipher)
        tweak = self._tweaks.of_few(spa, length)
        mixed = self._decrypt_few((int.from_bytes(cipher, "little") ^ tweak).to_bytes(length, "little"))
        return (int.from_bytes(mixed, "little") ^ tweak).to_bytes(length, "little")
