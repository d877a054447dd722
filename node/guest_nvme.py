"""A guest's driver of an NVMe disk that was given to it: queues of its own, data straight to and from its memory.

Where devices reach only the guest's pool, queues and data go through bounce buffers; a trusted disk takes them from
private memory. The driver's books stand in private memory; a completion is read once, and believed only for the command
that waits. Each method is a part of a block, for ``yield from``. Memory from ``gpa`` on, private, a page each:

    0, 1    admin queues (submission, completion)
    2, 3    queues of reads and writes
    4       list of pages of one command
    5       what IDENTIFY says
    6       books

The first six lie in the pool where devices reach only that. Source: NVM Express base specification 1.4, 4 to 7.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from node.device_window import DeviceSilent, DeviceWindow
from node.operations import Fault, Read, Write
from node.swiotlb import BounceArea, BounceFault, Steps
from tio.nvme_format import (
    CQE_BYTES,
    CSTS_FATAL,
    CSTS_READY,
    DOORBELLS,
    IDENTIFY_NAMESPACE,
    PAGE_BYTES,
    SQE_BYTES,
    AdminOpcode,
    CompletionEntry,
    Identify,
    IoOpcode,
    Register,
    SubmissionEntry,
)

REGISTER_BAR = 0
BLOCK_BYTES = 4096
"""As disks here are formatted."""
PRIVATE_BYTES = 7 * PAGE_BYTES
SHARED_BYTES = 6 * PAGE_BYTES
"""Bounce buffers that it needs as long as it works, beside those of one request."""
MOST_BLOCKS = (64 << 10) // BLOCK_BYTES
"""Of one command: 64 KiB, which every disk takes; a longer request is cut."""
_ADMIN, _IO = 0, 1
_QUEUE_ENTRIES = PAGE_BYTES // SQE_BYTES
_LIST, _IDENTIFY, _BOOKS = (number * PAGE_BYTES for number in (4, 5, 6))
_DEVICE_BYTES = 6 * PAGE_BYTES
_ENABLE = 1 | 6 << 16 | 4 << 20
"""CC: on, entries of 64 and 16 bytes, 4 KiB pages."""
_QUEUE = struct.Struct("<HHHH")
_BASE = struct.Struct("<Q")
_BOOK_BYTES = _BASE.size + 2 * _QUEUE.size


class NvmeUntrusted(Exception):
    """The disk said something that no disk says; or there is none."""


@dataclass(frozen=True, slots=True)
class _Queue:
    """The driver's side of a pair: tail, head, phase, and the last command's number."""

    tail: int = 0
    head: int = 0
    phase: int = 1
    last: int = 0


@dataclass(frozen=True, slots=True)
class _Books:
    """Where the queues are for the device, and how far each pair is."""

    base: int
    queues: tuple[_Queue, _Queue]

    def pack(self) -> bytes:
        parts = [_QUEUE.pack(one.tail, one.head, one.phase, one.last) for one in self.queues]
        return b"".join([_BASE.pack(self.base), *parts])

    @classmethod
    def parse(cls, data: bytes) -> _Books:
        admin, io = (_Queue(*_QUEUE.unpack_from(data, _BASE.size + at * _QUEUE.size)) for at in (_ADMIN, _IO))
        return cls(_BASE.unpack_from(data)[0], (admin, io))


@dataclass(frozen=True, slots=True)
class GuestNvme:
    """One vCPU's disk. Requests return the NVMe status, 0 for success.

    Errors beside NvmeUntrusted and DeviceSilent: those of ``BounceArea``.
    """

    area: BounceArea
    window: DeviceWindow
    gpa: int

    def start(self) -> Steps[int]:
        """Reset the disk and make its queues; how many blocks it has."""
        base = yield from self.area.map_from_device(self.gpa, _DEVICE_BYTES)
        if base % PAGE_BYTES:
            raise NvmeUntrusted(f"queues: expected memory from a page's beginning, got {base:#x}")
        yield from self._done((Write(base, bytes(_DEVICE_BYTES), self._private),))
        yield from self._keep(_Books(base, (_Queue(), _Queue())))
        size = _QUEUE_ENTRIES - 1
        yield from self.window.store(
            REGISTER_BAR,
            (Register.CC, 0, 4),
            (Register.AQA, size << 16 | size, 4),
            (Register.ASQ, base, 8),
            (Register.ACQ, base + PAGE_BYTES, 8),
            (Register.CC, _ENABLE, 4),
        )
        status = yield from self.window.load(REGISTER_BAR, Register.CSTS)
        if status & (CSTS_READY | CSTS_FATAL) != CSTS_READY:
            raise DeviceSilent(f"CSTS: expected a ready disk, got {status:#x}")
        pairs = size << 16 | _IO
        for one in (
            SubmissionEntry(AdminOpcode.IDENTIFY, 0, nsid=1, prp1=base + _IDENTIFY, cdw10=Identify.NAMESPACE),
            SubmissionEntry(AdminOpcode.CREATE_IO_CQ, 0, prp1=base + 3 * PAGE_BYTES, cdw10=pairs, cdw11=1),
            SubmissionEntry(AdminOpcode.CREATE_IO_SQ, 0, prp1=base + 2 * PAGE_BYTES, cdw10=pairs, cdw11=_IO << 16 | 1),
        ):
            refused = yield from self._submit(_ADMIN, one)
            if refused:
                raise NvmeUntrusted(f"{AdminOpcode(one.opcode).name}: status {refused:#x}")
        (page,) = yield (Read(base + _IDENTIFY, PAGE_BYTES, self._private),)
        if not isinstance(page, bytes):
            raise BounceFault(page)
        if 1 << (_field(page, "LBAF0") >> 16 & 0xFF) != BLOCK_BYTES:
            raise NvmeUntrusted(f"LBAF0: expected blocks of {BLOCK_BYTES} bytes")
        return _field(page, "NSZE")

    def stop(self) -> Steps[None]:
        """Disable the disk, and take its buffers back."""
        books = yield from self._books()
        yield from self.window.store(REGISTER_BAR, (Register.CC, 0, 4))
        yield from self.area.unmap(books.base, _DEVICE_BYTES)

    def read(self, lba: int, blocks: int, gpa: int) -> Steps[int]:
        """Blocks into memory."""
        for first, count in _parts(blocks):
            length, place = count * BLOCK_BYTES, gpa + first * BLOCK_BYTES
            at = yield from self.area.map_from_device(place, length)
            status = yield from self._lent(at, length, IoOpcode.READ, lba + first, place)
            if status:
                return status
        return 0

    def write(self, lba: int, blocks: int, gpa: int) -> Steps[int]:
        """Memory onto blocks."""
        for first, count in _parts(blocks):
            length, place = count * BLOCK_BYTES, gpa + first * BLOCK_BYTES
            at = yield from self.area.map_to_device(place, length)
            status = yield from self._lent(at, length, IoOpcode.WRITE, lba + first, None)
            if status:
                return status
        return 0

    # Commands.

    def _lent(self, at: int, length: int, opcode: IoOpcode, lba: int, place: int | None) -> Steps[int]:
        """One command on memory that is lent, given back however it ends; what came goes to ``place``."""
        try:
            status = yield from self._transfer(at, length, opcode, lba)
            if not status and place is not None:
                yield from self.area.copy_from_device(at, place, length)
        except (NvmeUntrusted, BounceFault, DeviceSilent):
            yield from self.area.unmap(at, length)
            raise
        yield from self.area.unmap(at, length)
        return status

    def _transfer(self, at: int, length: int, opcode: IoOpcode, lba: int) -> Steps[int]:
        first = at // PAGE_BYTES * PAGE_BYTES
        pages = [at, *range(first + PAGE_BYTES, at + length, PAGE_BYTES)]
        second = pages[1] if len(pages) == 2 else 0
        if len(pages) > 2:
            second = (yield from self._books()).base + _LIST
            entries = struct.pack(f"<{len(pages) - 1}Q", *pages[1:])
            yield from self._done((Write(second, entries, self._private),))
        blocks = length // BLOCK_BYTES
        words = {"cdw10": lba & 0xFFFF_FFFF, "cdw11": lba >> 32, "cdw12": blocks - 1}
        return (yield from self._submit(_IO, SubmissionEntry(opcode, 0, nsid=1, prp1=at, prp2=second, **words)))

    def _submit(self, queue: int, entry: SubmissionEntry) -> Steps[int]:
        """One command and its completion: the status."""
        books = yield from self._books()
        pair = books.queues[queue]
        number, tail = (pair.last + 1) & 0xFFFF, (pair.tail + 1) % _QUEUE_ENTRIES
        submissions = books.base + 2 * queue * PAGE_BYTES
        place = submissions + pair.tail * SQE_BYTES
        yield from self._done((Write(place, replace(entry, cid=number).pack(), self._private),))
        yield from self.window.store(REGISTER_BAR, (DOORBELLS + 8 * queue, tail, 4))
        (raw,) = yield (Read(submissions + PAGE_BYTES + pair.head * CQE_BYTES, CQE_BYTES, self._private),)
        if not isinstance(raw, bytes):
            raise BounceFault(raw)
        answer = CompletionEntry.parse(raw)
        if (answer.phase, answer.cid) != (pair.phase, number):
            raise NvmeUntrusted(f"completion of command {number}: {raw.hex()}")
        head = (pair.head + 1) % _QUEUE_ENTRIES
        done = _Queue(tail, head, pair.phase if head else pair.phase ^ 1, number)
        queues = (done, books.queues[_IO]) if queue == _ADMIN else (books.queues[_ADMIN], done)
        yield from self._keep(_Books(books.base, queues))
        yield from self.window.store(REGISTER_BAR, (DOORBELLS + 8 * queue + 4, head, 4))
        return answer.status

    # Memory.

    @property
    def _private(self) -> bool:
        return not self.area.bounces

    def _books(self) -> Steps[_Books]:
        (data,) = yield (Read(self.gpa + _BOOKS, _BOOK_BYTES),)
        if not isinstance(data, bytes):
            raise BounceFault(data)
        return _Books.parse(data)

    def _keep(self, books: _Books) -> Steps[None]:
        yield from self._done((Write(self.gpa + _BOOKS, books.pack()),))

    def _done(self, batch: tuple[Write, ...]) -> Steps[None]:
        for answer in (yield batch):
            if isinstance(answer, Fault):
                raise BounceFault(answer)


def _parts(blocks: int) -> list[tuple[int, int]]:
    """First block and count of each command."""
    return [(first, min(MOST_BLOCKS, blocks - first)) for first in range(0, blocks, MOST_BLOCKS)]


def _field(page: bytes, name: str) -> int:
    offset, width = IDENTIFY_NAMESPACE[name]
    return int.from_bytes(page[offset : offset + width], "little")
