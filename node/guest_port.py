"""The way into one guest's memory of a device that the hypervisor emulates.

Addresses are the guest's, and each access is the host's own: through the nested
page table, with its entries' C-bit, and checked against the RMP like any store of the host.
"""

from __future__ import annotations

from node.dram import MachineCheck
from node.host_system_bus import HostSystemBus
from node.memory_controller import MemoryController, NoHostKey
from node.nested_page_table import WRITE, NestedPageFault, NestedPageTable
from node.rmp import RmpFault
from tio.dma_port import DmaFault


class GuestPort:
    """A ``DmaPort`` of the guest's physical addresses.

    ``bus`` says at each access where the RMP is and what is hidden: a device may be older than SNP.
    """

    def __init__(self, controller: MemoryController, bus: HostSystemBus, nested: NestedPageTable) -> None:
        self._controller = controller
        self._bus = bus
        self._nested = nested

    def read(self, address: int, length: int) -> bytes:
        """Load as the host maps the guest's memory."""
        try:
            segments = self._nested.translate(address, length)
            return b"".join([self._bus.host_view.read(spa, part, key) for spa, part, _, key in segments])
        except (NestedPageFault, MachineCheck, NoHostKey, RmpFault, ValueError):
            raise DmaFault(address, length, write=False) from None

    def write(self, address: int, data: bytes) -> None:
        """Store as the host maps the guest's memory, if the RMP lets it write there."""
        try:
            segments = self._nested.translate(address, len(data), WRITE)
            rmp = self._bus.rmp
            if rmp is not None:
                for spa, part, _, _ in segments:
                    rmp.check_host_write(spa, part)
            start = 0
            for spa, part, _, key in segments:
                self._controller.write(spa, data[start : start + part], key)
                start += part
        except (NestedPageFault, MachineCheck, NoHostKey, RmpFault, ValueError):
            raise DmaFault(address, len(data), write=True) from None
