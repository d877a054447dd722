"""MSI-X: a table of vectors in a function's memory, and the writes by which it interrupts.

Source: PCI Express base specification, 6.1.4 and 7.7.2.
"""

from __future__ import annotations

import struct

from tio.dma_port import DmaFault, DmaPort

ENTRY_BYTES = 16
_ENTRY = struct.Struct("<QII")
_MASKED = 1


class MsixTable:
    """The vectors of a function; every one is masked after a reset."""

    def __init__(self, vectors: int) -> None:
        self.vectors = vectors
        self.octets = bytearray()
        self.pending: set[int] = set()
        self.lost = 0
        """Interrupts that the bus refused."""
        self.reset()

    def reset(self) -> None:
        """All masked, none pending."""
        self.octets = bytearray(_ENTRY.pack(0, 0, _MASKED) * self.vectors)
        self.pending.clear()

    def load(self, offset: int, width: int) -> int:
        """Load from the table."""
        return int.from_bytes(self.octets[offset : offset + width], "little")

    def store(self, offset: int, value: int, width: int) -> None:
        """Store to the table, inside of it; the rest is nowhere."""
        if offset + width <= len(self.octets):
            self.octets[offset : offset + width] = value.to_bytes(width, "little")

    def pending_bits(self, offset: int, width: int) -> int:
        """Load from the pending bit array."""
        bits = sum([1 << vector for vector in self.pending])
        return bits >> 8 * offset & (1 << 8 * width) - 1

    def fire(self, vector: int, port: DmaPort, *, masked: bool) -> bool:
        """Interrupt, or note that it waits; ``masked`` masks the whole function. Whether something was written."""
        if not 0 <= vector < self.vectors:
            return False
        address, data, control = _ENTRY.unpack_from(self.octets, vector * ENTRY_BYTES)
        if masked or control & _MASKED:
            self.pending.add(vector)
            return False
        self.pending.discard(vector)
        try:
            port.write(address, data.to_bytes(4, "little"))
        except DmaFault:
            self.lost += 1
            return False
        return True
