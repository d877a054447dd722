"""Raw entries and where they lie, worked out by hand from the table of bits."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.rmp_entry import ENTRY_FIELDS, decoded, encoded, state_form
from node.rmp_layout import RMP_CFG_64_GIB, EntryArray, RmpLayout, at_end_of_memory
from psp.system_bus import RmpEntry

GIB = 1 << 30


def test_the_fields_fill_the_low_word_and_half_the_high_one() -> None:
    for word, bits in ((0, 64), (1, 32)):
        at = 0
        for field in [one for one in ENTRY_FIELDS if one.word == word]:
            assert field.bit == at, field.name
            at += field.width
        assert at == bits


@pytest.mark.parametrize(
    ("entry", "low", "high"),
    [
        (RmpEntry(), 0, 0),
        (RmpEntry(immutable=True), 0b100, 0),  # HV-Fixed
        (RmpEntry(assigned=True, immutable=True), 0b101, 0),  # Firmware
        (RmpEntry(assigned=True, immutable=True, vmsa=True), 0x2000_0000_0000_0005, 0),  # Context
        (RmpEntry(assigned=True, large=True, gpa=0x20_0000, asid=1), 0x0008_0000_0020_0003, 0),
        (
            RmpEntry(True, False, False, 0x7_FFFF_FFFF_F000, 0x3FF, True, True, (0x0F, 0x01, 0x03, 0xFF)),
            0x7FFF_FFFF_FFFF_F001,
            0xFF03_010F,
        ),
        (RmpEntry(True, False, True, 0x1000, 5, False, True, (0xF, 0, 0, 0)), 0x4028_0000_0000_1005, 0xF),
    ],
)
def test_entries_as_words(entry: RmpEntry, low: int, high: int) -> None:
    assert encoded(entry) == (low, high)
    assert decoded(low, high, large=entry.large) == entry


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1))
def test_any_words_become_an_entry_and_come_back_without_count_and_lock(low: int, high: int) -> None:
    entry = decoded(low, high, large=bool(low & 2))
    assert encoded(entry) == (low & ~(0x1FF << 3) & ~(1 << 63), high)


def test_the_form_of_rmpread_and_rmpupdate() -> None:
    entry = RmpEntry(assigned=True, large=True, gpa=0x1234_5600_0000, asid=0x3EE, validated=True)
    assert state_form(entry) == bytes.fromhex("0000005634120000 01 01 00 00 ee030000")
    immutable = RmpEntry(assigned=True, immutable=True)
    assert state_form(immutable, region_in_use=True) == bytes.fromhex("0000000000000000 01 02 01 00 00000000")


def test_a_flat_table_has_its_entries_16_kib_after_its_base() -> None:
    layout = RmpLayout.flat(0x1_0000_0000, 0x1_00FF_FFFF)
    assert layout.entry_spa(0) == 0x1_0000_4000
    assert layout.entry_spa(0x12345) == 0x1_0000_4000 + 0x123450
    covered = (0x100_0000 - 0x4000) // 16
    assert layout.covers(0, covered)
    assert not layout.covers(0, covered + 1)
    assert layout.ranges() == ((0x1_0000_0000, 0x100_0000),)
    assert list(layout.pages_at(0x1_0000_4008, 16)) == [(0, 2)]
    assert list(layout.pages_at(0x1_0000_0000, 0x4000)) == []
    # The low 13 bits of RMP_BASE are no address and those of RMP_END read as ones.
    assert RmpLayout.flat(0x1_0000_1FFF, 0x1_00FF_E000) == layout
    with pytest.raises(ValueError, match="RMP_END: expected room"):
        RmpLayout.flat(0x1_0000_0000, 0x1_0000_3FFF)


def test_a_segmented_table_finds_its_entries_through_the_segment_table() -> None:
    words = [0] * 512
    words[0] = 0x8_0000_0000 | 64
    words[1] = 0x4_0000_0000 | 3
    words[5] = 0x5_0010_0000 | 1
    layout = RmpLayout.segmented(0x10_0000, RMP_CFG_64_GIB, struct.pack("<512Q", *words))
    pages = 64 * GIB // 4096
    assert layout.entry_spa(7) == 0x8_0000_0000 + 7 * 16
    assert layout.entry_spa(pages + 7) == 0x4_0000_0000 + 7 * 16
    assert layout.entry_spa(5 * pages) == 0x5_0010_0000
    assert layout.covers(pages - 1, pages + 1)
    assert layout.covers(pages, pages + 3 * GIB // 4096)
    assert not layout.covers(pages, pages + 3 * GIB // 4096 + 1)
    assert not layout.covers(-1, 1)
    assert layout.segment_table() == struct.pack("<512Q", *words)
    assert layout.header_bytes == 0x5000


@pytest.mark.parametrize(
    ("cfg", "reach", "problem"),
    [(0x2400, 1, "RMP_CFG"), (0x0C01, 1, "RMP_CFG"), (0x2401, 65, "RMP segment 3: expected at most a segment")],
)
def test_impossible_segments_are_named(cfg: int, reach: int, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        RmpLayout.segmented(0, cfg, struct.pack("<512Q", *[0, 0, 0, reach], *[0] * 508))


@pytest.mark.parametrize("memory", [128 << 20, 4 * GIB, 100 * GIB, 1024 * GIB])
@pytest.mark.parametrize("segmented", [False, True])
def test_firmware_reserves_room_for_all_of_memory_at_its_end(memory: int, segmented: bool) -> None:
    layout = at_end_of_memory(memory, segmented=segmented)
    assert layout.covers(0, memory // 4096)
    taken = sorted(layout.ranges())
    assert taken[0][0] == layout.base
    assert layout.base % (1 << 20) == 0
    assert all(one[0] + one[1] <= two[0] for one, two in pairwise(taken))
    assert taken[-1][0] + taken[-1][1] <= memory
    assert all(array.spa % (1 << 20) == 0 for array in layout.arrays if segmented)
    assert not layout.covers(memory // 4096 + (2 << 20), memory // 4096 + (2 << 20) + 1)
    if segmented:
        assert RmpLayout.segmented(layout.base, RMP_CFG_64_GIB, layout.segment_table()) == layout
        assert all(isinstance(one, EntryArray) for one in layout.arrays)


@pytest.mark.parametrize("mmio", [(128 << 30, 8 << 30), (100 << 30, 1 << 20), (191 << 30, 130 << 30)])
@pytest.mark.parametrize("segmented", [False, True])
def test_a_table_that_covers_mmio_has_entries_for_memory_and_for_the_window(
    mmio: tuple[int, int], segmented: bool
) -> None:
    memory = 100 * GIB
    layout = at_end_of_memory(memory, segmented=segmented, mmio=mmio)
    first, end = mmio[0] // 4096, sum(mmio) // 4096
    assert layout.covers(0, memory // 4096)
    assert layout.covers(first, end)
    assert not layout.covers(end + (1 << 20), end + (1 << 20) + 1)
    taken = sorted(layout.ranges())
    assert all(one[0] + one[1] <= two[0] for one, two in pairwise(taken))
    assert taken[0][0] >= 0
    assert taken[-1][0] + taken[-1][1] <= memory
    entries = {layout.entry_spa(page) for page in (0, memory // 4096 - 1, first, end - 1)}
    assert len(entries) == 4
    if segmented:
        assert RmpLayout.segmented(layout.base, RMP_CFG_64_GIB, layout.segment_table()) == layout


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize(
    ("mmio", "problem"),
    [
        ((0, 1 << 20), "above memory"),
        ((GIB - 4096, 8192), "above memory"),
        ((GIB, -4096), "above memory"),
        ((8192 * GIB, 512 * GIB), "room"),
        ((1 << 51, 4096), "room"),
    ],
)
def test_a_window_that_cannot_be_covered_is_refused(mmio: tuple[int, int], problem: str, segmented: bool) -> None:
    with pytest.raises(ValueError, match=problem):
        at_end_of_memory(GIB, segmented=segmented, mmio=mmio)
