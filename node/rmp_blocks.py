"""RMPUPDATE and PVALIDATE on many entries at once, where bytes say what they are.

Rules as in ``node.rmp``, on columns of words. Each function looks at the entries of
some blocks, (block, page in it, word), from page ``low`` to page ``high`` of each, and
answers a code for each page; nothing is changed until ``Change.write``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.dram import Words
from node.rmp_entry import (
    ALL_PERMISSIONS,
    ASID,
    ASID_SHIFT,
    ASSIGNED,
    GPA,
    IMMUTABLE,
    LOCK,
    PAGE_SIZE,
    SUBPAGE_COUNT,
    SUBPAGE_SHIFT,
    VALIDATED,
)
from node.rmp_faults import PageOutcome, RmpCode
from node.rmp_table import LARGE, LARGE_PAGES, Blocks, RmpTable, set_counts
from psp.system_bus import PAGE_BYTES, RmpEntry

Codes = NDArray[np.uint8]
Flags = NDArray[np.bool_]

_IDENTITY = ASSIGNED | ASID | GPA
OWN = _IDENTITY | IMMUTABLE
"""Bits of an entry that must be as its guest expects them."""


@dataclass(frozen=True, slots=True)
class Change:
    """What an instruction answers for each page or block, and what it would leave in their words."""

    codes: Codes
    old: Words
    low: Words
    high: Words | None
    pages_each: int

    def failed(self) -> Flags:
        """Which did not succeed."""
        flags: Flags = (self.codes != RmpCode.SUCCESS) & (self.codes != PageOutcome.UNCHANGED)
        return flags

    def write(self, table: RmpTable, into: Blocks, first: int, last: int, limit: int) -> None:
        """Carry out the first ``limit`` of them on writable blocks, for pages ``first`` to ``last`` of each."""
        done = self.codes == RmpCode.SUCCESS
        done.reshape(-1)[limit:] = False
        if not done.any():
            return
        slots = into[:, first:last] if self.pages_each == 1 else into[:, :1]
        small = self.pages_each == 1 and self.high is not None
        counted = table.counted(into) if small else None
        if self.high is not None:
            table.count_changes(self.old, self.low, done, self.pages_each)
            np.copyto(slots[:, :, 1], self.high, where=done)
        np.copyto(slots[:, :, 0], self.low, where=done)
        if counted is not None:
            count = (into[:, 0, 0] & SUBPAGE_COUNT) >> SUBPAGE_SHIFT
            set_counts(into, np.where(into[:, 0, 0] & LARGE != LARGE, count + table.counted(into) - counted, count))


def update_small(read: Blocks, low: int, high: int, entry: RmpEntry, keeps: bool) -> Change:
    """RMPUPDATE of 4 KiB pages to ``entry``, whose GPA is the first page's."""
    slots = read[:, low:high]
    old = slots[:, :, 0]
    of_large, large = _large(read)
    codes = np.zeros(old.shape, np.uint8)
    codes[old & LOCK != 0] = RmpCode.FAIL_INUSE
    codes[old & IMMUTABLE != 0] = RmpCode.FAIL_PERMISSION
    fixed = of_large & IMMUTABLE != 0
    codes[large] = RmpCode.FAIL_OVERLAP
    codes[large & (of_large & LOCK != 0)] = RmpCode.FAIL_INUSE
    codes[large & fixed] = RmpCode.FAIL_PERMISSION
    new_low, new_high = _updated(old, slots[:, :, 1], entry, 1, keeps)
    if not low:
        # The first entry's count of the others is nobody's to lose.
        kept = np.where(old[:, 0] & LARGE != LARGE, old[:, 0] & SUBPAGE_COUNT, 0)
        new_low[:, 0] |= kept
    return Change(codes, old, new_low, new_high, 1)


