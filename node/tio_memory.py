"""Pages that a hypervisor lends the security processor for trusted I/O, and takes back.

Contexts and the buffers that firmware writes are pages in Firmware state: what is to stand in them is written before
they are lent. Each is a task for ``yield from``. Source: SEV-SNP firmware ABI, chapter 5; ``spec/tio/tio-overview.md``.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from node import operations as op
from node.expected_answers import expect_done, expect_success
from node.frame_allocator import FrameAllocator, OutOfMemory
from node.hypervisor_port import Answers, Batch, Task
from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.system_bus import PAGE_BYTES, RmpEntry

_HYPERVISOR = RmpEntry()
_FIRMWARE = RmpEntry(assigned=True, immutable=True)
Frames = Generator[Batch, Answers, tuple[int, ...]]


class TioMemory:
    """Frames for one host's trusted I/O. ``command_page`` carries command buffers."""

    def __init__(self, frames: FrameAllocator, command_page: int) -> None:
        self.command_page = command_page
        self._frames = frames

    def take(self, count: int) -> tuple[int, ...]:
        """So many pages of the hypervisor's own. Raises OutOfMemory."""
        pieces = self._frames.allocate(count * PAGE_BYTES, PAGE_BYTES)
        return tuple([spa + at for spa, length in pieces for at in range(0, length, PAGE_BYTES)])

    def row(self, count: int) -> int:
        """So many pages in a row: the first. Raises OutOfMemory."""
        pieces = self._frames.allocate(count * PAGE_BYTES, PAGE_BYTES)
        if len(pieces) > 1:
            self._frames.release(pieces)
            raise OutOfMemory(count * PAGE_BYTES, self._frames.free_bytes)
        return pieces[0][0]

    def give_back(self, pages: Sequence[int]) -> Task:
        """Clear pages of the hypervisor's own, and let others have them."""
        yield tuple(op.HostClear(spa, PAGE_BYTES) for spa in pages)
        self._frames.release([(spa, PAGE_BYTES) for spa in pages])

    def lend(self, contents: Sequence[bytes]) -> Frames:
        """A page for each of these contents, which the firmware has from now on."""
        pages = self.take(len(contents))
        batch: list[op.HypervisorOperation] = [
            op.HostWrite(spa, data) for spa, data in zip(pages, contents, strict=True) if data
        ]
        batch += [op.RmpUpdate(spa, PAGE_BYTES, _FIRMWARE) for spa in pages]
        expect_done(batch, (yield tuple(batch)))
        return pages

    def reclaim(self, pages: Sequence[int]) -> Task:
        """Take pages back that were lent."""
        batch = [
            op.PspCommand(SnpCommand.PAGE_RECLAIM, self.command_page, buffers.SnpPageReclaim(address=spa).pack())
            for spa in pages
        ]
        expect_success((yield tuple(batch)), SnpCommand.PAGE_RECLAIM)
        updates = [op.RmpUpdate(spa, PAGE_BYTES, _HYPERVISOR) for spa in pages]
        expect_done(updates, (yield tuple(updates)))
        yield from self.give_back(pages)
