"""What a hypervisor holds of a VM without a key that came from another host, until somebody asks for its record."""

from __future__ import annotations

from typing import NamedTuple

from node.firmware_image import FirmwareImage
from node.frame_allocator import FrameAllocator, OutOfMemory, Wanted
from node.generation import Generation
from node.launched_vm import LaunchedVm
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES


class PlaceShape(NamedTuple):
    """How the memory of a VM lies whose parts lie one behind the other: pieces as (GPA, offset, length).

    ``wanted`` are its memory, a page of the hypervisor's own with those for its save areas, and nested tables.
    """

    pieces: tuple[tuple[int, int, int], ...]
    wanted: Wanted


class VmPlace:
    """Its frames: memory in one piece, a page of the hypervisor's own, nested tables in one piece, and save areas.

    They may be taken before anybody knows where they are. Who asks has the allocator carry out what it put off.
    """

    __slots__ = (
        "_areas", "_era", "_firmware", "_frames", "_small", "_start", "_tables", "count", "launched_gpas", "shape",
    )  # fmt: skip

    def __init__(self, firmware: FirmwareImage, shape: PlaceShape, frames: FrameAllocator) -> None:
        self._firmware = firmware
        self._frames = frames
        self._era = -1
        self.shape = shape
        self.count = 0
        """Of save areas, once it is there."""
        self._areas: tuple[int, ...] = ()
        self.launched_gpas: tuple[int, ...] = ()

    # What it has is taken and given back at once, or when somebody asks for an address.

    def take(self) -> bool:
        """Take all but save areas. False, with nothing taken, where it is not there in these pieces."""
        frames, (run, _, last) = self._frames, self.shape.wanted
        start = frames.allocate_run(run, LARGE_PAGE_BYTES)
        if start is None:
            return False
        taken = [(start, run)]
        try:
            taken += frames.allocate(PAGE_BYTES, PAGE_BYTES)
            taken += frames.allocate_last(last, PAGE_BYTES)
        except OutOfMemory:
            frames.release(taken)
            return False
        _, (small, _), (tables, _), *more = taken
        if more:
            frames.release(taken)
            return False
        self._start, self._small, self._tables = start, small, tables
        return True

    def has_room(self) -> bool:
        """Whether ``take_later`` would come to True."""
        return self._frames.has_room(self.shape.wanted)

    def take_later(self) -> bool:
        """The same with nobody knowing where yet."""
        frames = self._frames
        wanted = self.shape.wanted
        certain = frames.take_later(self.take, wanted, wanted.pages - 1)
        self._era = frames.era
        return certain

    def take_areas(self, count: int) -> None:
        """Take pages for save areas. Raises OutOfMemory with none taken."""
        self._areas = self._frames.allocate_pages(count)
        self.count = count

    def _take_areas(self) -> None:
        self._areas = self._frames.allocate_pages(self.count)

    def take_areas_later(self, count: int) -> bool:
        """The same with nobody knowing where yet."""
        certain = self._frames.take_rest_later(self._take_areas, count, self._era)
        if certain:
            self.count = count
        return certain

    def give_back(self) -> None:
        """Give back all of it."""
        self._frames.release(self.frames)

    def give_back_later(self) -> None:
        """The same, before anybody asks for an address of what is free."""
        run, pages, last = wanted = self.shape.wanted
        if pages != 1 + self.count:
            wanted = Wanted(run, 1 + self.count, last)
        self._frames.give_later(self.give_back, wanted, self._era)

    # Where it is.

    @property
    def ram(self) -> tuple[int, int]:
        """(SPA, length) of its memory."""
        self._frames.settle()
        return self._start, self.shape.wanted.run

    @property
    def maps(self) -> tuple[tuple[int, int, int], ...]:
        """(GPA, SPA, length) of the same."""
        start, _ = self.ram
        return tuple([(gpa, start + offset, length) for gpa, offset, length in self.shape.pieces])

    @property
    def tables(self) -> tuple[int, int]:
        """(SPA, length) of its nested tables."""
        self._frames.settle()
        return self._tables, self.shape.wanted.last

    @property
    def areas(self) -> tuple[int, ...]:
        """Save areas, once it is there."""
        self._frames.settle()
        return self._areas

    @property
    def small(self) -> tuple[int, ...]:
        """Pages that are no memory of its own."""
        self._frames.settle()
        return self._small, *self._areas

    @property
    def frames(self) -> list[tuple[int, int]]:
        """All of it, as (SPA, length)."""
        return [self.ram, self.tables, *[(spa, PAGE_BYTES) for spa in self.small]]

    def record(self) -> LaunchedVm:
        """The record of such a VM."""
        record = LaunchedVm(Generation.PLAIN, self._firmware)
        record.ram, record.small, record.tables = list(self.maps), list(self.small), [self.tables]
        record.save_areas, record.launched_gpas = list(self.areas), self.launched_gpas
        return record
