"""The page state change structure: a list of pages in scratch memory that guest and hypervisor work through.

Header of 8 bytes (current entry, last entry, reserved), then entries of 8 bytes. The
hypervisor moves the current entry on and notes in each entry how far it came; the
guest exits again until the current entry is past the last. Source: GHCB
specification (56421), 4.1.6, as KVM reads it (snp_begin_psc in arch/x86/kvm/svm/sev.c).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache

from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

MOST_ENTRIES = 253
HEADER_BYTES = 8
ENTRY_BYTES = 8
LIST_BYTES = HEADER_BYTES + MOST_ENTRIES * ENTRY_BYTES

INVALID_HEADER = 1 << 32 | 1
INVALID_ENTRY = 1 << 32 | 2
GENERIC_FAILURE = 0x100 << 32
"""SW_EXITINFO2 of a list that the hypervisor refuses, and of one whose change failed on the way."""

_HEADER = struct.Struct("<HHI")
_PAGES_OF_A_LARGE_ONE = LARGE_PAGE_BYTES // PAGE_BYTES


class PageOperation(IntEnum):
    """Bits 55:52 of an entry."""

    PRIVATE = 1
    SHARED = 2
    PSMASH = 3
    UNSMASH = 4


class PageListRefused(Exception):
    """A list that is malformed; ``status`` is its SW_EXITINFO2. Nothing was changed for it."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class PageStateEntry:
    """One page. ``done`` counts the pages of 4 KiB in it that are through."""

    gpa: int
    operation: int
    large: bool = False
    done: int = 0

    @property
    def pages(self) -> int:
        """Pages of 4 KiB that it covers."""
        return _PAGES_OF_A_LARGE_ONE if self.large else 1

    @property
    def through(self) -> bytes:
        """Its eight bytes once all of it is done."""
        return self._packed(self.pages)

    def pack(self) -> bytes:
        """Its eight bytes."""
        return self._packed(self.done)

    def _packed(self, done: int) -> bytes:
        word = done | self.gpa // PAGE_BYTES << 12 | self.operation << 52 | self.large << 56
        return word.to_bytes(ENTRY_BYTES, "little")

    @classmethod
    def parse(cls, data: bytes) -> PageStateEntry:
        """An entry out of eight bytes. Raises PageListRefused."""
        word = int.from_bytes(data, "little")
        operation = word >> 52 & 0xF
        entry = cls((word >> 12 & (1 << 40) - 1) * PAGE_BYTES, operation, bool(word >> 56 & 1), word & 0xFFF)
        if word >> 57:
            raise PageListRefused(INVALID_ENTRY, "reserved bits")
        if operation not in _OPERATIONS:
            raise PageListRefused(INVALID_ENTRY, f"operation {operation}")
        if entry.gpa % (entry.pages * PAGE_BYTES):
            raise PageListRefused(INVALID_ENTRY, "a page of 2 MiB at an address of none")
        if entry.done > entry.pages:
            raise PageListRefused(INVALID_ENTRY, "more done than there is")
        return entry


_OPERATIONS = frozenset(PageOperation)


@dataclass(frozen=True, slots=True)
class PageStateList:
    """Entries of a list from ``current`` to the last; all of them are well formed."""

    current: int
    entries: tuple[PageStateEntry, ...]
    _runs: list[PageStateRun] = field(init=False, compare=False, repr=False, default_factory=list)
    _through: list[bytes] = field(init=False, compare=False, repr=False, default_factory=list)
    """Runs, and entries that are through, once somebody asked: who starts alike sends the same list."""

    @staticmethod
    def parse(data: bytes) -> PageStateList:
        """A list out of a copy of its scratch memory, checked whole before anything is done. Raises PageListRefused."""
        return _parsed(data)

    @classmethod
    def _of(cls, data: bytes) -> PageStateList:
        if len(data) < HEADER_BYTES:
            raise PageListRefused(INVALID_HEADER, "no header")
        current, last, _ = _HEADER.unpack_from(data)
        if current > last or last >= MOST_ENTRIES or HEADER_BYTES + (last + 1) * ENTRY_BYTES > len(data):
            raise PageListRefused(INVALID_HEADER, f"entries {current} to {last}")
        starts = range(HEADER_BYTES + current * ENTRY_BYTES, HEADER_BYTES + (last + 1) * ENTRY_BYTES, ENTRY_BYTES)
        return cls(current, tuple([PageStateEntry.parse(data[at : at + ENTRY_BYTES]) for at in starts]))

    def runs(self) -> Sequence[PageStateRun]:
        """What is left to do, adjacent entries of one operation and size together, in the list's order."""
        if not self._runs:
            self._runs.extend(self._joined())
        return self._runs

    def _joined(self) -> Iterator[PageStateRun]:
        run: PageStateRun | None = None
        for index, entry in enumerate(self.entries, self.current + 1):
            gpa = entry.gpa + entry.done * PAGE_BYTES
            length = (entry.pages - entry.done) * PAGE_BYTES
            # What was cut short goes on in pages of 4 KiB.
            large = entry.large and not entry.done
            if run is not None and (run.operation, run.large, run.gpa + run.length) == (entry.operation, large, gpa):
                run = PageStateRun(run.gpa, run.length + length, run.operation, run.large, index)
                continue
            if run is not None:
                yield run
            run = PageStateRun(gpa, length, entry.operation, large, index)
        if run is not None:
            yield run

    def progress(self, current: int) -> tuple[tuple[int, bytes], ...]:
        """What the hypervisor lays over the list, by offset: ``current`` entries are through, each marked so."""
        through = current - self.current
        if through <= 0:
            return ()
        if not self._through:
            self._through.append(b"".join([entry.through for entry in self.entries]))
        marked = self._through[0][: through * ENTRY_BYTES]
        return ((0, current.to_bytes(2, "little")), (HEADER_BYTES + self.current * ENTRY_BYTES, marked))


@dataclass(frozen=True, slots=True)
class PageStateRun:
    """Pages that change in one go; ``current`` is the list's current entry once they are through."""

    gpa: int
    length: int
    operation: int
    large: bool
    current: int


@lru_cache(maxsize=64)
def _parsed(data: bytes) -> PageStateList:
    """Kernels that start alike send the same lists."""
    return PageStateList._of(data)  # noqa: SLF001 - its other half


def build_list(entries: Iterable[PageStateEntry]) -> bytes:
    """A list as a guest lays it down. Raises ValueError for none, or more entries than it holds."""
    packed = [entry.pack() for entry in entries]
    if not 1 <= len(packed) <= MOST_ENTRIES:
        raise ValueError(f"page state list: expected 1 to {MOST_ENTRIES} entries, got {len(packed)}")
    return _HEADER.pack(0, len(packed) - 1, 0) + b"".join(packed)


def entries_of(gpa: int, length: int, operation: PageOperation) -> Iterator[PageStateEntry]:
    """Entries that cover a range of whole pages, in 2 MiB where addresses let them be."""
    end = gpa + length
    while gpa < end:
        large = not gpa % LARGE_PAGE_BYTES and gpa + LARGE_PAGE_BYTES <= end
        yield PageStateEntry(gpa, operation, large)
        gpa += LARGE_PAGE_BYTES if large else PAGE_BYTES


def current_entry(data: bytes) -> int:
    """The header's current entry, as a guest reads how far its hypervisor came."""
    return _HEADER.unpack_from(data)[0]  # type: ignore[no-any-return]
