"""Scratch memory that all ciphers of a process share, and the strides that bulk work goes in.

One thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from node.dimm_cells import WORD_BYTES, Octets, Words
from node.memory_cipher import BLOCK_BYTES
from psp.system_bus import PAGE_BYTES

Aes = Callable[[Any, Any], int]
"""AES over whole blocks into a buffer. Takes any buffer; the library's annotation does not know arrays."""

STRIDE_BYTES = 32 * PAGE_BYTES
"""Handled at once: data, tweaks and scratch stay in the L2 cache."""
STRIDE_WORDS = STRIDE_BYTES // WORD_BYTES


def strides(spa: int, words: int) -> Iterator[tuple[int, int, int]]:
    """A range cut at the borders of strides: (first word, word after the last, SPA of the first)."""
    done = 0
    while done < words:
        at = spa + done * WORD_BYTES
        end = min(words, done + STRIDE_WORDS - at % STRIDE_BYTES // WORD_BYTES)
        yield done, end, at
        done = end


def aligned(size: int) -> Octets:
    """Room for ``size`` bytes at a cache line's border: vector instructions run at half speed across two lines."""
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size]


MASKED = aligned(STRIDE_BYTES)
"""What goes into AES."""
MASKED_WORDS: Words = MASKED.view(np.uint64)
MIXED = aligned(STRIDE_BYTES + BLOCK_BYTES)
"""Where AES puts its blocks; ``update_into`` wants room for one more."""
_MIXED_WORDS: Words = MIXED.view(np.uint64)

PAGE_SCRATCH = tuple(
    (MASKED_WORDS[: 2 * blocks], MASKED[: BLOCK_BYTES * blocks], _MIXED_WORDS[: 2 * blocks])
    for blocks in range(PAGE_BYTES // BLOCK_BYTES + 1)
)
"""Views for each number of blocks in a page: what goes into AES, as words and octets, and what comes out.

Making them costs more than a block's cipher.
"""


def wipe_scratch() -> None:
    """Leave nothing of what was encrypted or decrypted last."""
    MASKED[:] = 0
    MIXED[:] = 0


@lru_cache(maxsize=64)
def stride_scratch(words: int) -> tuple[Words, Octets, Words]:
    """The same for a number of words in a stride."""
    return MASKED_WORDS[:words], MASKED[: words * WORD_BYTES], _MIXED_WORDS[:words]
