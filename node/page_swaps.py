"""What a guest's pages go out and come in through when firmware swaps them: frames of the host's, and Metadata pages.

Source: SEV-SNP firmware ABI (56860), SNP_PAGE_MD_INIT, SNP_PAGE_SWAP_OUT and SNP_PAGE_SWAP_IN.

Whoever has pages copied pays for all of them (``with_metadata``), not only for those that hold bytes; so no command
here costs anything by itself.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, NamedTuple

from node import operations as op
from node.expected_answers import expect_done, expect_success
from node.hypervisor_port import Answers, Batch, LaunchRefused, Task
from node.launched_vm import LaunchedVm
from psp import command_buffers as buffers
from psp import swap_buffers
from psp.commands import SnpCommand, command_name
from psp.page_swap import DATA, METADATA, MdataEntry
from psp.status import Status
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

if TYPE_CHECKING:
    from node.hypervisor import Hypervisor

_ENTRIES = PAGE_BYTES // MdataEntry.SIZE
"""Of a Metadata page."""


def with_metadata(pages: int) -> int:
    """Pages that the security processor handles where so many go: the entries of 64 fill one, which goes out too."""
    return pages + metadata_of(pages)


def metadata_of(pages: int) -> int:
    """The Metadata pages of so many, of all levels up to the one whose entry the context holds."""
    level, total = pages, 0
    while level > 1 or (level and not total):
        level = -(-level // _ENTRIES)
        total += level
    return total


class _Gone(NamedTuple):
    """A page that is out, or a row of pages, and where its entry lies; None where that is the root's."""

    kind: int
    spa: int
    mdata: int | None
    sealed: bytes = b""
    hold: op.RmpUpdate | None = None
    """Of a row: what has to be before it can come in."""


