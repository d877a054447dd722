"""Tweaks of XTS (IEEE 1619-2018, section 5): ``E_K2(sector) * alpha^j`` for block j of a sector.

A sector is ``XtsSector`` bytes of system-physical address space and its number
its address divided by that. A tweak depends on the key, so none is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from node.cipher_scratch import STRIDE_BYTES, STRIDE_WORDS, aligned
from node.dimm_cells import WORD_BYTES, Words
from node.memory_cipher import BLOCK_BYTES, XtsSector
from node.xts_engine import powers_of_alpha

_BLOCK_WORDS = BLOCK_BYTES // WORD_BYTES
_HALF_BITS = np.uint64(64)
_REDUCTION = tuple(np.uint64(bit) for bit in (0, 1, 2, 7))
"""x^128 = x^7 + x^2 + x + 1."""


class XtsTweaks:
    """The tweaks of one tweak key."""

    def __init__(self, key: bytes, sector: XtsSector) -> None:
        cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305 - a sector's number is one block
        self._encrypt: Callable[[Any, Any], int] = cipher.encryptor().update_into
        self._sector_bytes = int(sector)

    def in_page(self, spa: int, words: int) -> Words:
        """Tweaks of the blocks from ``spa`` on, inside one stride; the next call overwrites the array."""
        size = self._sector_bytes
        first, stop = spa // size, -(-(spa + words * WORD_BYTES) // size)
        count, blocks = stop - first, size // BLOCK_BYTES
        numbers = np.zeros((count, _BLOCK_WORDS), np.uint64)
        numbers[:, 0] = np.arange(first, stop, dtype=np.uint64)
        self._encrypt(numbers.reshape(-1).view(np.uint8), _FIRST)
        tweaks = _TWEAKS[: count * blocks * _BLOCK_WORDS].reshape(count, blocks, _BLOCK_WORDS)
        tweaks[:, 0] = _FIRST_WORDS[: count * _BLOCK_WORDS].reshape(count, _BLOCK_WORDS)
        done = 1
        while done < blocks:
            tweaks[:, done : 2 * done] = _times_alpha(tweaks[:, :done], done)
            done *= 2
        start = spa % size // WORD_BYTES
        return tweaks.reshape(-1)[start : start + words]

    in_stride = in_page

    def of_few(self, spa: int, length: int) -> int:
        """The same as one number, that of the first block lowest."""
        return int.from_bytes(self.in_page(spa, length // WORD_BYTES).tobytes(), "little")

    def masks(self, spa: int) -> Words:
        """Of all blocks of the stride that starts at ``spa``, each XOR its X; the next call overwrites the array."""
        tweaks = self.in_page(spa, STRIDE_WORDS)
        tweaks ^= powers_of_alpha()
        return tweaks


def _times_alpha(words: Words, power: int) -> Words:
    """Blocks, lowest word first, times alpha to a power."""
    while power > 64:
        words, power = _times_alpha(words, 64), power - 64
    by, back = np.uint64(power), _HALF_BITS - np.uint64(power)
    low, high = words[..., 0], words[..., 1]
    carry = high >> back
    out = np.empty_like(words)
    # All the bits of a word shifted out leave zeros, in numpy.
    out[..., 0] = low << by
    out[..., 1] = (high << by) | (low >> back)
    for bit in _REDUCTION:
        out[..., 0] ^= carry << bit
        out[..., 1] ^= carry >> (_HALF_BITS - bit)
    return out


_TWEAKS: Words = aligned(STRIDE_BYTES).view(np.uint64)
_FIRST = aligned(STRIDE_BYTES // min(XtsSector) * BLOCK_BYTES + BLOCK_BYTES)
_FIRST_WORDS: Words = _FIRST.view(np.uint64)
