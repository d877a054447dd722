"""Entries of AMD64 page tables: what their bits mean in each paging mode, and which of them must be zero.

Sources: APM volume 2 (24593), 5.2 (legacy modes), 5.3 (long mode), 7.10.1 (the C-bit is one bit of an
entry and none of the address), 15.25 (nested tables have the host's format).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from psp.system_bus import PAGE_BYTES

PRESENT = 1 << 0
WRITABLE = 1 << 1
USER = 1 << 2
ACCESSED = 1 << 5
DIRTY = 1 << 6
LARGE = 1 << 7
"""PS: an entry above the lowest level maps a page itself."""
GLOBAL = 1 << 8
NO_EXECUTE = 1 << 63

TABLE_BYTES = PAGE_BYTES
"""Every table is a page, but that of the highest level of PAE, which has four entries."""

ADDRESS_BITS = 52
"""Physical addresses have no more bits (APM volume 2, 5.1)."""


@dataclass(frozen=True, slots=True)
class PagingMode:
    """The shape of tables: bytes of an entry, bits of an address that index one table, and levels above the page."""

    name: str
    entry_bytes: int
    index_bits: int
    levels: int
    leaf_levels: frozenset[int]
    """Levels whose entries may map a page; with PS set above the lowest."""
    address_bits: int
    """Of the addresses that are translated."""

    def shift(self, level: int) -> int:
        """Bits of an address below those that index a table of a level."""
        return 12 + self.index_bits * (level - 1)

    def leaf_bytes(self, level: int) -> int:
        """Size of the page that an entry of a level maps."""
        return 1 << self.shift(level)

    def index(self, address: int, level: int) -> int:
        """Which entry of a table of a level an address goes through."""
        return address >> self.shift(level) & (1 << self.index_bits) - 1


LEGACY = PagingMode("legacy 32-bit", 4, 10, 2, frozenset({1, 2}), 32)
PAE = PagingMode("PAE", 8, 9, 3, frozenset({1, 2}), 32)
LONG = PagingMode("long mode", 8, 9, 4, frozenset({1, 2, 3}), 48)
LONG_57 = PagingMode("long mode, five levels", 8, 9, 5, frozenset({1, 2, 3}), 57)


@dataclass(frozen=True, slots=True)
class PageTableEntry:
    """One entry, decoded. ``large`` counts above the lowest level only; ``address`` is what it points to."""

    address: int
    present: bool = True
    writable: bool = True
    user: bool = True
    accessed: bool = True
    dirty: bool = False
    large: bool = False
    global_: bool = False
    no_execute: bool = False
    encrypted: bool = False
    """The C-bit."""
    reserved: bool = False
    """A bit is set that must be zero: the walk ends in a page fault."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a walk does at one level: which entry it takes, and which of its bits end it there or lead on.

    The masks come in pairs: of an entry that leads to a table (or a page of 4 KiB), and of one with PS set.
    """

    level: int
    shift: int
    index_mask: int
    page_bytes: int
    large: int
    """The bit that makes an entry a page: PS, 0 where it means nothing, all bits at the lowest level."""
    reserved: int
    reserved_large: int
    address: int
    address_large: int


@dataclass(frozen=True)
class EntryFormat:
    """Entries of one mode on one processor.

    ``address_bits`` is the width of physical addresses, ``c_bit`` the place of the
    C-bit or None where there is none, ``no_execute`` whether EFER.NXE lets bit 63 mean
    something, ``large_pages`` whether PS counts (in legacy mode that takes CR4.PSE).
    """

    mode: PagingMode
    address_bits: int
    c_bit: int | None = None
    no_execute: bool = True
    large_pages: bool = True

    def decode(self, word: int, level: int) -> PageTableEntry:
        """The entry in a table of a level, 1 the lowest."""
        step = self.steps[self.mode.levels - level]
        large = level > 1 and bool(word & step.large)
        # Those of PAE's highest level grant whatever the levels below grant.
        grants = (WRITABLE | USER) if self.mode is PAE and level == PAE.levels else word
        return PageTableEntry(
            address=self.page(word, step) if large else word & step.address,
            present=bool(word & PRESENT),
            writable=bool(grants & WRITABLE),
            user=bool(grants & USER),
            accessed=bool(word & ACCESSED),
            dirty=bool(word & DIRTY),
            large=large,
            global_=bool(word & GLOBAL),
            no_execute=self.no_execute and bool(word & NO_EXECUTE),
            encrypted=self.c_bit is not None and bool(word >> self.c_bit & 1),
            reserved=bool(word & (step.reserved_large if large else step.reserved)),
        )

    def encode(self, entry: PageTableEntry, level: int) -> int:
        """The bytes of an entry as a number. Raises ValueError for an address that it cannot hold."""
        size = self.mode.leaf_bytes(level) if entry.large else PAGE_BYTES
        if entry.address % size or not 0 <= entry.address < 1 << self.address_bits:
            raise ValueError(f"address: expected a page's within {self.address_bits} bits, got {entry.address:#x}")
        word = entry.address
        if self.mode is LEGACY and entry.large:
            word = entry.address & 0xFFC0_0000 | entry.address >> 32 << 13
        for flag, bit in (
            (entry.present, PRESENT), (entry.writable, WRITABLE), (entry.user, USER), (entry.accessed, ACCESSED),
            (entry.dirty, DIRTY), (entry.large, LARGE), (entry.global_, GLOBAL), (entry.no_execute, NO_EXECUTE),
        ):  # fmt: skip
            if flag:
                word |= bit
        if entry.encrypted:
            if self.c_bit is None:
                raise ValueError(f"encrypted: {self.mode.name} has no C-bit")
            word |= 1 << self.c_bit
        if self.mode is PAE and level == PAE.levels:
            word &= ~(WRITABLE | USER | ACCESSED | DIRTY)
        return word

    def page(self, word: int, step: Step) -> int:
        """The address of the page that an entry maps."""
        if step.level == 1:
            return word & step.address
        if self.mode is LEGACY:  # PSE-36: address bits 39:32 stand in 20:13
            return word & 0xFFC0_0000 | (word >> 13 & 0xFF) << 32
        return word & step.address_large

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The levels from the highest to the lowest."""
        mode = self.mode
        mask = 0xFFFF_FFFF if mode is LEGACY else (1 << self.address_bits) - 1
        if self.c_bit is not None:
            mask &= ~(1 << self.c_bit)
        return tuple(
            Step(
                level=level,
                shift=mode.shift(level),
                index_mask=(1 << mode.index_bits) - 1,
                page_bytes=mode.leaf_bytes(level),
                large=-1 if level == 1 else LARGE if self.large_pages and level in mode.leaf_levels else 0,
                reserved=self._must_be_zero(level, large=False),
                reserved_large=self._must_be_zero(level, large=level > 1),
                address=mask & -PAGE_BYTES,
                address_large=mask & -mode.leaf_bytes(level),
            )
            for level in range(mode.levels, 0, -1)
        )

    def _must_be_zero(self, level: int, large: bool) -> int:
        mode = self.mode
        if mode is LEGACY:
            return 1 << 21 if large else 0
        # Bits 62:52 are software's in long mode and must be zero in PAE.
        top = ADDRESS_BITS if mode is not PAE else 63
        zero = (1 << top) - 1 & ~((1 << self.address_bits) - 1)
        if self.c_bit is not None:
            zero &= ~(1 << self.c_bit)
        if not self.no_execute:
            zero |= NO_EXECUTE
        if mode is PAE and level == mode.levels:
            return zero | NO_EXECUTE | GLOBAL | LARGE | DIRTY | ACCESSED | USER | WRITABLE
        if level > max(mode.leaf_levels):
            zero |= LARGE | GLOBAL
        elif large:
            zero |= mode.leaf_bytes(level) - 1 & ~0x1FFF  # bit 12 is PAT
        return zero