class PageSwaps:
    """The frames that pages go out and come in through, and the Metadata pages on the way."""

    def __init__(self, hypervisor: Hypervisor, record: LaunchedVm) -> None:
        self._host = hypervisor
        self._record = record
        self._through = 0
        self._entries = 0
        self.leaves: list[int] = []
        self.pages: list[int] = []
        """Metadata pages of all levels."""
        self._gone: list[_Gone] = []

    def begin(self) -> Task:
        """Take the frame that contents go through: firmware's. Raises LaunchRefused, as all that takes frames."""
        self._through = self._frame()
        yield from self._host.give_to_firmware(self._through)

    def end(self) -> Task:
        """Keep the frames: if the guest stays after all it comes in again through as many, and must not lack any."""
        yield from self._host.take_from_firmware(self._through)
        yield from self._take_pages()
        yield from self._clear()
        self._record.spare += [self._through, *self.pages]

    def _clear(self) -> Task:
        yield tuple([op.HostClear(spa, PAGE_BYTES) for spa in (self._through, *self.pages)])

    def _give_frames(self) -> Task:
        yield from self._clear()
        taken = [self._through, *self.pages]
        for spa in taken:
            self._record.small.remove(spa)
        self._host.frames.release([(spa, PAGE_BYTES) for spa in taken])

    def _frame(self) -> int:
        return self._record.spare.pop(0) if self._record.spare else self._host.small_page(self._record)

    def metadata_page(self) -> Generator[Batch, Answers, int]:
        """A new one."""
        spa = self._frame()
        yield from self._host.give_to_firmware(spa)
        self.pages.append(spa)
        order = swap_buffers.SnpPageMdInit(self._record.gctx, spa)
        answers = yield (op.PspCommand(SnpCommand.PAGE_MD_INIT, self._record.small[0], order.pack(), paid=True),)
        expect_success(answers, SnpCommand.PAGE_MD_INIT)
        return spa

    def out(
        self, kind: int, spa: int, mdata: int | None = None, *, root: bool = False
    ) -> Generator[Batch, Answers, bytes]:
        """A page's ciphertext; its entry is the next of the leaves, unless one is named."""
        if mdata is None and not root:
            mdata = yield from self._next()
        order = swap_buffers.SnpPageSwapOut(
            self._record.gctx, spa, self._through, mdata or 0, 0, kind << 1 | root * swap_buffers.SNP_SWAP_ROOT_MDATA
        )
        command = op.PspCommand(SnpCommand.PAGE_SWAP_OUT, self._record.small[0], order.pack(), paid=True)
        answer, page = yield (command, op.HostRead(self._through, PAGE_BYTES))
        expect_success((answer,), SnpCommand.PAGE_SWAP_OUT)
        assert isinstance(page, bytes)
        self._gone.append(_Gone(kind, spa, mdata, page))
        return page

    def row(self, gpa: int, spa: int, pages: int, *, large: bool) -> Generator[Batch, Answers, int]:
        """How many pages of a row went out in one."""
        mdata = yield from self._next()
        (taken,) = yield (op.SwapRowOut(self._record.gctx, spa, pages, mdata, large),)
        pages = counted(taken, SnpCommand.PAGE_SWAP_OUT)
        self._gone.append(_Gone(DATA, spa, mdata, hold=held_row(self._record, gpa, spa, pages, large=large)))
        return pages

    def _next(self) -> Generator[Batch, Answers, int]:
        if self._entries % _ENTRIES == 0:
            self.leaves.append((yield from self.metadata_page()))
        self._entries += 1
        return self.leaves[-1] + (self._entries - 1) % _ENTRIES * MdataEntry.SIZE

    def close(self) -> Generator[Batch, Answers, tuple[bytes, ...]]:
        """The Metadata pages, swapped out level by level, up to the one whose entry the context holds."""
        level, found = self.leaves, []
        while len(level) > 1:
            above = []
            for at, spa in enumerate(level):
                if at % _ENTRIES == 0:
                    above.append((yield from self.metadata_page()))
                found.append((yield from self.out(METADATA, spa, above[-1] + at % _ENTRIES * MdataEntry.SIZE)))
            level = above
        found.append((yield from self.out(METADATA, level[0], root=True)))
        return tuple(found)

    def undo(self) -> Task:
        """Take in again all that went out, the last first, and give the frames back."""
        # What comes in the host lays down.
        yield from self._host.take_from_firmware(self._through)
        for kind, spa, mdata, sealed, hold in reversed(self._gone):
            if hold is None:
                yield from self.back(kind, spa, sealed, mdata)
                continue
            assert mdata is not None
            held, taken = yield (hold, op.SwapRowIn(self._record.gctx, spa, mdata))
            expect_done((hold,), (held,))
            counted(taken, SnpCommand.PAGE_SWAP_IN)
        yield from self._take_pages()
        yield from self._give_frames()

    # In.

    def open(self, metadata: tuple[bytes, ...], entries: int) -> Task:
        """Take the Metadata pages in, the root's first."""
        self._through = self._frame()
        sizes = [-(-entries // _ENTRIES)]
        while sizes[-1] > 1:
            sizes.append(-(-sizes[-1] // _ENTRIES))
        if sum(sizes) != len(metadata):
            raise LaunchRefused(f"Metadata pages: expected {sum(sizes)}, got {len(metadata)}")
        end = len(metadata)
        above: list[int] = []
        pages: list[int] = []
        for size in reversed(sizes):
            level = []
            for at, sealed in enumerate(metadata[end - size : end]):
                spa = self._frame()
                yield from self._host.give_to_firmware(spa)
                self._record.firmware_pages.append(spa)
                mdata = above[at // _ENTRIES] + at % _ENTRIES * MdataEntry.SIZE if above else None
                yield from self.back(METADATA, spa, sealed, mdata)
                level.append(spa)
            end, above = end - size, level
            pages += level
        self.leaves, self.pages = above, pages

    def back(self, kind: int, spa: int, sealed: bytes, mdata: int | None = None) -> Task:
        """Have a page come in."""
        order = swap_buffers.SnpPageSwapIn(
            self._record.gctx, self._through, spa, mdata or 0,
            kind << 1 | (mdata is None) * swap_buffers.SNP_SWAP_ROOT_MDATA,
        )  # fmt: skip
        command = op.PspCommand(SnpCommand.PAGE_SWAP_IN, self._record.small[0], order.pack(), paid=True)
        laid, answer = yield (op.HostWrite(self._through, sealed), command)
        expect_done((op.HostWrite(self._through, b""),), (laid,))
        expect_success((answer,), SnpCommand.PAGE_SWAP_IN)
        if kind != METADATA:
            yield from self._reclaim(spa)

    def _reclaim(self, spa: int) -> Task:
        reclaim = buffers.SnpPageReclaim(address=spa).pack()
        (answer,) = yield (op.PspCommand(SnpCommand.PAGE_RECLAIM, self._host.command_page, reclaim, paid=True),)
        expect_success((answer,), SnpCommand.PAGE_RECLAIM)

    def _take_pages(self) -> Task:
        """Metadata pages are the host's again."""
        for spa in self.pages:
            yield from self._reclaim(spa)
            (answer,) = yield (op.RmpUpdate(spa, PAGE_BYTES, RmpEntry()),)
            expect_done((op.RmpUpdate(spa, PAGE_BYTES, RmpEntry()),), (answer,))

    def next_entry(self) -> int:
        """Of the leaves."""
        self._entries += 1
        return self.leaves[(self._entries - 1) // _ENTRIES] + (self._entries - 1) % _ENTRIES * MdataEntry.SIZE

    def shut(self) -> Task:
        """Give the frames back."""
        yield from self._take_pages()
        for spa in self.pages:
            self._record.firmware_pages.remove(spa)
        yield from self._give_frames()


def held_row(record: LaunchedVm, gpa: int, spa: int, pages: int, *, large: bool) -> op.RmpUpdate:
    """Pre-Guest for each page of a row that went out: firmware takes no other pages in."""
    size = LARGE_PAGE_BYTES if large else PAGE_BYTES
    entry = RmpEntry(assigned=True, immutable=True, large=large, gpa=gpa, asid=record.asid)
    return op.RmpUpdate(spa, pages * size, entry)


def counted(answer: object, command: SnpCommand) -> int:
    """How many pages a row's order was carried out for. Raises LaunchRefused with the status where for none."""
    if not isinstance(answer, int) or answer <= 0:
        status = Status(-answer).name if isinstance(answer, int) else repr(answer)
        raise LaunchRefused(f"{command_name(command)}: {status}")
    return answer
