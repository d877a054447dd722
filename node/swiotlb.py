"""Bounce buffers: the part of a guest's memory that devices reach, lent out in slots.

A guest with a key of its own shares one pool with its hypervisor when it boots. A
device reaches nothing else, so what is to go out is copied into the pool, and what
came in out of it. Each vCPU has an area of the pool to itself, as Linux gives one
to each processor, and so takes no lock. An area is cut into slots of 2 KiB, its
slots into segments of 128; one mapping is a run of slots of one segment, 256 KiB at
most. Source: Linux kernel/dma/swiotlb.c (IO_TLB_SIZE, IO_TLB_SEGSIZE).

What is lent out stands in a book in private memory, one bit for each slot: the
hypervisor sees and changes buffers, not the book, and a VM that is paused or moved
takes the book along.

Everything here is a part of a block, for ``yield from``. Where a guest has no key
of its own, devices reach all of its memory: nothing is lent and nothing copied, and
the same program runs.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from node.mechanism import Mechanism
from node.operations import Answer, Copy, Fault, GuestOperation, UpkeepRead, UpkeepWrite
from node.program import Placement

SLOT_BYTES = 2048
SEGMENT_SLOTS = 128
MOST_MAPPED_BYTES = SLOT_BYTES * SEGMENT_SLOTS
"""Most that one mapping takes; a driver cuts longer requests."""

POOL_PERCENT, POOL_MOST_BYTES, POOL_FLOOR_BYTES = 6, 1 << 30, 64 << 20
_WORD_BYTES = SEGMENT_SLOTS // 8
_FULL = (1 << SEGMENT_SLOTS) - 1
_PAGE_BYTES = 4096

T = TypeVar("T")
Steps = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], T]


class PoolSizing(StrEnum):
    """How much of its memory an encrypted guest makes bounce buffers of."""

    SHARE = "share"
    """6 % of memory, at most 1 GiB (read in a measured guest's logs: the likelier)."""
    CLAMPED = "clamped"
    """The same, but never less than 64 MiB, Linux' default, halved while that is more than half of memory.

    As arch/x86/mm/mem_encrypt.c was recollected, which clamps; and kernel/dma/swiotlb.c, which tries half when it
    gets no memory.
    """


def pool_bytes(memory_bytes: int, sizing: PoolSizing = PoolSizing.SHARE) -> int:
    """Bytes of the pool of a guest with so much memory, before they are rounded to pages."""
    wanted = min(memory_bytes * POOL_PERCENT // 100, POOL_MOST_BYTES)
    if sizing is PoolSizing.CLAMPED:
        wanted = max(wanted, POOL_FLOOR_BYTES)
        while wanted > memory_bytes // 2:
            wanted //= 2
    return wanted


class BounceBuffersFull(Exception):
    """No segment of the area has as many free slots in a row as were asked for."""


class BounceFault(Exception):
    """An access to book, buffer or memory was answered with a fault: ``answer``."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(repr(answer))
        self.answer = answer


def book_bytes(shared_bytes: int) -> int:
    """Private memory that the book of an area takes, in whole pages."""
    return -(-_segments(shared_bytes) * _WORD_BYTES // _PAGE_BYTES) * _PAGE_BYTES


def _segments(shared_bytes: int) -> int:
    return -(-(shared_bytes // SLOT_BYTES) // SEGMENT_SLOTS)


@dataclass(frozen=True, slots=True)
class BounceArea:
    """One vCPU's bounce buffers, rebuilt whole from its placement.

    Errors, beside ValueError for a length that no mapping has: BounceBuffersFull,
    BounceFault. None of them leaves slots lent that were free before.
    """

    gpa: int
    length: int
    book_gpa: int
    bounces: bool = True
    """Whether devices reach the pool only; if not, every method gives its buffer back as it is."""

    @classmethod
    def of(cls, placement: Placement) -> BounceArea:
        """The area of the vCPU that a program runs on."""
        return cls(placement.shared_gpa, placement.shared_length, placement.book_gpa, placement.bounces)

    def open(self) -> Steps[None]:
        """Begin the book: every slot is free. Once, before anything is mapped."""
        if not self.bounces:
            return
        words = [0] * (self.length // SLOT_BYTES // SEGMENT_SLOTS)
        if rest := self.length // SLOT_BYTES % SEGMENT_SLOTS:
            words.append(_FULL & ~((1 << rest) - 1))
        book = b"".join([word.to_bytes(_WORD_BYTES, "little") for word in words])
        yield from _done(
            _noted(self.book_gpa + at, book[at : at + _PAGE_BYTES]) for at in range(0, len(book), _PAGE_BYTES)
        )

    def map_to_device(self, gpa: int, length: int) -> Steps[int]:
        """A copy of private memory in lent slots, for a device to read. Returns its address for the device."""
        at = yield from self.map_from_device(gpa, length)
        if self.bounces:
            try:
                yield from self.copy_to_device(gpa, at, length)
            except BounceFault:
                yield from self.unmap(at, length)
                raise
        return at

    def map_from_device(self, gpa: int, length: int) -> Steps[int]:
        """Lent slots for a device to write to, as long as the memory that it is for. Returns their address."""
        if not 0 < length <= MOST_MAPPED_BYTES:
            raise ValueError(f"length: expected 1 to {MOST_MAPPED_BYTES} bytes, got {length}")
        if not self.bounces:
            return gpa
        wanted = -(-length // SLOT_BYTES)
        segment, word, slot = yield from self._search(wanted)
        yield from self._note(segment, word | (1 << wanted) - 1 << slot)
        return self.gpa + (segment * SEGMENT_SLOTS + slot) * SLOT_BYTES

    def copy_to_device(self, gpa: int, at: int, length: int) -> Steps[None]:
        """Copy private memory into slots that are lent already: buffers that are used again and again."""
        if self.bounces and length:
            yield from _done((Copy(gpa, at, length, source_private=True, target_private=False),))

    def copy_from_device(self, at: int, gpa: int, length: int) -> Steps[None]:
        """Copy what a device wrote into private memory.

        ``length`` is at most what was mapped, whatever a device says it wrote: Linux took a device's word for it once.
        """
        if self.bounces and length:
            yield from _done((Copy(at, gpa, length, source_private=False, target_private=True),))

    def unmap(self, at: int, length: int) -> Steps[None]:
        """Take slots back; ValueError if they were not lent, and nothing changes."""
        if not self.bounces:
            return
        first, odd = divmod(at - self.gpa, SLOT_BYTES)
        segment, slot = divmod(first, SEGMENT_SLOTS)
        mask = (1 << -(-length // SLOT_BYTES)) - 1 << slot
        if odd or not 0 <= at - self.gpa < self.length or not 0 < mask <= _FULL:
            raise ValueError(f"buffer: no slots at {at:#x}, {length} bytes")
        (word,) = yield from self._words(segment, 1)
        if word & mask != mask:
            raise ValueError(f"buffer: slots at {at:#x} are not lent")
        yield from self._note(segment, word & ~mask)

    # The book.

    def _search(self, wanted: int) -> Steps[tuple[int, int, int]]:
        """The first segment with that many free slots in a row, its word, and the first of the slots."""
        segments, segment, some = _segments(self.length), 0, 1
        while segment < segments:
            words = yield from self._words(segment, min(some, segments - segment))
            for number, word in enumerate(words, segment):
                slot = _first_run(~word & _FULL, wanted)
                if slot >= 0:
                    return number, word, slot
            segment += len(words)
            # The first is nearly always free; after it a page of the book at a time.
            some = _PAGE_BYTES // _WORD_BYTES
        raise BounceBuffersFull(f"{wanted} slots of {SLOT_BYTES} bytes")

    def _words(self, segment: int, count: int) -> Steps[list[int]]:
        at, length = self.book_gpa + segment * _WORD_BYTES, count * _WORD_BYTES
        (data,) = yield (UpkeepRead(at, length, mechanism=Mechanism.BOUNCE),)
        if not isinstance(data, bytes):
            raise BounceFault(data)
        return [int.from_bytes(data[at : at + _WORD_BYTES], "little") for at in range(0, len(data), _WORD_BYTES)]

    def _note(self, segment: int, word: int) -> Steps[None]:
        yield from _done((_noted(self.book_gpa + segment * _WORD_BYTES, word.to_bytes(_WORD_BYTES, "little")),))


def _noted(gpa: int, data: bytes) -> UpkeepWrite:
    return UpkeepWrite(gpa, data, mechanism=Mechanism.BOUNCE)


def _first_run(free: int, wanted: int) -> int:
    """The lowest bit that begins a run of ``wanted`` ones; -1 for none."""
    runs, have = free, 1
    while have < wanted and runs:
        step = min(have, wanted - have)
        runs &= runs >> step
        have += step
    return (runs & -runs).bit_length() - 1


def _done(operations: Generator[GuestOperation, None, None] | tuple[GuestOperation, ...]) -> Steps[None]:
    for answer in (yield tuple(operations)):
        if isinstance(answer, Fault):
            raise BounceFault(answer)
