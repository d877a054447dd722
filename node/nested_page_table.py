"""A VM's nested page table: guest-physical to system-physical.

Its tables are pages of the host's memory that the hypervisor gave for it. As long as
nobody has looked at them it is held as runs; whoever reads or writes one of those
pages, by whatever route, has all of them written out first, and from then on the
bytes are what counts, walked anew at each access. The runs stay the hypervisor's
books of what it last asked for: by them it edits its tables.

Without frames nothing is mapped. A table without a host around it lies nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from node.extent_map import ExtentMap
from node.guest_backing import Backing, backing_of
from node.kept_ranges import Touch
from node.memory_controller import HOST_KEY
from node.nested_table_frames import TableFrames
from node.nested_table_pages import GPA_END, layout_of, parts, served_bytes, tables
from node.nested_walk import READ, WRITE, NestedLeaf, NestedPageFault, NestedWalker, TableMemory
from node.page_table_entry import ACCESSED, DIRTY, LARGE, LONG, PRESENT, USER, WRITABLE
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

__all__ = ["READ", "WRITE", "NestedPageFault", "NestedPageTable", "Segment"]

Segment = tuple[int, int, bool, int]
"""(SPA, length, mapped by 2 MiB or more, key of an access without the guest's own: HOST_KEY where C=1, else 0)."""

_TABLE = PRESENT | WRITABLE | USER | ACCESSED
_PAGE = _TABLE | DIRTY
"""KVM sets A and D itself where it does not track them, so a walk finds nothing to store."""
MOST_WALKS = (1 << 13) + 1
"""Walks of one access, each for a run of pages that follow each other in one table: of hostile tables 32 MiB.

Honest ones map 8 TiB. What is longer has no mapping from there on: tables can show one page at every address.
"""
_MOST_MISSING = 64
"""Missing frames are counted no further."""


class _Target(NamedTuple):
    spa: int
    large: bool = False
    key: int = 0

    def advanced(self, distance: int) -> _Target:
        return _Target(self.spa + distance, self.large, self.key)


class NestedMapError(ValueError):
    """The hypervisor asked for a mapping that no table can hold."""

    def __init__(self, expected: str) -> None:
        super().__init__(f"nested page table: {expected}")


class KeepsMemory(Protocol):
    """Memory whose owner can ask to be told of accesses: ``Dram``."""

    @property
    def size_bytes(self) -> int:
        """How much there is."""

    def keep(self, spa: int, length: int, touch: Touch) -> None:
        """Tell ``touch`` of every access to a range from now on."""

    def let_go(self, spa: int) -> None:
        """No longer tell anybody of accesses to the range that begins here."""

    def leads_away(self, spa: int, length: int) -> bool:
        """Whether any page of a range reaches other cells than its own, or none."""


@dataclass(frozen=True, slots=True)
class TableHost:
    """What a host's nested tables have in common.

    ``memory`` is past any cache; ``check_write`` raises RmpFault where the host may not store.
    """

    memory: TableMemory
    dram: KeepsMemory
    walker: NestedWalker
    c_bit: int
    check_write: Callable[[int, int], None] | None = None


class NestedPageTable:
    """Mappings in whole 4 KiB pages; without a host around it, one that lies nowhere."""

    def __init__(self, host: TableHost | None = None) -> None:
        self._runs: ExtentMap[_Target] = ExtentMap()
        self._host = host
        self._frames = TableFrames()
        self._in_memory = False
        self._kept: list[int] = []
        """Where ranges of frames begin whose accesses this table is told of."""
        self._encrypted = False
        self._root = 0
        self.changes = 0
        """Counts whatever may change where an address leads; bytes change without a count."""

    @classmethod
    def at(cls, host: TableHost, root: int, *, encrypted: bool = False) -> Self:
        """Whatever tables lie at ``root`` (nCR3), for a hypervisor that writes them itself."""
        table = cls(host)
        table._root, table._encrypted, table._in_memory = root, encrypted, True
        return table

    def __len__(self) -> int:
        """Number of runs held."""
        return len(self._runs)

    @property
    def in_memory(self) -> bool:
        """Whether bytes are what counts."""
        return self._in_memory

    @property
    def root(self) -> int | None:
        """SPA of the highest table (nCR3); None for a table that lies nowhere."""
        return self._root if self._in_memory else self._frames.root

    @property
    def nested_cr3(self) -> int | None:
        """The root with its C-bit, as a control block has it."""
        root = self.root
        if root is None or self._host is None:
            return None
        return root | (1 << self._host.c_bit if self._encrypted else 0)

    # What the hypervisor does.

    def backing(self, node_bytes: int) -> Backing:
        """Where the memory that is mapped lies, on NUMA nodes of so many bytes, as the hypervisor last asked for it."""
        return backing_of(
            [(target.spa, end - start, target.large) for start, end, target in self._runs.runs()], node_bytes
        )

    def give(self, spa: int, length: int, *, encrypted: bool = False) -> None:
        """Take pages for tables, the first as the root if there is none; what lay in them is lost.

        The first also decides whether tables are read with the C-bit.
        Raises NestedMapError off page borders, for no pages and for a table that others built, MachineCheck,
        and RmpFault for pages that are not the host's.
        """
        host = self._host
        _check(spa | length)
        if host is None or not length:
            raise NestedMapError("expected pages for tables, on a host")
        if self._in_memory and self._frames.root is None:
            raise NestedMapError("expected a table that mappings built")
        if host.check_write is not None:
            host.check_write(spa, length)
        before = self._encrypted
        if self._frames.root is None:
            self._encrypted = encrypted
        try:
            host.memory.clear(spa, length, self._key)
        except Exception:
            self._encrypted = before
            raise
        self._frames.give(spa, length)
        assert self._frames.root is not None
        self._root = self._frames.root
        if self._in_memory:
            return
        try:
            host.dram.keep(spa, length, self._touched)
        except ValueError:
            # Others hold a form of their own there, as the RMP before SNP is on: a table shares it with them as bytes.
            self._touched(spa, length)
            return
        self._kept.append(spa)
        if host.dram.leads_away(spa, length):
            # What is stored there may never be read again, so nothing but what is read counts.
            self._touched(spa, length)

    def map(self, gpa: int, spa: int, length: int, *, large: bool = True, encrypted: bool = False) -> int:
        """Point a range at memory, replacing what was there: 0, or how many frames are missing.

        With ``large`` in pages of 2 MiB where addresses let them be. ``encrypted`` is the entries' C-bit.
        Raises NestedMapError off page borders, and RmpFault where a table's page is no longer the host's;
        then nothing has changed.
        """
        _check(gpa | spa | length)
        if spa + length > _SPA_END:
            raise NestedMapError(f"spa: expected at most {_SPA_END:#x}, got {spa + length:#x}")
        return self._put(gpa, gpa + length, spa, list(parts(gpa, spa, length, large)), encrypted)

    def lay_out(self, maps: Sequence[tuple[int, int, int]], *, encrypted: bool = False) -> bool:
        """Map all of (GPA, SPA, length) at once, where that is what one ``map`` after the other would come to.

        False, with nothing changed, where it need not be: the table has mappings already or too few frames, or the
        maps are none that a hypervisor gives a VM. Raises RmpFault as ``map``.
        """
        runs, frames = self._runs, self._frames
        if runs or frames.root is None or self._in_memory:
            return False
        layout = layout_of(maps)
        if layout is None:
            return False
        for _, spa, length in maps:
            if not 0 <= spa <= _SPA_END - length:
                return False
        self._check_frames()
        if frames.claim(layout.tables, 0):
            return False
        key = HOST_KEY if encrypted else 0
        self.changes += 1
        for number, start, stop, large in layout.parts:
            gpa, spa, _ = maps[number]
            runs.put(start, stop, _Target(spa + start - gpa, large, key))
        return True

    def unmap(self, gpa: int, length: int) -> int:
        """Take a range out, parts without a mapping left alone: 0, or how many frames are missing to split a page.

        Raises as ``map``.
        """
        _check(gpa | length)
        return self._put(gpa, gpa + length, None, [], False)

    def close(self) -> list[tuple[int, int]]:
        """Give the frames back, as (SPA, length); the table is gone."""
        if self._host is not None:
            self._let_go(self._host)
        return self._frames.ranges

    def _put(
        self, start: int, end: int, spa: int | None, wanted: list[tuple[int, int, bool]], encrypted: bool
    ) -> int:
        if start == end:
            return 0
        self.changes += 1
        cut: set[int] = set()
        if (start | end) % LARGE_PAGE_BYTES:
            cut = {border // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES for border in (start, end) if self._is_inside(border)}
        runs, frames = self._runs, self._frames
        if self._host is not None and (wanted or cut):
            missing = self._make_room(end, wanted, cut)
            if missing:
                return missing
        for block in sorted(cut):  # a large page of which a part changes becomes 512 small ones
            target = self._target(block)
            runs.put(block, block + LARGE_PAGE_BYTES, _Target(target.spa, key=target.key))
        if spa is None:
            runs.put(start, end, None)
        for first, stop, large in wanted:
            assert spa is not None
            runs.put(first, stop, _Target(spa + first - start, large, HOST_KEY if encrypted else 0))
        if frames.root is not None and (frames.any_lowest or self._in_memory):
            dropped = [one for first, stop, large in wanted if large for one in frames.drop_lowest(first, stop)]
            if self._in_memory:
                host = self._host
                assert host is not None
                for frame in dropped:
                    host.memory.clear(frame, PAGE_BYTES, self._key)
                self._write(min(start, *cut, start), max(end, *[block + LARGE_PAGE_BYTES for block in cut], end))
        return 0

    def _check_frames(self) -> None:
        assert self._host is not None
        check = self._host.check_write
        if check is not None:
            for spa, length in self._frames.ranges:
                check(spa, length)

    def _is_inside(self, border: int) -> bool:
        """Whether an address is inside a large page."""
        found = self._runs.find(border) if border % LARGE_PAGE_BYTES else None
        return found is not None and found[2].large

    def _target(self, gpa: int) -> _Target:
        found = self._runs.find(gpa)
        assert found is not None, "expected a mapped page"
        return found[2].advanced(gpa - found[0])

    def _make_room(self, end: int, wanted: list[tuple[int, int, bool]], cut: set[int]) -> int:
        if end > GPA_END:
            raise NestedMapError(f"gpa: expected at most {GPA_END:#x}, got {end:#x}")
        self._check_frames()
        needed = [tables(first, stop, 2 if large else 1) for first, stop, large in wanted]
        needed += [tables(block, block + LARGE_PAGE_BYTES, 1) for block in sorted(cut)]
        missing = self._frames.claim(needed[0] if len(needed) == 1 else chain.from_iterable(needed), _MOST_MISSING)
        return missing + (missing > 0 and self._frames.root is None)

    # Bytes.

    @property
    def _key(self) -> int:
        return HOST_KEY if self._encrypted else 0

    def _touched(self, _spa: int, _length: int) -> None:
        """Somebody is about to read or write a table's page."""
        host = self._host
        assert host is not None
        if self._in_memory:
            return  # one access, several ranges of frames
        self._in_memory = True
        self.changes += 1
        self._let_go(host)
        self._write(0, GPA_END)

    def _let_go(self, host: TableHost) -> None:
        for spa in self._kept:
            host.dram.let_go(spa)
        self._kept.clear()

    def _write(self, start: int, end: int) -> None:
        """Write the entries that serve [start, end), of tables of every level."""
        assert self._host is not None
        for first, level, spa in self._frames.serving(start, end):
            step = LONG.leaf_bytes(level)
            low = max(start // step * step, first)
            high = min(-(-end // step) * step, first + served_bytes(level))
            words = self._words(low, high, level)
            self._host.memory.write(spa + (low - first) // step * 8, words.tobytes(), self._key)

    def _words(self, low: int, high: int, level: int) -> NDArray[np.uint64]:
        """Entries of one table of a level for [low, high)."""
        assert self._host is not None
        step, c_bit = LONG.leaf_bytes(level), 1 << self._host.c_bit
        words = np.zeros((high - low) // step, np.uint64)
        for start, end, target in self._runs.pieces(low, high) if level < 3 else ():
            if target is not None and target.large == (level == 2):
                flags = _PAGE | (LARGE if target.large else 0) | (c_bit if target.key else 0)
                at, count = (start - low) // step, (end - start) // step
                words[at : at + count] = np.arange(count, dtype=np.uint64) * np.uint64(step) + np.uint64(
                    target.spa | flags
                )
        if level > 1:
            flags = _TABLE | (c_bit if self._encrypted else 0)
            for number, first in enumerate(range(low, high, step)):
                table = self._frames.table(first, level - 1)
                if table is not None:
                    words[number] = table | flags
        return words

    # What the hardware does.

    def translate(self, gpa: int, length: int, access: int = READ) -> list[Segment]:
        """Pieces of a guest-physical range. ``access`` are the error bits that a fault of it would have.

        Raises NestedPageFault where there is no mapping, and from bytes MachineCheck and RmpFault too. Even an
        empty range needs a mapping at its address; a length below zero, which a guest may name, has none.
        A table can show the same memory at many addresses: what is longer than all of the host's, unless it is
        one run, has no mapping from where that much has been found.
        """
        if length < 0:
            raise NestedPageFault(gpa, access)
        if self._in_memory:
            return self._walk(gpa, length, access)
        found = self._runs.find(gpa)
        if found is not None and gpa + length <= found[1]:
            target = found[2]
            return [(target.spa + gpa - found[0], length, target.large, target.key)]
        out = []
        asked, length = length, self._bounded(length)
        for start, end, some in self._runs.pieces(gpa, gpa + length):
            if some is None:
                raise NestedPageFault(start, access)
            out.append((some.spa, end - start, some.large, some.key))
        if not out:
            raise NestedPageFault(gpa, access)
        if length < asked:
            raise NestedPageFault(gpa + length, access)
        return out

    def leaf(self, gpa: int, access: int) -> NestedLeaf:
        """The page that holds one address. Raises as ``translate``."""
        if self._in_memory:
            assert self._host is not None
            return self._host.walker.leaf(self._root, gpa, access, encrypted=self._encrypted)
        found = self._runs.find(gpa)
        if found is None:
            raise NestedPageFault(gpa, access)
        target = found[2].advanced(gpa - found[0])
        size = LARGE_PAGE_BYTES if target.large else PAGE_BYTES
        return NestedLeaf(target.spa - gpa % size, size, target.key)

    def _walk(self, gpa: int, length: int, access: int) -> list[Segment]:
        out: list[Segment] = []
        asked, length = length, self._bounded(length)
        at, end = gpa, gpa + max(1, length)
        host = self._host
        assert host is not None
        for _ in range(MOST_WALKS):
            leaf, stop = host.walker.run(self._root, at, end, access, encrypted=self._encrypted)
            spa, size = leaf.spa + at % leaf.page_bytes, min(end, stop) - at
            large = leaf.page_bytes > PAGE_BYTES
            before = out[-1] if out else None
            if before is not None and (before[0] + before[1], *before[2:]) == (spa, large, leaf.key):
                out[-1] = (before[0], before[1] + size, large, leaf.key)
            else:
                out.append((spa, size if length else 0, large, leaf.key))
            at += size
            if at == end:
                break
        if at < end or length < asked:
            raise NestedPageFault(at, access)
        return out

    def _bounded(self, length: int) -> int:
        return length if self._host is None else min(length, self._host.dram.size_bytes)


_SPA_END = 1 << 52
"""Entries have room for bits 51:12 of an address (APM volume 2, 5.3.3)."""


def _check(bits: int) -> None:
    if bits < 0 or bits % PAGE_BYTES:
        raise NestedMapError("expected whole 4 KiB pages")
