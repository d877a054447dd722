"""Host page tables of an IOMMU, the kind Linux calls v1: up to six levels of 512 entries (section 2.2.3).

A pointer names the level of the table it points to, always a lower one, so a walk
ends whatever lies in memory. Levels may be skipped if the address has zeros there.
Leaves of 4 KiB, 2 MiB and 1 GiB; other sizes (Next Level 7, and leaves of higher
levels) are taken for reserved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node.iommu_events import FLAG_PERMISSION, FLAG_PRESENT, FLAG_RESERVED

ENTRY_BYTES = 8
TABLE_BYTES = 4096

_PRESENT = 1 << 0
_LEVEL_SHIFT, _LEVEL = 9, 0b111
_ADDRESS = (1 << 52) - (1 << 12)
_RESERVED = (1 << 59) - (1 << 52)
_READ, _WRITE = 1 << 61, 1 << 62
_PAGE_BITS, _LEVEL_BITS = 12, 9
_HIGHEST_LEAF = 3

ReadWord = Callable[[int], int]
"""The 64-bit word at an address as an entry has it, C-bit and all."""


class NotMapped(Exception):
    """IO_PAGE_FAULT with these flags, the request's own bits besides."""

    def __init__(self, flags: int) -> None:
        super().__init__(f"IO_PAGE_FAULT, flags {flags:#x}")
        self.flags = flags


@dataclass(frozen=True, slots=True)
class Translation:
    """A leaf: where its page of ``1 << bits`` bytes begins, C-bit included, and what all levels permit."""

    address: int
    bits: int
    read: bool
    write: bool


def walk(read_word: ReadWord, root: int, levels: int, iova: int) -> Translation:
    """Walk from a root table of ``levels``, 1 to 6. Raises NotMapped, and what ``read_word`` raises."""
    permitted = _READ | _WRITE
    table, level = root, levels
    _must_be_zero(iova >> _shift(level + 1))
    while True:
        shift = _shift(level)
        entry = read_word(table + (iova >> shift) % 512 * ENTRY_BYTES)
        if not entry & _PRESENT:
            raise NotMapped(0)
        if entry & _RESERVED:
            raise NotMapped(FLAG_PRESENT | FLAG_RESERVED)
        permitted &= entry
        address, below = entry & _ADDRESS, entry >> _LEVEL_SHIFT & _LEVEL
        if below == 0:
            if level > _HIGHEST_LEAF or address & (1 << shift) - 1:
                raise NotMapped(FLAG_PRESENT | FLAG_RESERVED)
            return Translation(address, shift, bool(permitted & _READ), bool(permitted & _WRITE))
        if below >= level:
            raise NotMapped(FLAG_PRESENT | FLAG_RESERVED)
        _must_be_zero((iova & (1 << shift) - 1) >> _shift(below + 1))
        table, level = address, below


def table_pointer(address: int, level: int, *, read: bool = True, write: bool = True) -> int:
    """An entry that points to a table of ``level``."""
    return _PRESENT | level << _LEVEL_SHIFT | address | _permissions(read, write)


def leaf(address: int, *, read: bool = True, write: bool = True) -> int:
    """An entry that maps a page as large as its level has them."""
    return _PRESENT | address | _permissions(read, write)


def forbidden() -> NotMapped:
    """The fault of an access that levels or device table do not permit."""
    return NotMapped(FLAG_PRESENT | FLAG_PERMISSION)


def _permissions(read: bool, write: bool) -> int:
    return read * _READ | write * _WRITE


def _shift(level: int) -> int:
    return _PAGE_BITS + _LEVEL_BITS * (level - 1)


def _must_be_zero(bits: int) -> None:
    if bits:
        raise NotMapped(0)
