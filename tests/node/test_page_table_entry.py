"""Page-table entries against words worked out by hand from the figures of APM volume 2, chapter 5."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.page_table_entry import LEGACY, LONG, LONG_57, PAE, EntryFormat, PageTableEntry, PagingMode

MILAN = EntryFormat(LONG, 48, c_bit=51)
NAPLES = EntryFormat(LONG, 43, c_bit=47)


@pytest.mark.parametrize(
    ("word", "level", "expected"),
    [
        # A kernel's page: P, RW, A, D, G and NX.
        (0x8000_0000_1234_5163, 1, PageTableEntry(0x1234_5000, user=False, dirty=True, global_=True, no_execute=True)),
        # What KVM writes for a nested 2 MiB page: P, RW, US, A, D and PS.
        (0x0000_0001_0020_00E7, 2, PageTableEntry(0x1_0020_0000, dirty=True, large=True)),
        # A private page of a guest on Milan: the C-bit is no part of the address.
        (0x0008_0000_0000_7067, 1, PageTableEntry(0x7000, dirty=True, encrypted=True)),
        # 1 GiB.
        (0x0000_0002_8000_00A3, 3, PageTableEntry(0x2_8000_0000, user=False, large=True)),
        # A table, read-only, never used.
        (0x0000_0000_0000_9005, 4, PageTableEntry(0x9000, writable=False, accessed=False)),
        # Bit 7 of the lowest level is PAT, and software may use bits 62:52 and 11:9.
        (0x7FF0_0000_0000_9E87, 1, PageTableEntry(0x9000, accessed=False)),
    ],
)
def test_an_entry_means_what_the_manual_draws(word: int, level: int, expected: PageTableEntry) -> None:
    assert MILAN.decode(word, level) == expected


@pytest.mark.parametrize(
    ("form", "word", "level"),
    [
        (MILAN, 1 << 48, 1),  # above the width of an address
        (MILAN, 1 << 50, 3),
        (NAPLES, 1 << 43, 1),
        (replace(MILAN, c_bit=None), 1 << 51, 1),  # a C-bit where there is none
        (replace(MILAN, no_execute=False), 1 << 63, 1),
        (MILAN, 1 << 7, 4),  # no page of 512 GiB
        (MILAN, 1 << 8, 4),
        (MILAN, 1 << 7 | 1 << 13, 2),  # a 2 MiB page between 2 MiB borders
        (MILAN, 1 << 7 | 1 << 20, 2),
        (MILAN, 1 << 7 | 1 << 29, 3),
        (EntryFormat(LONG_57, 52), 1 << 7, 5),
        (EntryFormat(PAE, 48), 1 << 52, 1),
        (EntryFormat(PAE, 48), 1 << 62, 2),
        *[(EntryFormat(PAE, 48), 1 << bit, 3) for bit in (1, 2, 5, 6, 7, 8, 63)],
        (EntryFormat(LEGACY, 40), 1 << 7 | 1 << 21, 2),
    ],
)
def test_a_bit_that_must_be_zero_is_told(form: EntryFormat, word: int, level: int) -> None:
    assert form.decode(word | 1, level).reserved


@pytest.mark.parametrize(
    ("form", "word", "level"),
    [
        (MILAN, 1 << 47, 1),
        (MILAN, 1 << 51, 1),
        (NAPLES, 1 << 47, 1),
        (MILAN, 0x7FF << 52, 1),
        (MILAN, 1 << 63, 1),
        (MILAN, 1 << 7 | 1 << 12, 2),  # PAT of a large page
        (MILAN, 1 << 7 | 1 << 21, 2),
        (EntryFormat(PAE, 48, c_bit=47), 1 << 47, 3),
        (EntryFormat(LEGACY, 40, large_pages=False), 1 << 7 | 1 << 21, 2),
    ],
)
def test_a_bit_that_means_something_is_not_reserved(form: EntryFormat, word: int, level: int) -> None:
    assert not form.decode(word | 1, level).reserved


def test_pages_of_4_mib_reach_40_bits_of_address() -> None:
    form = EntryFormat(LEGACY, 40)
    # PSE-36: 0x12_3440_0000 has bits 39:32 = 0x12.
    assert form.decode(0x3440_0000 | 0x12 << 13 | 0x87, 2).address == 0x12_3440_0000
    assert form.encode(PageTableEntry(0x12_3440_0000, large=True, accessed=False), 2) == 0x3440_0000 | 0x12 << 13 | 0x87


def test_an_index_is_nine_bits_of_the_address_or_ten() -> None:
    address = 0x0000_7F12_3456_7ABC
    assert [LONG.index(address, level) for level in (4, 3, 2, 1)] == [0xFE, 0x48, 0x1A2, 0x167]
    assert [PAE.index(0xC123_4567, level) for level in (3, 2, 1)] == [3, 0x9, 0x34]
    assert [LEGACY.index(0xC123_4567, level) for level in (2, 1)] == [0x304, 0x234]
    assert [LONG.leaf_bytes(level) for level in (1, 2, 3)] == [4096, 2 << 20, 1 << 30]
    assert LEGACY.leaf_bytes(2) == 4 << 20


def test_what_an_entry_cannot_hold_is_refused() -> None:
    for entry, level in (
        (PageTableEntry(0x1001), 1),
        (PageTableEntry(0x1000, large=True), 2),
        (PageTableEntry(1 << 48), 1),
        (PageTableEntry(-4096), 1),
    ):
        with pytest.raises(ValueError, match="address: expected a page's within 48 bits"):
            MILAN.encode(entry, level)
    with pytest.raises(ValueError, match="has no C-bit"):
        EntryFormat(LEGACY, 32).encode(PageTableEntry(0, encrypted=True), 1)


@given(
    mode=st.sampled_from([LONG, LONG_57]),
    level=st.integers(1, 5),
    page=st.integers(0, (1 << 36) - 1),
    flags=st.lists(st.booleans(), min_size=8, max_size=8),
    large=st.booleans(),
)
def test_what_is_encoded_is_decoded(mode: PagingMode, level: int, page: int, flags: list[bool], large: bool) -> None:
    large = large and level in (2, 3)
    form = EntryFormat(mode, 48, c_bit=51)
    size = mode.leaf_bytes(level) if large else 4096
    present, writable, user, accessed, dirty, glob, no_execute, encrypted = flags
    entry = PageTableEntry(
        page * 4096 // size * size, present, writable, user, accessed, dirty, large, glob and level < 4, no_execute,
        encrypted,
    )  # fmt: skip
    if level <= mode.levels:
        assert form.decode(form.encode(entry, level), level) == entry
