"""The words of the RMP as cores see them, over the bytes that lie in DRAM."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from node.dram import WORD_BYTES, Dram, Words
from node.rmp_entry import ENTRY_BYTES

_ENTRY_WORDS = ENTRY_BYTES // WORD_BYTES
_ZEROS: Words = np.zeros((1 << 20) // WORD_BYTES, np.uint64)
_ZEROS.flags.writeable = False
"""What lies where nobody wrote, for all who look: zeros made anew would be pages made anew."""


class WordCipher(Protocol):
    """What stands between the RMP and DRAM where the host's key covers the table. Ranges are of whole entries.

    ``MemoryCipher`` is one.
    """

    def encrypt(self, plain: Words, spa: int, out: Words) -> None:
        """Make what DRAM holds at an SPA of words."""

    def decrypt(self, cipher: Words, spa: int, out: Words) -> None:
        """Make words of what DRAM holds at an SPA."""


class RmpMemory:
    """Words of the table. Without a cipher they are DRAM's own array, where nothing leads elsewhere."""

    def __init__(self, dram: Dram, cipher: WordCipher | None) -> None:
        self._dram = dram
        self._cipher = cipher

    @property
    def encrypted(self) -> bool:
        """Whether what lies in DRAM is not what the words say."""
        return self._cipher is not None

    def words(self, spa: int, length: int) -> Words:
        """Words to look at. Raises MachineCheck."""
        words = self._dram.words(spa, length)
        if words is None:
            count = length // WORD_BYTES
            words = _ZEROS[:count] if count <= len(_ZEROS) else np.zeros(count, np.uint64)
        if self._cipher is None:
            return words
        plain = np.empty_like(words)
        self._cipher.decrypt(words, spa, plain)
        return plain

    def writable_words(self, spa: int, length: int) -> Words:
        """Words to change and then ``store``. Raises MachineCheck."""
        if self._cipher is None and not self._dram.has_routes:
            return self._dram.writable_words(spa, length)
        return self.words(spa, length).copy()

    def store(self, spa: int, words: Words) -> None:
        """Have in DRAM what was changed in ``writable_words``: entries that are as before are not written."""
        if self._cipher is None and not self._dram.has_routes:
            return
        new = words.reshape(-1, _ENTRY_WORDS)
        changed = np.flatnonzero((new != self.words(spa, new.nbytes).reshape(new.shape)).any(axis=1))
        for some in np.split(changed, np.flatnonzero(np.diff(changed) > 1) + 1):
            if len(some):
                self.make(spa + int(some[0]) * ENTRY_BYTES, new[some[0] : some[-1] + 1].reshape(-1))

    def make(self, spa: int, words: Words) -> None:
        """Store words whatever lay there. Raises MachineCheck."""
        if self._cipher is None:
            self._dram.write(spa, words.data)
            return
        out = np.empty_like(words)
        self._cipher.encrypt(words, spa, out)
        self._dram.write(spa, out.data)

    def word(self, spa: int) -> int:
        """One word. Raises MachineCheck."""
        return int(self.words(spa - spa % ENTRY_BYTES, ENTRY_BYTES)[spa % ENTRY_BYTES // WORD_BYTES])

    def set_word(self, spa: int, value: int) -> None:
        """Change one word. Raises MachineCheck."""
        entry = spa - spa % ENTRY_BYTES
        words = self.writable_words(entry, ENTRY_BYTES)
        words[spa % ENTRY_BYTES // WORD_BYTES] = value
        self.store(entry, words)
