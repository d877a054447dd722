"""Bytes objects that are filled where they lie.

Python makes ``bytes`` by copying, which for 2 MiB takes a third as long as AES. A buffered reader makes them before
it asks its stream for what belongs in them. One thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BufferedReader, RawIOBase
from typing import TYPE_CHECKING

import numpy as np

from node.dimm_cells import WORD_BYTES, Words

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class _Source(RawIOBase):
    """Whatever fills what is read from it."""

    def __init__(self) -> None:
        self.fill: Callable[[Words], None] = _nothing

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Have it filled."""
        words: Words = np.frombuffer(memoryview(buffer), np.uint64)
        self.fill(words)
        return words.nbytes


def bytes_in_place(length: int, fill: Callable[[Words], None]) -> bytes:
    """Bytes as ``fill`` leaves them, which gets them as words; it may not make others this way itself."""
    _SOURCE.fill = fill
    try:
        return _READER.read(length)
    finally:
        _SOURCE.fill = _nothing


def _nothing(_words: Words) -> None:
    """Fill in nothing."""


_SOURCE = _Source()
_READER = BufferedReader(_SOURCE, WORD_BYTES)
"""Keeps nothing itself: it asks for whole multiples of its own buffer where they are wanted."""
