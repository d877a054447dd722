"""The memory cipher: AES-128 in XEX mode with a tweak from the physical address.

Each 16-byte block m at address p becomes ``AES_K(m ^ T(p)) ^ T(p)``. ``T(p)`` is
the XOR of one 128-bit constant for every set bit of p from bit 4 on, so it is
linear: ``T(a ^ b) = T(a) ^ T(b)`` (SEVurity, IEEE S&P 2020). From Zen 2 on the
constants are random at each boot; their exact function is not public.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from psp.system_bus import PAGE_BYTES

Octets = NDArray[np.uint8]
Words = NDArray[np.uint64]

BLOCK_BYTES = 16
LOWEST_BIT, HIGHEST_BIT = 4, 51
_PAGE_SHIFT = 12
_STRIDE_PAGES = 64
"""Pages handled at once: 128 KiB of data, tweaks and scratch stay in the L2 cache."""


class TweakTable:
    """The constants t_4 to t_51 of one boot, and the tweaks made from them."""

    RANDOM_BYTES = (HIGHEST_BIT - LOWEST_BIT + 1) * BLOCK_BYTES

    def __init__(self, constants: Words) -> None:
        self.constants = constants
        """Shape (48, 2): the constant of address bit 4 + i as two little-endian words."""
        offsets = np.arange(PAGE_BYTES // BLOCK_BYTES, dtype=np.uint64)
        self._in_page = self._linear(offsets, 0, _PAGE_SHIFT - LOWEST_BIT)
        pages = np.arange(_STRIDE_PAGES, dtype=np.uint64)
        strided = self._linear(pages, _PAGE_SHIFT - LOWEST_BIT, _STRIDE_PAGES.bit_length() - 1)
        # Rows of a page: broadcasting along whole pages keeps numpy's inner loop long.
        self._in_stride: Words = (strided[:, None, :] ^ self._in_page[None, :, :]).reshape(_STRIDE_PAGES, -1)
        self._stride = np.empty_like(self._in_stride)
        self._page_cache: dict[int, Words] = {}

    @classmethod
    def from_random(cls, random: bytes) -> TweakTable:
        """A table from ``RANDOM_BYTES`` random bytes."""
        return cls(np.frombuffer(random, "<u8").astype(np.uint64).reshape(-1, 2))

    def _linear(self, numbers: Words, first: int, bits: int) -> Words:
        out = np.zeros((len(numbers), 2), np.uint64)
        for bit in range(bits):
            chosen = (numbers >> np.uint64(bit)) & np.uint64(1)
            out ^= chosen[:, None] * self.constants[first + bit]
        return out

    def base(self, spa: int) -> Words:
        """T of one block address, shape (2,)."""
        out = np.zeros(2, np.uint64)
        bits = spa >> LOWEST_BIT
        index = 0
        while bits:
            if bits & 1:
                out ^= self.constants[index]
            bits >>= 1
            index += 1
        return out

    def stride(self, spa: int) -> Words:
        """Tweaks of the aligned stride from ``spa``, flat; the array is used again by the next call."""
        base = np.tile(self.base(spa), PAGE_BYTES // BLOCK_BYTES)
        np.bitwise_xor(self._in_stride, base, out=self._stride)
        return self._stride.reshape(-1)

    def page(self, spa: int) -> Words:
        """Tweaks of the page at ``spa``, shape (256, 2); kept, because pages are touched again."""
        found = self._page_cache.get(spa)
        if found is None:
            if len(self._page_cache) >= 4096:
                self._page_cache.clear()
            found = self._page_cache[spa] = self._in_page ^ self.base(spa)
        return found

    def blocks(self, spa: int, count: int) -> Words:
        """Tweaks of ``count`` blocks from ``spa`` (a multiple of 16), shape (count, 2)."""
        page = spa // PAGE_BYTES * PAGE_BYTES
        first = (spa - page) // BLOCK_BYTES
        if first + count <= PAGE_BYTES // BLOCK_BYTES:
            return self.page(page)[first : first + count]
        last = (spa + count * BLOCK_BYTES - 1) // PAGE_BYTES * PAGE_BYTES
        rows = [self.page(at) for at in range(page, last + 1, PAGE_BYTES)]
        return np.concatenate(rows)[first : first + count]


class XexCipher:
    """One key's cipher. ECB keeps no state between whole blocks, so one context serves for good."""

    def __init__(self, key: bytes, tweaks: TweakTable) -> None:
        cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305 - XEX is built on single blocks
        self._encrypt = cipher.encryptor().update_into
        self._decrypt = cipher.decryptor().update_into
        self._tweaks = tweaks

    def encrypt(self, plain: Octets, spa: int, out: Octets) -> None:
        """Encrypt whole blocks that lie at ``spa``; ``out`` may be DRAM itself."""
        self._apply(self._encrypt, plain, spa, out)

    def decrypt(self, cipher: Octets, spa: int, out: Octets) -> None:
        """Decrypt whole blocks that lie at ``spa``."""
        self._apply(self._decrypt, cipher, spa, out)

    def _apply(self, aes: object, source: Octets, spa: int, out: Octets) -> None:
        length = len(source)
        if length <= PAGE_BYTES:
            tweak = self._tweaks.blocks(spa, length // BLOCK_BYTES).reshape(-1)
            _xex(aes, source, tweak, out, length)
            return
        done = 0
        while done < length:
            at = spa + done
            stop = min(length, done + _STRIDE_BYTES - at % _STRIDE_BYTES)
            base = at // _STRIDE_BYTES * _STRIDE_BYTES
            first = (at - base) // 8
            words = self._tweaks.stride(base)[first : first + (stop - done) // 8]
            _xex(aes, source[done:stop], words, out[done:stop], stop - done)
            done = stop


_STRIDE_BYTES = _STRIDE_PAGES * PAGE_BYTES
_SCRATCH_IN: Words = np.empty(_STRIDE_BYTES // 8, np.uint64)
_SCRATCH_OUT = np.empty(_STRIDE_BYTES + BLOCK_BYTES, np.uint8)


def _xex(aes: object, source: Octets, tweak: Words, out: Octets, length: int) -> None:
    masked = _SCRATCH_IN[: length // 8]
    np.bitwise_xor(source.view(np.uint64), tweak, out=masked)
    aes(masked.view(np.uint8), _SCRATCH_OUT)  # type: ignore[operator]
    np.bitwise_xor(_SCRATCH_OUT[:length].view(np.uint64), tweak, out=out.view(np.uint64))
