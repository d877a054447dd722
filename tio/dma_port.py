"""The port through which a device reaches memory: whoever owns the bus hands it in.

The board's port applies what stands between a device and DRAM (IOMMU, RMP,
keys); a device sees addresses, bytes and refusals. A hostile driver chooses
the addresses, so a port must answer any integer with ``DmaFault`` or bytes.
"""

from __future__ import annotations

from typing import Protocol


class DmaFault(Exception):
    """The bus refused an access: unmapped, not present, or not this device's memory."""

    def __init__(self, address: int, length: int, *, write: bool) -> None:
        super().__init__(f"DMA {'write' if write else 'read'} of {length} bytes at {address:#x} refused")
        self.address = address
        self.length = length
        self.write = write


class DmaPort(Protocol):
    """Bus-master accesses. Addresses are the device's (I/O virtual, or physical without an IOMMU)."""

    def read(self, address: int, length: int) -> bytes:
        """Load ``length`` bytes, or raise ``DmaFault``."""

    def write(self, address: int, data: bytes) -> None:
        """Store ``data``, or raise ``DmaFault``. Where the bus posts writes, one that is refused is lost in silence."""
