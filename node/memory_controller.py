"""The memory controller: a key slot for each ASID in front of DRAM.

Software never sees a key. An access with ASID 0 goes past the cipher.
"""

from __future__ import annotations

import numpy as np

from node.dram import Dram, Octets
from node.xex_cipher import BLOCK_BYTES, TweakTable, XexCipher, aligned

_PLAIN_BYTES = 2 << 20
"""Room for what a read decrypts, kept because fresh memory costs more than the cipher."""


class NoKey(Exception):
    """An access through an ASID whose key slot is empty.

    What silicon returns then is not documented (garbage of an old or zero key);
    here the access is refused, so that no result rests on it.
    """

    def __init__(self, asid: int) -> None:
        super().__init__(f"ASID {asid} has no key")
        self.asid = asid


class MemoryController:
    """Reads and writes DRAM through the key of an ASID."""

    def __init__(self, dram: Dram, tweaks: TweakTable) -> None:
        self.bytes_encrypted = 0
        self.bytes_decrypted = 0
        self._dram = dram
        self._tweaks = tweaks
        self._ciphers: dict[int, XexCipher] = {}
        self._plain: Octets = aligned(_PLAIN_BYTES)

    def install_key(self, asid: int, key: bytes) -> None:
        """Load a key into the slot of an ASID."""
        self._ciphers[asid] = XexCipher(key, self._tweaks)

    def remove_key(self, asid: int) -> None:
        """Empty the slot of an ASID."""
        self._ciphers.pop(asid, None)

    def has_key(self, asid: int) -> bool:
        """Whether the slot of an ASID holds a key."""
        return asid in self._ciphers

    def read(self, spa: int, length: int, asid: int) -> bytes:
        """Load bytes; raises MachineCheck outside of memory, NoKey for an empty slot."""
        if asid == 0:
            return self._dram.read(spa, length)
        cipher = self._cipher(asid)
        first = spa % BLOCK_BYTES
        whole = -(-(first + length) // BLOCK_BYTES) * BLOCK_BYTES
        plain = self._plain[:whole] if whole <= _PLAIN_BYTES else np.empty(whole, np.uint8)
        done = 0
        for at, size, view in self._dram.views(spa - first, whole):
            cipher.decrypt(np.zeros(size, np.uint8) if view is None else view, at, plain[done : done + size])
            done += size
        self.bytes_decrypted += whole
        return plain[first : first + length].tobytes()

    def write(self, spa: int, data: bytes | bytearray | memoryview, asid: int) -> None:
        """Store bytes; partial blocks are read, changed and written back, as hardware does."""
        if asid == 0:
            self._dram.write(spa, data)
            return
        cipher = self._cipher(asid)
        source: Octets = np.frombuffer(data, np.uint8)
        first, length = spa % BLOCK_BYTES, len(source)
        if first or length % BLOCK_BYTES:
            start = spa - first
            whole = -(-(first + length) // BLOCK_BYTES) * BLOCK_BYTES
            block = np.frombuffer(bytearray(self.read(start, whole, asid)), np.uint8)
            block[first : first + length] = source
            source, spa, length = block, start, whole
        done = 0
        for at, size, view in self._dram.writable_views(spa, length):
            cipher.encrypt(source[done : done + size], at, view)
            done += size
        self.bytes_encrypted += length

    def _cipher(self, asid: int) -> XexCipher:
        cipher = self._ciphers.get(asid)
        if cipher is None:
            raise NoKey(asid)
        return cipher
