"""A VM's disk: an NVMe controller whose DMA reaches the guest's shared memory.

The hypervisor emulates the controller, so the device's addresses are the
guest's and each access is the host's own: through the nested page table, with
its entries' C-bit, and checked against the RMP like any store of the host. A guest
that points the disk at private memory gets the controller's error, or, without
an RMP, ciphertext.
"""

from __future__ import annotations

from node import operations as op
from node.disk_file import DiskFile
from node.guest_memory_map import SHARED_GPA
from node.guest_port import GuestPort
from node.host_system_bus import HostSystemBus
from node.memory_controller import MemoryController
from node.nested_page_table import NestedPageTable
from tio.dma_port import DmaFault
from tio.nvme import NvmeController
from tio.nvme_driver import NvmeDriver, NvmeDriverError
from tio.nvme_format import Status
from tio.nvme_namespace import NvmeNamespace

DISK_BLOCKS = 16 << 20
"""Logical blocks of a VM's disk without a file behind it: 64 GiB, held sparsely."""

_ADDRESSES = 1 << 52
"""Physical addresses a guest can name at most (APM volume 2, 5.1)."""


def refusal(lba: int, blocks: int, disk_blocks: int) -> Status:
    """SUCCESS, or what the controller says of a range of blocks that a disk does not have."""
    if blocks < 0 or lba < 0:
        return Status.INVALID_FIELD
    return Status.LBA_OUT_OF_RANGE if lba + blocks > disk_blocks else Status.SUCCESS


def blocks_of(file: DiskFile | None) -> int:
    """Logical blocks of a disk."""
    return DISK_BLOCKS if file is None else file.blocks


class Disk:
    """One VM's disk with its driver; the driver's queues lie at the start of the shared pool.

    ``file`` is what is behind it, with its size; None for an empty disk.
    """

    def __init__(
        self, memory: MemoryController, bus: HostSystemBus, nested: NestedPageTable, file: DiskFile | None = None
    ) -> None:
        port = GuestPort(memory, bus, nested)
        self.media = NvmeNamespace(blocks_of(file), op.BLOCK_BYTES, file)
        controller = NvmeController(port, self.media)
        self._driver = NvmeDriver(controller, port, SHARED_GPA)
        self._started = False

    def transfer(self, one: op.BlockRead | op.BlockWrite) -> int:
        """Execute one request; returns its NVMe status."""
        if not 0 < one.blocks <= op.MOST_BLOCKS or not 0 <= one.gpa < _ADDRESSES - one.blocks * op.BLOCK_BYTES:
            return Status.INVALID_FIELD
        refused = refusal(one.lba, one.blocks, self.media.blocks)
        if refused:
            return refused
        try:
            if not self._started:
                self._driver.start()
                self._started = True
            extents = [(one.gpa, one.blocks * op.BLOCK_BYTES)]
            move = self._driver.read if isinstance(one, op.BlockRead) else self._driver.write
            return move(one.lba, one.blocks, extents)
        except (NvmeDriverError, DmaFault):
            # The queues lie in memory that the guest can spoil or take away: its disk fails, nothing else.
            self._started = False
            return Status.DATA_TRANSFER_ERROR
