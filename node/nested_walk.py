"""The nested walk: from a guest-physical address through a host's page tables, as their bytes lie in memory.

Whatever lies there is followed, so a walk is bounded by its levels alone. Every
nested access counts as one of a user (APM volume 2, 15.25.6). The hardware's own
stores of A and D bits are stores of the host, which the RMP may refuse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from node.memory_controller import HOST_KEY
from node.page_table_entry import ACCESSED, DIRTY, NO_EXECUTE, PRESENT, USER, WRITABLE, EntryFormat
from node.rmp_faults import (
    ERROR_FETCH,
    ERROR_FINAL,
    ERROR_PRESENT,
    ERROR_RESERVED,
    ERROR_RMP,
    ERROR_USER,
    ERROR_WRITE,
    RmpFault,
)
from psp.system_bus import PAGE_BYTES

READ = ERROR_USER | ERROR_FINAL
"""What a load is to the nested tables, as the error bits that its fault would have."""
WRITE = READ | ERROR_WRITE
FETCH = READ | ERROR_FETCH

_ENTRY_BYTES = 8
_MOST_KNOWN = 8192
_ENTRIES = 512
_GRANTS = WRITABLE | USER


class NestedPageFault(Exception):
    """#NPF: the nested tables do not let an access through; ``error`` is EXITINFO1, ``gpa`` EXITINFO2."""

    def __init__(self, gpa: int, error: int = READ) -> None:
        super().__init__(f"no mapping at GPA {gpa:#x}, error {error:#x}")
        self.gpa = gpa
        self.error = error


class TableMemory(Protocol):
    """Where tables lie: a host's memory behind its controller. ``asid`` 0 is an access without the C-bit."""

    def read(self, spa: int, length: int, asid: int) -> bytes:
        """Load."""

    def write(self, spa: int, data: bytes, asid: int) -> None:
        """Store."""

    def clear(self, spa: int, length: int, asid: int) -> None:
        """Zero whole pages."""


class Changes(Protocol):
    """Memory that knows when what walks read may no longer be so: ``TableEntries``."""

    @property
    def changes(self) -> int | None:
        """Goes up then; None where walks may not be remembered."""


@dataclass(frozen=True, slots=True)
class NestedLeaf:
    """The page that holds a guest-physical address: where it begins, and what its entries grant."""

    spa: int
    page_bytes: int
    key: int
    """Of accesses without the guest's own: ``HOST_KEY`` where C=1, else 0."""
    writable: bool = True
    executable: bool = True
    dirty: bool = True


_Walked = tuple[NestedLeaf, int, int, int]
"""A page, and of the entry that maps it: its SPA, the key of its table, and what it is now."""


