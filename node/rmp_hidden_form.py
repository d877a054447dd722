"""Entries of the RMP whose fields lie where no manual says.

The raw form is architecturally opaque, and published for Zen 3 and Zen 4 alone. Where a
host takes it to be unknown, the 128 bits of an entry lie in DRAM in an order drawn for that
host. Whoever reaches them by another route than the RMP's instructions can then copy an
entry, or put an old one back, but cannot make up one. Zeros are the hypervisor's page in
any form: an operating system zeroes the table before there is anybody who knows better.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from node.dram import Words
from node.rmp_entry import ENTRY_BYTES
from node.rmp_memory import WordCipher

_BITS = ENTRY_BYTES * 8


class HiddenForm:
    """A ``WordCipher`` that puts the bits of each entry in another order, and what it holds through ``key`` then."""

    RANDOM_BYTES = _BITS * 8

    def __init__(self, random: bytes, key: WordCipher | None = None) -> None:
        self._order = np.argsort(np.frombuffer(random[: self.RANDOM_BYTES], "<u8"), kind="stable")
        self._back = np.argsort(self._order, kind="stable")
        self._key = key

    def encrypt(self, plain: Words, spa: int, out: Words) -> None:
        """Make what DRAM holds of whole entries."""
        out[:] = _ordered(plain, self._order)
        if self._key is not None:
            self._key.encrypt(out.copy(), spa, out)

    def decrypt(self, cipher: Words, spa: int, out: Words) -> None:
        """Make whole entries of what DRAM holds."""
        if self._key is not None:
            self._key.decrypt(cipher, spa, out)
            cipher = out
        out[:] = _ordered(cipher, self._back)


def _ordered(words: Words, order: NDArray[np.intp]) -> Words:
    octets = np.ascontiguousarray(words).view(np.uint8).reshape(-1, ENTRY_BYTES)
    bits = np.unpackbits(octets, axis=1, bitorder="little")
    return np.packbits(bits[:, order], axis=1, bitorder="little").reshape(-1).view(np.uint64)
