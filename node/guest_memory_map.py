"""Where a guest's memory lies, as the usual virtual machine monitor lays it.

RAM below 2 GiB, the rest from 4 GiB on (QEMU's q35 machine), firmware ending at
4 GiB. A pool for device buffers is shared with the host; Linux's SWIOTLB takes
6 % of RAM, at most 1 GiB (``cost/calibration`` sources, section 6). What is left
is divided among the vCPUs' programs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from node.message_place import MessagePlace
from node.program import Placement
from node.swiotlb import book_bytes, pool_bytes
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES
from tio.device_identity import CardKind

LOW_RAM_BYTES = 2 << 30
HIGH_RAM_GPA = 4 << 30
SHARED_GPA = 32 << 20
VALIDATION_BOOK_GPA = 24 << 20
"""Where a kernel that accepts memory lazily notes which chunks it has, in its own memory."""
NIC_GPA = 3 << 30
"""Registers of the network cards, a page for each vCPU's, where no memory is."""
NIC_WINDOW_BYTES = 4096
BOOKS_GPA = 16 << 20
"""Where the kernel keeps its books of bounce buffers, in its own memory."""
SMALLEST_GUEST_BYTES = 64 << 20
SMALLEST_SLICE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Range:
    """A range of guest-physical memory and the page size it is handled in."""

    gpa: int
    length: int
    large: bool = True


@dataclass(frozen=True, slots=True)
class GuestMemoryMap:
    """The layout of a guest with ``memory_bytes`` of RAM (a multiple of 2 MiB) and ``vcpus``."""

    memory_bytes: int
    vcpus: int

    def __post_init__(self) -> None:
        if self.memory_bytes % LARGE_PAGE_BYTES or self.memory_bytes < SMALLEST_GUEST_BYTES:
            raise ValueError(f"memory: expected a multiple of 2 MiB, at least 64 MiB, got {self.memory_bytes} bytes")
        if self.slice_bytes < SMALLEST_SLICE_BYTES:
            least = SMALLEST_SLICE_BYTES >> 20
            raise ValueError(f"memory: expected at least {least} MiB for each of {self.vcpus} vCPUs")

    @property
    def ram(self) -> tuple[Range, ...]:
        """The ranges of RAM."""
        return _ram(self.memory_bytes)

    @property
    def shared(self) -> Range:
        """The pool for device buffers."""
        return _shared(self.memory_bytes)

    @property
    def slice_bytes(self) -> int:
        """Private memory of one vCPU's program."""
        return _slice_bytes(self.memory_bytes, self.vcpus)

    def ghcb_gpa(self, vcpu: int) -> int:
        """The page of the pool that a vCPU exits with, behind what its program has of it; not the boot processor's."""
        return self.shared.gpa + LARGE_PAGE_BYTES // 2 + (vcpu + 1) * self._shared_part - PAGE_BYTES

    def boot_ghcb_gpa(self, launched: Iterable[int]) -> int:
        """The boot processor's: the first page that firmware left alone in a block that it broke, as OVMF has it."""
        return next((part.gpa for part in self.private_ranges(launched) if not part.large), PAGE_BYTES)

    @property
    def _shared_part(self) -> int:
        return (self.shared.length - LARGE_PAGE_BYTES // 2) // self.vcpus // PAGE_BYTES * PAGE_BYTES

    def placement(
        self,
        vm: str,
        vcpu: int,
        seed: int,
        *,
        bounces: bool = True,
        messages: MessagePlace | None = None,
        devices: tuple[CardKind, ...] = (),
        trusts_devices: bool = False,
        devices_move: bool = False,
    ) -> Placement:
        """What a vCPU's program may call its own. The pool's first page holds the device's queues."""
        shared, part, slice_bytes = self.shared, self._shared_part, self.slice_bytes
        return Placement(
            vm=vm,
            vcpu=vcpu,
            base_gpa=shared.gpa + shared.length + vcpu * slice_bytes,
            length=slice_bytes,
            shared_gpa=shared.gpa + LARGE_PAGE_BYTES // 2 + vcpu * part,
            shared_length=part - PAGE_BYTES,
            seed=seed,
            book_gpa=BOOKS_GPA + vcpu * book_bytes(part),
            bounces=bounces,
            messages=messages,
            devices=() if vcpu else devices,
            trusts_devices=trusts_devices,
            devices_move=devices_move,
        )

    def private_ranges(self, launched: Iterable[int]) -> Iterator[Range]:
        """RAM that a guest must accept: all but the pool and the pages (GPAs) that firmware launched.

        2 MiB pages throughout, 4 KiB pages in a 2 MiB block that holds a
        launched page.
        """
        return iter(_private_ranges(self, tuple(launched)))

    def _private(self, launched: tuple[int, ...]) -> Iterator[Range]:
        launched_pages = sorted(set(launched))
        broken = sorted({gpa // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES for gpa in launched_pages})
        taken = set(launched_pages)
        shared = self.shared
        for ram in self.ram:
            position, end = ram.gpa, ram.gpa + ram.length
            stops = [(block, LARGE_PAGE_BYTES) for block in broken if ram.gpa <= block < end]
            if ram.gpa <= shared.gpa < end:
                stops.append((shared.gpa, shared.length))
            for gpa, length in sorted(stops):
                if gpa > position:
                    yield Range(position, gpa - position)
                if gpa in broken:
                    yield from _small_ranges(gpa, taken)
                position = gpa + length
            if end > position:
                yield Range(position, end - position)


@lru_cache(maxsize=1024)
def memory_map(memory_bytes: int, vcpus: int) -> GuestMemoryMap:
    """The layout of a guest, one object for all guests of one size. Raises ValueError for impossible sizes."""
    return GuestMemoryMap(memory_bytes, vcpus)


@lru_cache(maxsize=64)
def _private_ranges(memory: GuestMemoryMap, launched: tuple[int, ...]) -> tuple[Range, ...]:
    """Worked out once for all guests of one size that are launched alike."""
    return tuple(memory._private(launched))  # noqa: SLF001 - of this file


@lru_cache(maxsize=1024)
def _ram(memory_bytes: int) -> tuple[Range, ...]:
    low = min(memory_bytes, LOW_RAM_BYTES)
    rest = memory_bytes - low
    return (Range(0, low), Range(HIGH_RAM_GPA, rest)) if rest else (Range(0, low),)


@lru_cache(maxsize=1024)
def _shared(memory_bytes: int) -> Range:
    return Range(SHARED_GPA, max(1, pool_bytes(memory_bytes) // LARGE_PAGE_BYTES) * LARGE_PAGE_BYTES)


@lru_cache(maxsize=1024)
def _slice_bytes(memory_bytes: int, vcpus: int) -> int:
    free = min(memory_bytes, LOW_RAM_BYTES) - SHARED_GPA - _shared(memory_bytes).length
    return free // vcpus // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES


def _small_ranges(block: int, taken: set[int]) -> Iterator[Range]:
    start: int | None = None
    for gpa in range(block, block + LARGE_PAGE_BYTES, PAGE_BYTES):
        if gpa in taken:
            if start is not None:
                yield Range(start, gpa - start, large=False)
            start = None
        elif start is None:
            start = gpa
    if start is not None:
        yield Range(start, block + LARGE_PAGE_BYTES - start, large=False)
