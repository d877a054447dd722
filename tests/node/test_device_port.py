"""Devices behind the IOMMU: a disk that works there, and what it is told when its pages are taken away."""

from __future__ import annotations

import pytest
from iommu_boards import IOVA, REQUESTER, SLOT, TARGET, Driver, attached, brought_up, do, events, host, load, store

from node import operations as op
from node.board import Board
from node.iommu_events import FLAG_WRITE, EventCode, IommuEvent
from node.platform import HostMode, Platform
from psp.system_bus import PAGE_BYTES, RmpEntry
from tio.nvme import NvmeController
from tio.nvme_driver import DRIVER_MEMORY_BYTES, NvmeDriver
from tio.nvme_format import Status
from tio.nvme_namespace import NvmeNamespace

BLOCK = 4096
QUEUES, DATA = 20 << 20, 24 << 20
TEXT = b"what the disk holds".ljust(BLOCK, b".")


class HostPort:
    """The driver's way to memory: the host's own loads and stores."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def read(self, address: int, length: int) -> bytes:
        (data,) = host(self._board, op.HostRead(address, length))
        assert isinstance(data, bytes)
        return data

    def write(self, address: int, data: bytes) -> None:
        assert host(self._board, op.HostWrite(address, data)) == (None,)


def disk(board: Board) -> NvmeDriver:
    """A disk in a slot whose domain maps the driver's pages and one of data, each to itself."""
    pages = [(at, at) for at in range(QUEUES, QUEUES + DRIVER_MEMORY_BYTES, PAGE_BYTES)]
    do(board, Driver().attach(REQUESTER, 1, [*pages, (DATA, DATA)]))
    controller = NvmeController(board.device_port(SLOT), NvmeNamespace(1024, BLOCK))
    driver = NvmeDriver(controller, HostPort(board), QUEUES)
    driver.start()
    return driver


@pytest.mark.parametrize("product", ["Naples", "Rome", "Milan", "Turin"])
@pytest.mark.parametrize("mode", [HostMode.NONE, HostMode.TSME])
def test_a_disk_works_behind_the_iommu(product: str, mode: HostMode) -> None:
    board = brought_up(product, Platform(mode=mode))
    driver = disk(board)
    HostPort(board).write(DATA, TEXT)
    assert driver.write(5, 1, [(DATA, BLOCK)]) == Status.SUCCESS
    HostPort(board).write(DATA, bytes(BLOCK))
    assert driver.read(5, 1, [(DATA, BLOCK)]) == Status.SUCCESS
    assert HostPort(board).read(DATA, BLOCK) == TEXT
    assert events(board) == []


def test_what_a_disk_writes_to_a_guest_s_page_is_lost_and_only_the_host_s_log_tells() -> None:
    board = brought_up()
    driver = disk(board)
    HostPort(board).write(DATA, TEXT)
    assert driver.write(5, 1, [(DATA, BLOCK)]) == Status.SUCCESS
    assert host(board, op.RmpUpdate(DATA, PAGE_BYTES, RmpEntry(assigned=True, gpa=0x5000, asid=9))) == (0,)
    before = board.dram.read(DATA, BLOCK)
    # The disk's store is posted: it calls the command a success.
    assert driver.read(6, 1, [(DATA, BLOCK)]) == Status.SUCCESS
    assert board.dram.read(DATA, BLOCK) == before
    # Its load is not: the command fails.
    assert driver.write(7, 1, [(DATA, BLOCK)]) == Status.DATA_TRANSFER_ERROR
    assert events(board) == [
        IommuEvent(EventCode.RMP_PAGE_FAULT, REQUESTER, FLAG_WRITE, 0, DATA),
        IommuEvent(EventCode.RMP_PAGE_FAULT, REQUESTER, 0, 0, DATA),
    ]


def test_a_transfer_beyond_what_is_mapped_fails_at_its_first_page_outside() -> None:
    board = brought_up()
    driver = disk(board)
    assert driver.write(5, 2, [(DATA, 2 * BLOCK)]) == Status.DATA_TRANSFER_ERROR
    (told,) = events(board)
    assert (told.code, told.address) == (EventCode.IO_PAGE_FAULT, DATA + PAGE_BYTES)


@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_a_device_finds_what_the_host_has_in_its_caches(product: str) -> None:
    board = brought_up(product, Platform(caches=True))
    attached(board)
    assert host(board, op.HostWrite(TARGET, b"only in a cache.")) == (None,)
    assert board.dram.read(TARGET, 16) == bytes(16)
    assert load(board) == b"only in a cache."
    store(board, IOVA, b"from the device!")
    assert host(board, op.HostRead(TARGET, 16)) == (b"from the device!",)
