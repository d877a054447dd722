"""Memory as page walks reach it. While ciphertext is hidden, a walk without a guest's key reads ones as its core does.

AMD's public texts speak of software's reads alone; a walk that saw ciphertext would tell by its faults and by where
it ends what it read.
"""

from __future__ import annotations

from node.ciphertext_hiding import MemoryReader
from node.nested_walk import Changes, TableMemory


class WalkedMemory:
    """``memory``, with the methods of it that walks use; ``entries`` if that remembers what they read."""

    def __init__(self, memory: TableMemory, entries: Changes | None = None) -> None:
        self._memory = memory
        self._entries = entries
        self._hiding: MemoryReader | None = None
        self.read = memory.read
        self.write = memory.write
        self.clear = memory.clear

    @property
    def changes(self) -> int | None:
        """As ``Changes`` has it; None, too, while the RMP decides at each walk what is read."""
        return None if self._entries is None or self._hiding is not None else self._entries.changes

    @property
    def memory(self) -> TableMemory:
        """The same without anything hidden."""
        return self._memory

    def hide(self, hiding: MemoryReader | None) -> None:
        """Have accesses without a guest's key answered by ``hiding`` from now on, or as before."""
        self._hiding = hiding
        self.read = self._memory.read if hiding is None else self._read_hidden

    def _read_hidden(self, spa: int, length: int, asid: int) -> bytes:
        assert self._hiding is not None
        return self._memory.read(spa, length, asid) if asid > 0 else self._hiding.read(spa, length, asid)