class NestedWalker:
    """Walks tables of one format. ``check_write`` refuses, with RmpFault, what the host may not store to.

    ``entries`` says how long walks would end where they did before.
    """

    def __init__(
        self,
        memory: TableMemory,
        form: EntryFormat,
        check_write: Callable[[int, int], None] | None = None,
        entries: Changes | None = None,
    ) -> None:
        self._memory = memory
        self._form = form
        self._steps = form.steps
        self._address_bits = form.mode.address_bits
        self._end = 1 << form.address_bits
        self._c_bit = 0 if form.c_bit is None else 1 << form.c_bit
        self._check_write = check_write
        self._entries = entries
        self._known: dict[tuple[int, int, int, bool], _Walked] = {}
        self._known_as_of = 0

    def leaf(self, root: int, gpa: int, access: int, *, encrypted: bool = False) -> NestedLeaf:
        """Walk from ``root``, which is read with or without the C-bit; ``access`` are its error bits.

        Raises NestedPageFault, MachineCheck where a table is not in memory, and RmpFault.
        """
        return self._walk(root, gpa, access, encrypted=encrypted)[0]

    def run(
        self, root: int, gpa: int, end: int, access: int, *, encrypted: bool = False
    ) -> tuple[NestedLeaf, int]:
        """The page that holds an address, and where the run ends that it begins: pages that follow each other alike.

        Nothing is looked at beyond ``end``, nor beyond the table that maps the page, so a run is one walk and one
        load. Raises as ``leaf``, for the first page.
        """
        leaf, at, key, word = self._walk(root, gpa, access, encrypted=encrypted)
        size = leaf.page_bytes
        number = gpa // size
        pages = min(-(-end // size) - number, _ENTRIES - number % _ENTRIES)
        if pages < 2 or leaf.spa + pages * size > self._end:
            return leaf, (number + 1) * size
        words = np.frombuffer(self._memory.read(at, pages * _ENTRY_BYTES, key), np.uint64)
        alike = words == np.uint64(word) + np.arange(pages, dtype=np.uint64) * np.uint64(size)
        return leaf, (number + (pages if alike.all() else max(1, int(alike.argmin())))) * size

    def _walk(self, root: int, gpa: int, access: int, *, encrypted: bool) -> _Walked:
        """What a walk finds. One that reads and changes nothing new ends where it did before."""
        changes = None if self._entries is None else self._entries.changes
        if changes is None:
            return self._walk_anew(root, gpa, access, encrypted=encrypted)
        if self._known_as_of != changes or len(self._known) >= _MOST_KNOWN:
            self._known.clear()
            self._known_as_of = changes
        place = (root, gpa // PAGE_BYTES, access, encrypted)
        found = self._known.get(place)
        if found is None:
            found = self._known[place] = self._walk_anew(root, gpa, access, encrypted=encrypted)
        return found

    def _walk_anew(self, root: int, gpa: int, access: int, *, encrypted: bool) -> _Walked:
        if gpa >> self._address_bits:
            raise NestedPageFault(gpa, access)
        read, c_bit = self._memory.read, self._c_bit
        table, key = root, HOST_KEY if encrypted else 0
        all_of, any_of = _GRANTS, 0
        unused: list[tuple[int, int, int]] = []
        for step in self._steps:
            spa = table + (gpa >> step.shift & step.index_mask) * _ENTRY_BYTES
            word = int.from_bytes(read(spa, _ENTRY_BYTES, key), "little")
            if not word & PRESENT:
                raise NestedPageFault(gpa, access)
            leaf = word & step.large
            if word & (step.reserved_large if leaf else step.reserved):
                raise NestedPageFault(gpa, access | ERROR_PRESENT | ERROR_RESERVED)
            all_of &= word
            any_of |= word
            wanted = ACCESSED | DIRTY if leaf and access & ERROR_WRITE else ACCESSED
            if word & wanted != wanted:
                word |= wanted
                unused.append((spa, key, word))
            table_key = key
            key = HOST_KEY if word & c_bit else 0
            if leaf:
                break
            table = word & step.address
        writable, executable = bool(all_of & WRITABLE), not any_of & NO_EXECUTE
        if not all_of & USER or (access & ERROR_WRITE and not writable) or (access & ERROR_FETCH and not executable):
            raise NestedPageFault(gpa, access | ERROR_PRESENT)
        for spa, its_key, changed in unused:
            self._set(spa, its_key, changed, access, gpa)
        page = self._form.page(word, step)
        found = NestedLeaf(page, step.page_bytes, key, writable, executable, bool(word & DIRTY))
        return found, spa, table_key, word

    def _set(self, spa: int, key: int, word: int, access: int, gpa: int) -> None:
        """Set A and D bits: a store of the host."""
        if self._check_write is not None:
            try:
                self._check_write(spa, _ENTRY_BYTES)
            except RmpFault as fault:
                raise RmpFault(fault.spa, access | ERROR_PRESENT | ERROR_WRITE | ERROR_RMP, gpa) from None
        self._memory.write(spa, word.to_bytes(_ENTRY_BYTES, "little"), key)
