"""A VM's disk: an NVMe controller whose DMA reaches the guest's shared memory.

The hypervisor emulates the controller, so the device's addresses are the
guest's and each access is the host's own: through the nested page table, with
its entries' C-bit, and checked against the RMP like any store of the host. A guest
that points the disk at private memory gets the controller's error, or, without
an RMP, ciphertext.
"""

from __future__ import annotations

from node import operations as op
from node.ciphertext_hiding import MemoryReader
from node.dram import MachineCheck
from node.guest_memory_map import SHARED_GPA
from node.memory_controller import MemoryController, NoHostKey
from node.nested_page_table import WRITE, NestedPageFault, NestedPageTable
from node.rmp import ReverseMapTable, RmpFault
from tio.dma_port import DmaFault
from tio.nvme import NvmeController
from tio.nvme_driver import NvmeDriver, NvmeDriverError
from tio.nvme_format import Status
from tio.nvme_namespace import NvmeNamespace

DISK_BLOCKS = 16 << 20
"""Logical blocks of a VM's disk: 64 GiB, held sparsely."""

_ADDRESSES = 1 << 52
"""Physical addresses a guest can name at most (APM volume 2, 5.1)."""


def refusal(lba: int, blocks: int) -> Status:
    """SUCCESS, or what the controller says of a range of blocks that a disk does not have."""
    if blocks < 0 or lba < 0:
        return Status.INVALID_FIELD
    return Status.LBA_OUT_OF_RANGE if lba + blocks > DISK_BLOCKS else Status.SUCCESS


class _GuestPort:
    """The host's way into one guest's memory, as a device port."""

    def __init__(
        self, controller: MemoryController, view: MemoryReader, rmp: ReverseMapTable | None, nested: NestedPageTable
    ) -> None:
        self._controller = controller
        self._view = view
        self._rmp = rmp
        self._nested = nested

    def read(self, address: int, length: int) -> bytes:
        """Load as the host maps the guest's memory."""
        try:
            segments = self._nested.translate(address, length)
            return b"".join([self._view.read(spa, part, key) for spa, part, _, key in segments])
        except (NestedPageFault, MachineCheck, NoHostKey, RmpFault, ValueError):
            raise DmaFault(address, length, write=False) from None

    def write(self, address: int, data: bytes) -> None:
        """Store as the host maps the guest's memory, if the RMP lets it write there."""
        try:
            segments = self._nested.translate(address, len(data), WRITE)
            if self._rmp is not None:
                for spa, part, _, _ in segments:
                    self._rmp.check_host_write(spa, part)
            start = 0
            for spa, part, _, key in segments:
                self._controller.write(spa, data[start : start + part], key)
                start += part
        except (NestedPageFault, MachineCheck, NoHostKey, RmpFault, ValueError):
            raise DmaFault(address, len(data), write=True) from None


class Disk:
    """One VM's disk with its driver; the driver's queues lie at the start of the shared pool."""

    def __init__(
        self, memory: MemoryController, view: MemoryReader, rmp: ReverseMapTable | None, nested: NestedPageTable
    ) -> None:
        port = _GuestPort(memory, view, rmp, nested)
        self.media = NvmeNamespace(DISK_BLOCKS, op.BLOCK_BYTES)
        controller = NvmeController(port, self.media)
        self._driver = NvmeDriver(controller, port, SHARED_GPA)
        self._started = False

    def transfer(self, one: op.BlockRead | op.BlockWrite) -> int:
        """Execute one request; returns its NVMe status."""
        if one.blocks <= 0 or not 0 <= one.gpa < _ADDRESSES - one.blocks * op.BLOCK_BYTES:
            return Status.INVALID_FIELD
        refused = refusal(one.lba, one.blocks)
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
