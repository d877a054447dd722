"""The nested walk: from a guest-physical address through a host's page tables, as their bytes lie in memory.

Whatever lies there is followed, so a walk is bounded by its levels alone. Every
nested access counts as one of a user (APM volume 2, 15.25.6). The hardware's own
stores of A and D bits are stores of the host, which the RMP may refuse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from node.memory_controller import HOST_KEY
from node.page_table_entry import ACCESSED, DIRTY, EntryFormat
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

READ = ERROR_USER | ERROR_FINAL
"""What a load is to the nested tables, as the error bits that its fault would have."""
WRITE = READ | ERROR_WRITE
FETCH = READ | ERROR_FETCH


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


class NestedWalker:
    """Walks tables of one format. ``check_write`` refuses, with RmpFault, what the host may not store to."""

    def __init__(
        self,
        memory: TableMemory,
        form: EntryFormat,
        check_write: Callable[[int, int], None] | None = None,
    ) -> None:
        self._memory = memory
        self._form = form
        self._check_write = check_write

    def leaf(self, root: int, gpa: int, access: int, *, encrypted: bool = False) -> NestedLeaf:
        """Walk from ``root``, which is read with or without the C-bit; ``access`` are its error bits.

        Raises NestedPageFault, MachineCheck where a table is not in memory, and RmpFault.
        """
        form, mode = self._form, self._form.mode
        if gpa >> mode.address_bits:
            raise NestedPageFault(gpa, access)
        table, c_bit = root, encrypted
        writable = executable = user = True
        way: list[tuple[int, int, int, int]] = []
        for level in range(mode.levels, 0, -1):
            spa, key = table + mode.index(gpa, level) * mode.entry_bytes, HOST_KEY if c_bit else 0
            word = int.from_bytes(self._memory.read(spa, mode.entry_bytes, key), "little")
            entry = form.decode(word, level)
            if not entry.present:
                raise NestedPageFault(gpa, access)
            if entry.reserved:
                raise NestedPageFault(gpa, access | ERROR_PRESENT | ERROR_RESERVED)
            writable, user = writable and entry.writable, user and entry.user
            executable = executable and not entry.no_execute
            leaf = level == 1 or entry.large
            way.append((spa, key, word, ACCESSED | DIRTY if leaf and access & ERROR_WRITE else ACCESSED))
            if leaf:
                break
            table, c_bit = entry.address, entry.encrypted
        if not user or (access & ERROR_WRITE and not writable) or (access & ERROR_FETCH and not executable):
            raise NestedPageFault(gpa, access | ERROR_PRESENT)
        for spa, key, word, bits in way:
            if word & bits != bits:
                self._set(spa, key, word | bits, access)
        dirty = bool((way[-1][2] | way[-1][3]) & DIRTY)
        key = HOST_KEY if entry.encrypted else 0
        return NestedLeaf(entry.address, mode.leaf_bytes(level), key, writable, executable, dirty)

    def _set(self, spa: int, key: int, word: int, access: int) -> None:
        """Set A and D bits: a store of the host."""
        size = self._form.mode.entry_bytes
        if self._check_write is not None:
            try:
                self._check_write(spa, size)
            except RmpFault as fault:
                raise RmpFault(fault.spa, access | ERROR_PRESENT | ERROR_WRITE | ERROR_RMP) from None
        self._memory.write(spa, word.to_bytes(size, "little"), key)
