"""How an IOMMU reaches memory: whose key an address means, and its own accesses to tables, rings and logs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from node.cached_controller import FabricView
from node.dram import MachineCheck
from node.iommu_events import EventCode, IommuEvent
from node.memory_controller import HOST_KEY, MemoryController, NoHostKey, NoKey
from node.rmp import ReverseMapTable, RmpFault
from psp.page_state import PageState, page_state
from psp.system_bus import PAGE_BYTES

Memory = MemoryController | FabricView
"""What devices reach: past the caches, where there are any."""

NO_MEMORY = (MachineCheck, NoKey, NoHostKey)
"""What the memory controller raises where nothing answers."""

_OWN_WRITES = frozenset({PageState.HYPERVISOR, PageState.FIRMWARE, PageState.HV_FIXED})
"""States of a page that logs and completion words may be written to."""


class Peers(Protocol):
    """Memory of cards by system-physical address. ``tee``: for the guest whose key it would be."""

    def takes_peers(self, spa: int, length: int) -> bool:
        """Whether a whole range is that of one card, which takes requests of others now."""

    def load_bytes(self, spa: int, length: int, *, tee: bool) -> bytes:
        """Load."""

    def store_bytes(self, spa: int, data: bytes, *, tee: bool) -> None:
        """Store."""


class AccessRefused(Exception):
    """An access does not happen; ``event`` is what the host is told of it."""

    def __init__(self, event: IommuEvent) -> None:
        super().__init__(event.code.name)
        self.event = event


class IommuMemory:
    """Memory as the IOMMU sees it. ``c_bit`` is the mask of the C-bit in addresses, 0 where the host has none."""

    def __init__(
        self, controller: Memory, rmp: Callable[[], ReverseMapTable | None], c_bit: int, *, logs_checked: bool
    ) -> None:
        self.enforced = False
        """SNP is on: what the IOMMU does is checked against the RMP."""
        self.peers: Peers | None = None
        """Memory of cards, which other cards reach through the root complex; None where there are none."""
        self._controller = controller
        self._rmp = rmp
        self._c_bit = c_bit
        self._logs_checked = logs_checked

    def located(self, address: int) -> tuple[int, int]:
        """The SPA that an address means, and the key: the host's for an address with the C-bit, else none."""
        return (address & ~self._c_bit, HOST_KEY) if address & self._c_bit else (address, 0)

    def read(self, address: int, length: int, failed: EventCode) -> bytes:
        """A table or command. Raises AccessRefused with ``failed`` if nothing answers, RMP_HW_ERROR for the RMP."""
        spa, key = self.located(address)
        try:
            rmp = self._rmp() if self.enforced else None
            if rmp is not None:
                rmp.check_dma(spa, length, write=False)
            return self._controller.read(spa, length, key)
        except RmpFault:
            raise AccessRefused(IommuEvent(EventCode.RMP_HW_ERROR, address=spa)) from None
        except NO_MEMORY:
            raise AccessRefused(IommuEvent(failed, address=spa)) from None

    def write(self, address: int, data: bytes, failed: EventCode, *, log: bool = False) -> None:
        """A log's record or a completion word, inside of one page. Raises as ``read``."""
        spa, key = self.located(address)
        try:
            rmp = self._rmp() if self.enforced and (self._logs_checked or not log) else None
            if rmp is not None and page_state(rmp.entry(spa // PAGE_BYTES * PAGE_BYTES)) not in _OWN_WRITES:
                raise AccessRefused(IommuEvent(EventCode.RMP_HW_ERROR, address=spa))
            self._controller.write(spa, data, key)
        except NO_MEMORY:
            raise AccessRefused(IommuEvent(failed, address=spa)) from None

    def load(self, spa: int, length: int, key: int) -> bytes:
        """A device's load. Raises what is in ``NO_MEMORY``."""
        try:
            return self._controller.read(spa, length, key)
        except MachineCheck:
            if self.peers is None or not self.peers.takes_peers(spa, length):
                raise
        return self.peers.load_bytes(spa, length, tee=key > 0)

    def store(self, spa: int, data: bytes, key: int) -> None:
        """A device's store. Raises what is in ``NO_MEMORY``."""
        try:
            self._controller.write(spa, data, key)
        except MachineCheck:
            if self.peers is None or not self.peers.takes_peers(spa, len(data)):
                raise
            self.peers.store_bytes(spa, data, tee=key > 0)

    def check_dma(self, spa: int, length: int, *, write: bool) -> None:
        """Raise RmpFault if the RMP does not let a device touch a range; before SNP it lets everything."""
        rmp = self._rmp() if self.enforced else None
        if rmp is not None:
            rmp.check_dma(spa, length, write=write)
