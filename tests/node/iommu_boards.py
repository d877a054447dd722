"""Boards that are up, and a device in one of their slots."""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence

from node import operations as op
from node.board import Board
from node.counter_random import CounterRandom
from node.hypervisor import Hypervisor
from node.iommu_driver import EVENTS, IommuDriver, read_register, write_register
from node.iommu_events import EVENT_BYTES, IommuEvent
from node.iommu_registers import Register
from node.platform import Platform
from node.product import PRODUCTS
from psp.system_bus import PAGE_BYTES

MEMORY_BYTES = 64 << 20
SLOT, REQUESTER, DOMAIN = 3, 0x118, 7
"""Bus 1, device 3, function 0."""
IOVA = 0x40_0000
TABLES = 8 << 20
"""Page tables are taken from here on."""
TARGET = 16 << 20


def switched_on(product: str = "Milan", platform: Platform | None = None, memory_bytes: int = MEMORY_BYTES) -> Board:
    """A board on which no software has run yet."""
    return Board("board", PRODUCTS[product], memory_bytes, 100, CounterRandom(1), platform or Platform())


def do(board: Board, task: Generator[tuple[op.HypervisorOperation, ...], tuple[op.Answer, ...], object]) -> None:
    """Run a task of the hypervisor; each of its operations must succeed."""
    answers = None
    while True:
        try:
            batch = task.send(answers)
        except StopIteration:
            return
        answers = board.execute_host(batch)
        assert not any(isinstance(one, op.Fault) for one in answers), answers


def host(board: Board, *batch: op.HypervisorOperation) -> tuple[op.Answer, ...]:
    return board.execute_host(batch)


def brought_up(product: str = "Milan", platform: Platform | None = None) -> Board:
    """A board that its hypervisor has brought up, SNP where the product has it."""
    board = switched_on(product, platform)
    hypervisor = Hypervisor(board.product, board.dram.size_bytes, 100, {})
    do(board, hypervisor.bring_up())
    return board


class Driver(IommuDriver):
    """A driver whose tables lie one after another from ``TABLES``."""

    def __init__(self) -> None:
        self.taken = 0
        super().__init__(self._next)

    def _next(self) -> int:
        self.taken += 1
        return TABLES + (self.taken - 1) * PAGE_BYTES


def attached(board: Board, pages: Sequence[tuple[int, int]] = ((IOVA, TARGET),), **how: int) -> Driver:
    """A driver that has given the device in ``SLOT`` these pages."""
    driver = Driver()
    do(board, driver.attach(REQUESTER, DOMAIN, pages, **how))
    return driver


def invalidate_page(domain: int, iova: int) -> bytes:
    """INVALIDATE_IOMMU_PAGES for 4 KiB: code 3 in bits 63:60, the domain in bits 47:32."""
    return struct.pack("<IIQ", 0, 3 << 28 | domain, iova)


def load(board: Board, iova: int = IOVA, length: int = 16, slot: int = SLOT) -> op.Answer:
    """What the device gets from memory."""
    return host(board, op.DeviceRead(slot, iova, length))[0]


def store(board: Board, iova: int = IOVA, data: bytes = b"from the device!", slot: int = SLOT) -> None:
    """Let the device write; it never learns what became of it."""
    assert host(board, op.DeviceWrite(slot, iova, data)) == (None,)


def events(board: Board) -> list[IommuEvent]:
    """What the host reads in the log since it last read, by its own means."""
    head, tail = host(board, read_register(Register.EVENT_HEAD), read_register(Register.EVENT_TAIL))
    assert isinstance(head, int)
    assert isinstance(tail, int)
    found = []
    while head != tail:
        (raw,) = host(board, op.HostRead(EVENTS + head, EVENT_BYTES))
        assert isinstance(raw, bytes)
        found.append(IommuEvent.parse(raw))
        head = (head + EVENT_BYTES) % (512 << 10)
    host(board, write_register(Register.EVENT_HEAD, head))
    return found
