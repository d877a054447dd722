"""A guest's driver of its disk: requests to any of its memory, through bounce buffers where devices reach only those.

Each is a part of a block, for ``yield from``. Where devices reach all memory, a
request is one operation and nothing is copied. A kernel that encrypts its disk hands out
ciphertext alone, whatever devices reach.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.disk_encryption import BLOCK, REQUEST, decrypted, encrypted
from node.operations import BLOCK_BYTES, Answer, BlockRead, BlockWrite, Fault, GuestWork, Read, Write
from node.program import Placement
from node.swiotlb import MOST_MAPPED_BYTES, BounceArea, BounceFault, Steps

MOST_BOUNCED_BLOCKS = MOST_MAPPED_BYTES // BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class GuestDisk:
    """The disk as one vCPU uses it, with its bounce buffers.

    Both requests return the NVMe status, 0 for success, and stop at the first part that
    has another. Errors are those of ``BounceArea``; none leaves slots lent. With a ``key`` what
    lies on the disk is encrypted by the guest; its buffer is the area, also where devices reach all memory.
    """

    area: BounceArea
    key: bytes = b""

    @classmethod
    def of(cls, placement: Placement) -> GuestDisk:
        """The disk of the vCPU that a program runs on."""
        return cls(BounceArea.of(placement), placement.disk_key)

    def read(self, lba: int, blocks: int, gpa: int) -> Steps[int]:
        """Blocks into memory."""
        if not self.area.bounces and not self.key:
            return (yield from _asked(BlockRead(lba, blocks, gpa)))
        for first, count in _parts(blocks):
            length, place = count * BLOCK_BYTES, gpa + first * BLOCK_BYTES
            at = yield from self.area.map_from_device(self._buffer(place), length)
            fetch = self._decrypt if self.key else self._fetch
            status = yield from self._lent(at, length, fetch(lba + first, count, at, place))
            if status:
                return status
        return 0

    def write(self, lba: int, blocks: int, gpa: int) -> Steps[int]:
        """Memory onto blocks."""
        if not self.area.bounces and not self.key:
            return (yield from _asked(BlockWrite(lba, blocks, gpa)))
        for first, count in _parts(blocks):
            length, place = count * BLOCK_BYTES, gpa + first * BLOCK_BYTES
            if self.key:
                at = yield from self.area.map_from_device(self._buffer(place), length)
                status = yield from self._lent(at, length, self._encrypt(lba + first, count, place, at))
            else:
                at = yield from self.area.map_to_device(place, length)
                status = yield from self._lent(at, length, _asked(BlockWrite(lba + first, count, at)))
            if status:
                return status
        return 0

    def _buffer(self, place: int) -> int:
        """What is mapped for a device: ciphertext is made and opened beside the memory that it is of."""
        return self.area.gpa if self.key and not self.area.bounces else place

    def _encrypt(self, lba: int, blocks: int, place: int, at: int) -> Steps[int]:
        (plain,) = yield (Read(place, blocks * BLOCK_BYTES),)
        data = encrypted(self.key, lba, _octets(plain))
        *_, answer = yield (*_work(blocks), Write(at, data, private=not self.area.bounces))
        if isinstance(answer, Fault):
            raise BounceFault(answer)
        return (yield from _asked(BlockWrite(lba, blocks, at)))

    def _decrypt(self, lba: int, blocks: int, at: int, place: int) -> Steps[int]:
        status = yield from _asked(BlockRead(lba, blocks, at))
        if status:
            return status
        (sealed,) = yield (Read(at, blocks * BLOCK_BYTES, private=not self.area.bounces),)
        data = decrypted(self.key, lba, _octets(sealed))
        *_, answer = yield (*_work(blocks), Write(place, data))
        if isinstance(answer, Fault):
            raise BounceFault(answer)
        return 0

    def _fetch(self, lba: int, blocks: int, at: int, place: int) -> Steps[int]:
        status = yield from _asked(BlockRead(lba, blocks, at))
        if not status:
            # What came is copied once and only then looked at: its place can change while one looks.
            yield from self.area.copy_from_device(at, place, blocks * BLOCK_BYTES)
        return status

    def _lent(self, at: int, length: int, work: Steps[int]) -> Steps[int]:
        """Do work on slots that are lent, and give them back however it ends."""
        try:
            status = yield from work
        except BounceFault:
            yield from self.area.unmap(at, length)
            raise
        yield from self.area.unmap(at, length)
        return status


def _parts(blocks: int) -> list[tuple[int, int]]:
    """First block and count of each request that one mapping holds."""
    most = MOST_BOUNCED_BLOCKS
    return [(first, min(most, blocks - first)) for first in range(0, blocks, most)]


def _asked(one: BlockRead | BlockWrite) -> Steps[int]:
    (status,) = yield (one,)
    if isinstance(status, Fault) or not isinstance(status, int):
        raise BounceFault(status)
    return status


def _work(blocks: int) -> tuple[GuestWork, ...]:
    return GuestWork(REQUEST), GuestWork(BLOCK, blocks)


def _octets(answer: Answer) -> bytes:
    if not isinstance(answer, bytes):
        raise BounceFault(answer)
    return answer
