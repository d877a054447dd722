"""Ciphertext hiding: who reads an SNP guest's page without its key gets ones (SEV-SNP firmware ABI, SNP_INIT_EX).

It is the cores' accesses that are answered so. The DIMMs hold ciphertext as ever, for
whoever has them in his hands.
"""

from __future__ import annotations

from typing import Protocol

from node.rmp import ReverseMapTable

_ONES = b"\xff"


class MemoryReader(Protocol):
    """Memory as somebody reads it: ``MemoryController`` is one."""

    def read(self, spa: int, length: int, asid: int, /) -> bytes:
        """Bytes through a key."""


class CiphertextHiding:
    """Memory as accesses without a guest's key read it while ciphertext is hidden.

    Pages count that the RMP gives to an ASID up to ``max_snp_asid``.
    """

    def __init__(self, memory: MemoryReader, rmp: ReverseMapTable, max_snp_asid: int) -> None:
        self._memory = memory
        self._rmp = rmp
        self._max_snp_asid = max_snp_asid

    def read(self, spa: int, length: int, asid: int, /) -> bytes:
        """Bytes, or ones where a guest's page lies. Raises what the memory raises."""
        data = self._memory.read(spa, length, asid)
        hidden = [
            (max(at, spa), min(at + size, spa + length))
            for at, size, owner in self._rmp.owned(spa, length)
            if owner <= self._max_snp_asid
        ]
        if not hidden:
            return data
        shown = bytearray(data)
        for first, end in hidden:
            shown[first - spa : end - spa] = _ONES * (end - first)
        return bytes(shown)
