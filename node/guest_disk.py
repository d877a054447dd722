"""A guest's driver of its disk: requests to any of its memory, through bounce buffers where devices reach only those.

Each is a part of a block, for ``yield from``. Where devices reach all memory, a
request is one operation and nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.operations import BLOCK_BYTES, BlockRead, BlockWrite, Fault
from node.swiotlb import MOST_MAPPED_BYTES, BounceArea, BounceFault, Steps

MOST_BOUNCED_BLOCKS = MOST_MAPPED_BYTES // BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class GuestDisk:
    """The disk as one vCPU uses it, with its bounce buffers.

    Both requests return the NVMe status, 0 for success, and stop at the first part that
    has another. Errors are those of ``BounceArea``; none leaves slots lent.
    """

    area: BounceArea

    def read(self, lba: int, blocks: int, gpa: int) -> Steps[int]:
        """Blocks into memory."""
        if not self.area.bounces:
            return (yield from _asked(BlockRead(lba, blocks, gpa)))
        for first, count in _parts(blocks):
            length, place = count * BLOCK_BYTES, gpa + first * BLOCK_BYTES
            at = yield from self.area.map_from_device(place, length)
            status = yield from self._lent(at, length, self._fetch(lba + first, count, at, place))
            if status:
                return status
        return 0

    def write(self, lba: int, blocks: int, gpa: int) -> Steps[int]:
        """Memory onto blocks."""
        if not self.area.bounces:
            return (yield from _asked(BlockWrite(lba, blocks, gpa)))
        for first, count in _parts(blocks):
            length, place = count * BLOCK_BYTES, gpa + first * BLOCK_BYTES
            at = yield from self.area.map_to_device(place, length)
            status = yield from self._lent(at, length, _asked(BlockWrite(lba + first, count, at)))
            if status:
                return status
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