def update_large(read: Blocks, entry: RmpEntry, keeps: bool) -> Change:
    """RMPUPDATE of 2 MiB pages to ``entry``: a code for each block."""
    old, old_high = read[:, :1, 0], read[:, :1, 1]
    of_large, large = _large(read)
    every = np.bitwise_or.reduce(read[:, :, 0], axis=1)
    every = np.where(large, of_large, every)
    codes = np.zeros(old.shape, np.uint8)
    codes[~large & (of_large & (ASSIGNED | SUBPAGE_COUNT) != 0), 0] = RmpCode.FAIL_OVERLAP
    codes[every & LOCK != 0, 0] = RmpCode.FAIL_INUSE
    codes[every & IMMUTABLE != 0, 0] = RmpCode.FAIL_PERMISSION
    new_low, new_high = _updated(old, old_high, entry, LARGE_PAGES, keeps)
    return Change(codes, old, new_low, new_high, LARGE_PAGES)


def validate_small(
    read: Blocks, low: int, high: int, gpa: int, asid: int, validate: bool, matched: int = OWN
) -> Change:
    """PVALIDATE of 4 KiB pages by their guest; ``gpa`` is the first page's, ``matched`` the bits that must be its."""
    old = read[:, low:high, 0]
    wanted = _identities(old.shape, gpa, asid, 1) & np.uint64(matched)
    codes = np.where(old & matched == wanted, 0, np.uint8(PageOutcome.NPF)).astype(np.uint8)
    of_large, large = _large(read)
    if large.any():
        offsets = np.arange(low, high, dtype=np.uint64) * np.uint64(PAGE_BYTES)
        owned = (of_large[:, None] & OWN) + offsets & np.uint64(matched) == wanted
        codes[large] = np.where(owned[large], PageOutcome.NPF_SIZEM, PageOutcome.NPF)
    return _validation(codes, old, validate, 1)


def validate_large(read: Blocks, gpa: int, asid: int, validate: bool, matched: int = OWN) -> Change:
    """PVALIDATE of 2 MiB pages by their guest: an outcome for each block."""
    old = read[:, :1, 0]
    wanted = _identities(old.shape, gpa, asid, LARGE_PAGES) & np.uint64(matched)
    codes = np.where(old & matched == wanted, 0, np.uint8(PageOutcome.NPF)).astype(np.uint8)
    codes[(codes == 0) & (old & LARGE != LARGE)] = RmpCode.FAIL_SIZEMISMATCH
    return _validation(codes, old, validate, LARGE_PAGES)


def _validation(codes: Codes, old: Words, validate: bool, pages: int) -> Change:
    codes[(codes == 0) & ((old & VALIDATED != 0) == validate)] = PageOutcome.UNCHANGED
    new: Words = old | np.uint64(VALIDATED) if validate else old & ~np.uint64(VALIDATED)
    return Change(codes, old, new, None, pages)


def _large(read: Blocks) -> tuple[Words, Flags]:
    """First words of blocks, and which blocks are one assigned 2 MiB page."""
    first: Words = read[:, 0, 0]
    large: Flags = first & LARGE == LARGE
    return first, large


def _identities(shape: tuple[int, ...], gpa: int, asid: int, step: int) -> Words:
    """The words that name the owner and address of following pages."""
    count = shape[0] * shape[1]
    steps = np.arange(count, dtype=np.uint64) * np.uint64(step * PAGE_BYTES if asid else 0)
    words: Words = (steps + np.uint64(ASSIGNED | gpa | asid << ASID_SHIFT)).reshape(shape)
    return words


def _updated(old: Words, old_high: Words, entry: RmpEntry, pages: int, keeps: bool) -> tuple[Words, Words]:
    """Words after an update that is let through."""
    if not entry.assigned:
        return np.zeros(old.shape, np.uint64), np.zeros(old.shape, np.uint64)
    immutable = IMMUTABLE if entry.immutable else 0
    size = PAGE_SIZE if pages > 1 else 0
    wanted = _identities(old.shape, entry.gpa, entry.asid, pages)
    same = old & (_IDENTITY | PAGE_SIZE) == wanted | size
    if not keeps:
        same &= old & IMMUTABLE == immutable
    other = wanted | np.uint64(size)
    low: Words = np.where(same, old & ~np.uint64(IMMUTABLE | SUBPAGE_COUNT), other) | np.uint64(immutable)
    high: Words = np.where(same, old_high, ALL_PERMISSIONS if entry.asid else 0)
    return low, high
