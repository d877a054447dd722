"""The data fabric's routing of addresses: what of memory is sent to where no memory is (Fabricked, AMD-SB-3034).

MMIO routes go before those to memory, for every requester, the security processor
too. Boot firmware locks them; one that does not leaves them to the host.
"""

from __future__ import annotations

from node.dram import Dram, Unanswered


class DataFabric:
    """Routes of a host's memory. ``locked`` is what boot firmware left."""

    def __init__(self, dram: Dram, *, locked: bool) -> None:
        self.locked = locked
        self._dram = dram

    def route(self, spa: int, length: int, *, to_memory: bool) -> None:
        """Send whole pages to nowhere, where writes are lost and reads give ones, or back to memory.

        A locked fabric ignores it. Raises ValueError off page borders, MachineCheck outside of memory.
        """
        if self.locked:
            return
        if to_memory:
            self._dram.straighten(spa, length)
        else:
            self._dram.drop(spa, length, Unanswered.ONES)
