"""What a device in a slot is handed: its way to memory, under the identity of the slot."""

from __future__ import annotations

from node.iommu import Iommu

SLOTS = 8
"""PCIe slots of a board."""


class DevicePort:
    """A ``tio.dma_port.DmaPort``. The requester id is the slot's: bus 1, one device a slot, function 0."""

    def __init__(self, iommu: Iommu, slot: int) -> None:
        self.requester = 1 << 8 | slot << 3
        self._iommu = iommu

    def read(self, address: int, length: int) -> bytes:
        """Load through the IOMMU, or raise DmaFault."""
        return self._iommu.read(self.requester, address, length)

    def write(self, address: int, data: bytes) -> None:
        """Store through the IOMMU; nothing tells a device of a store that was refused."""
        self._iommu.write(self.requester, address, data)
