"""The memory cipher: AES with a tweak of the physical address before and after.

Each 16-byte block m at address p becomes ``AES_K(m ^ T(p)) ^ T(p)``. With the
constants of AMD's memory controllers as tweaks this is their XEX mode; with the
tweaks of IEEE 1619 it is XTS.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from node.cipher_scratch import MIXED, PAGE_SCRATCH, STRIDE_BYTES, Aes, stride_scratch, strides
from node.dimm_cells import Octets, Words
from node.memory_cipher import Tweaks
from node.xts_engine import xts_engine


class XexCipher:
    """One key's cipher. ECB keeps no state between whole blocks, so one context serves for good."""

    def __init__(self, key: bytes, tweaks: Tweaks) -> None:
        cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305 - XEX is built on single blocks
        self._encrypt: Aes = cipher.encryptor().update_into
        self._decrypt: Aes = cipher.decryptor().update_into
        self._key = key
        self._tweaks = tweaks

    @cached_property
    def _xts(self) -> tuple[Aes, Aes]:
        # Most keys never see more than pages.
        return xts_engine(self._key)

    def encrypt(self, plain: Words, spa: int, out: Words) -> None:
        """Encrypt whole blocks that lie at ``spa``; ``out`` may be DRAM itself."""
        self._in_strides(self._encrypt, self._xts[0], plain, spa, out)

    def decrypt(self, cipher: Words, spa: int, out: Words) -> None:
        """Decrypt whole blocks that lie at ``spa``; ``out`` may be ``cipher``."""
        self._in_strides(self._decrypt, self._xts[1], cipher, spa, out)

    def _in_strides(self, blocks: Aes, xts: Aes, source: Words, spa: int, out: Words) -> None:
        for done, end, at in strides(spa, source.size):
            masked, octets, mixed = stride_scratch(end - done)
            part = out[done:end]
            if at % STRIDE_BYTES:
                tweak = self._tweaks.in_stride(at, end - done)
                np.bitwise_xor(source[done:end], tweak, masked)
                blocks(octets, MIXED)
                np.bitwise_xor(mixed, tweak, part)
            else:
                mask = self._tweaks.masks(at, end - done)
                np.bitwise_xor(source[done:end], mask, masked)
                # In its place, for the fetching of memory that is in no cache goes on beside the cipher.
                xts(octets, part.view(np.uint8))
                np.bitwise_xor(part, mask, part)

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
