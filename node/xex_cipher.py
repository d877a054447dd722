"""The memory cipher: AES-128 in XEX mode with a tweak from the physical address.

Each 16-byte block m at address p becomes ``AES_K(m ^ T(p)) ^ T(p)``. ``T(p)`` is
the XOR of one 128-bit constant for every set bit of p from bit 4 on, so it is
linear: ``T(a ^ b) = T(a) ^ T(b)`` (SEVurity, IEEE S&P 2020). From Zen 2 on the
constants are random at each boot; their exact function is not public.

Ciphers of one process share their scratch memory: one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from node.dram import WORD_BYTES, Octets, Words
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

BLOCK_BYTES = 16
KEY_BYTES = 16
LOWEST_BIT, HIGHEST_BIT = 4, 51

_STRIDE_BYTES = 32 * PAGE_BYTES
"""Handled at once: data, tweaks and scratch stay in the L2 cache."""
_STRIDE_WORDS = _STRIDE_BYTES // WORD_BYTES
_REGION_PAGES = LARGE_PAGE_BYTES // PAGE_BYTES
_REGIONS_KEPT = 4096

_Aes = Callable[[Any, Any], int]
"""Takes any buffer; its own annotation does not know arrays."""


class TweakTable:
    """The constants t_4 to t_51 of one boot, and the tweaks made from them."""

    RANDOM_BYTES = (HIGHEST_BIT - LOWEST_BIT + 1) * BLOCK_BYTES

    def __init__(self, constants: tuple[int, ...]) -> None:
        self.constants = constants
        """The constant of address bit 4 + i; its first octet in memory is the lowest."""
        self._in_page: Words = np.zeros(PAGE_BYTES // WORD_BYTES, np.uint64)
        self._double(self._in_page, BLOCK_BYTES)
        self._pages = [self.tweak(number * PAGE_BYTES) for number in range(_REGION_PAGES)]
        self._regions: dict[int, int] = {}

    @classmethod
    def from_random(cls, random: bytes) -> TweakTable:
        """A table from ``RANDOM_BYTES`` random bytes. Raises ValueError for another number of them."""
        if len(random) != cls.RANDOM_BYTES:
            raise ValueError(f"random: expected {cls.RANDOM_BYTES} bytes, got {len(random)}")
        starts = range(0, len(random), BLOCK_BYTES)
        return cls(tuple(int.from_bytes(random[start : start + BLOCK_BYTES], "little") for start in starts))

    def tweak(self, spa: int) -> int:
        """T of the block at ``spa``."""
        out, bits = 0, spa >> LOWEST_BIT
        while bits:
            lowest = bits & -bits
            out ^= self.constants[lowest.bit_length() - 1]
            bits ^= lowest
        return out

    def in_page(self, spa: int, words: int) -> Words:
        """Tweaks of the blocks from ``spa`` on, inside one page; the next call overwrites the array."""
        first = spa % PAGE_BYTES // WORD_BYTES
        tweaks = _PAGE_TWEAKS[words >> 1]
        np.bitwise_xor(self._in_page[first : first + words], _repeated(self._page(spa), words), tweaks)
        return tweaks

    def fill_stride(self, words: Words, spa: int) -> None:
        """Fill in the tweaks of the stride that starts at ``spa``."""
        count = self._in_page.size
        np.bitwise_xor(self._in_page, _repeated(self._page(spa), count), words[:count])
        self._double(words, PAGE_BYTES)

    def difference(self, distance: int, words: int) -> Words:
        """What turns the tweaks of one page into those of another; ``distance`` is the XOR of their addresses."""
        return _repeated(self._page(distance), words)

    def _double(self, words: Words, done_bytes: int) -> None:
        """Fill in all tweaks from the first: an address bit more is twice as many, the same XOR that bit's constant."""
        done = done_bytes // WORD_BYTES
        while done < words.size:
            constant = self.constants[(done * WORD_BYTES).bit_length() - 1 - LOWEST_BIT]
            np.bitwise_xor(words[:done], _repeated(constant, done), words[done : 2 * done])
            done *= 2

    def _page(self, spa: int) -> int:
        """T of the page that ``spa`` lies in."""
        region, page = divmod(spa // PAGE_BYTES, _REGION_PAGES)
        base = self._regions.get(region)
        if base is None:
            if len(self._regions) >= _REGIONS_KEPT:
                self._regions.clear()
            base = self._regions[region] = self.tweak(region * LARGE_PAGE_BYTES)
        return base ^ self._pages[page]


class _StrideTweaks:
    """The tweaks of one stride. There is one for all tables of the process: bulk work goes from stride to stride."""

    def __init__(self) -> None:
        self.words: Words = _aligned(_STRIDE_BYTES).view(np.uint64)
        # XORed in halves: numpy's own broadcasting takes twice as long as arrays of one size.
        self._halves = self.words[: _STRIDE_WORDS // 2], self.words[_STRIDE_WORDS // 2 :]
        self._table: TweakTable | None = None
        self._spa = 0

    def move(self, spa: int, table: TweakTable) -> None:
        """Turn ``words`` into the tweaks of the stride that starts at ``spa``."""
        if table is not self._table:
            table.fill_stride(self.words, spa)
            self._table, self._spa = table, spa
        elif spa != self._spa:
            difference = _difference(table, spa ^ self._spa)
            for half in self._halves:
                np.bitwise_xor(half, difference, half)
            self._spa = spa


@lru_cache(maxsize=8)
def _difference(table: TweakTable, distance: int) -> Words:
    """Half a stride of it. Four distances make fifteen of the sixteen steps through 2 MiB."""
    return table.difference(distance, _STRIDE_WORDS // 2)


class XexCipher:
    """One key's cipher. ECB keeps no state between whole blocks, so one context serves for good."""

    def __init__(self, key: bytes, tweaks: TweakTable) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"key: expected {KEY_BYTES} bytes, got {len(key)}")
        cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305 - XEX is built on single blocks
        self._encrypt: _Aes = cipher.encryptor().update_into
        self._decrypt: _Aes = cipher.decryptor().update_into
        self._tweaks = tweaks

    def encrypt(self, plain: Words, spa: int, out: Words) -> None:
        """Encrypt whole blocks that lie at ``spa``; ``out`` may be DRAM itself."""
        self._bulk(self._encrypt, plain, spa, out)

    def decrypt(self, cipher: Words, spa: int, out: Words) -> None:
        """Decrypt whole blocks that lie at ``spa``."""
        self._bulk(self._decrypt, cipher, spa, out)

    def encrypt_in_page(self, plain: Words, spa: int, out: Words) -> None:
        """Encrypt whole blocks of one page."""
        words = plain.size
        masked, octets, mixed = _PAGE_SCRATCH[words >> 1]
        tweak = self._tweaks.in_page(spa, words)
        np.bitwise_xor(plain, tweak, masked)
        self._encrypt(octets, _MIXED)
        np.bitwise_xor(mixed, tweak, out)

    def decrypt_in_page(self, cipher: Words, spa: int) -> Octets:
        """Decrypt whole blocks of one page; the next call overwrites the array."""
        words = cipher.size
        masked, octets, mixed = _PAGE_SCRATCH[words >> 1]
        tweak = self._tweaks.in_page(spa, words)
        np.bitwise_xor(cipher, tweak, masked)
        self._decrypt(octets, _MIXED)
        np.bitwise_xor(mixed, tweak, masked)
        return octets

    def _bulk(self, aes: _Aes, source: Words, spa: int, out: Words) -> None:
        done, words = 0, source.size
        while done < words:
            at = spa + done * WORD_BYTES
            first = at % _STRIDE_BYTES // WORD_BYTES
            stop = min(first + words - done, _STRIDE_WORDS)
            end = done + stop - first
            _STRIDE_TWEAKS.move(at - first * WORD_BYTES, self._tweaks)
            tweak, masked, octets, mixed = _stride_scratch(first, stop)
            np.bitwise_xor(source[done:end], tweak, masked)
            aes(octets, _MIXED)
            if out is source:
                np.bitwise_xor(mixed, tweak, out[done:end])
            else:
                # A copy need not fetch what it overwrites into the cache, where ``out`` is not yet.
                np.bitwise_xor(mixed, tweak, mixed)
                out[done:end] = mixed
            done = end


def _repeated(tweak: int, words: int) -> Words:
    return np.frombuffer(tweak.to_bytes(BLOCK_BYTES, "little") * (words >> 1), np.uint64)


def _aligned(size: int) -> Octets:
    """Room for ``size`` bytes at a cache line's border: vector instructions run at half speed across two lines."""
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size]


_MASKED = _aligned(_STRIDE_BYTES)
_MASKED_WORDS: Words = _MASKED.view(np.uint64)
_MIXED = _aligned(_STRIDE_BYTES + BLOCK_BYTES)
"""Where AES puts its blocks; ``update_into`` wants room for one more."""
_MIXED_WORDS: Words = _MIXED.view(np.uint64)
_STRIDE_TWEAKS = _StrideTweaks()
_PAGE_TWEAK: Words = _aligned(PAGE_BYTES).view(np.uint64)
_PAGE_TWEAKS = tuple(_PAGE_TWEAK[: 2 * blocks] for blocks in range(PAGE_BYTES // BLOCK_BYTES + 1))
_PAGE_SCRATCH = tuple(
    (_MASKED_WORDS[: 2 * blocks], _MASKED[: BLOCK_BYTES * blocks], _MIXED_WORDS[: 2 * blocks])
    for blocks in range(PAGE_BYTES // BLOCK_BYTES + 1)
)
"""Views of the scratch for each number of blocks in a page: making them costs more than a block's cipher."""


@lru_cache(maxsize=64)
def _stride_scratch(first: int, stop: int) -> tuple[Words, Words, Octets, Words]:
    """The same for words of a stride, and their tweaks."""
    count = stop - first
    return _STRIDE_TWEAKS.words[first:stop], _MASKED_WORDS[:count], _MASKED[: count * WORD_BYTES], _MIXED_WORDS[:count]
