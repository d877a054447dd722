"""The page state change structure: bytes of the specification, checked whole before anything is done."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.page_state_list import (
    INVALID_ENTRY,
    INVALID_HEADER,
    MOST_ENTRIES,
    PageListRefused,
    PageOperation,
    PageStateEntry,
    PageStateList,
    PageStateRun,
    build_list,
    current_entry,
    entries_of,
)

SHARED, PRIVATE = PageOperation.SHARED, PageOperation.PRIVATE
LARGE = 2 << 20


def word(gfn, operation=2, large=0, done=0, reserved=0):
    return done | gfn << 12 | operation << 52 | large << 56 | reserved << 57


def raw(current, last, *words):
    return struct.pack(f"<HHI{len(words)}Q", current, last, 0, *words)


def test_a_list_lies_as_the_specification_lays_it():
    entries = [PageStateEntry(0x80_9000, SHARED), PageStateEntry(LARGE, PRIVATE, large=True, done=3)]
    data = raw(0, 1, word(0x809), word(512, 1, 1, 3))
    assert build_list(entries) == data
    assert PageStateList.parse(data) == PageStateList(0, tuple(entries))
    assert PageStateList.parse(raw(1, 1, 0, word(1))).entries == (PageStateEntry(4096, SHARED),)


BAD = {
    "too short": (bytes(7), INVALID_HEADER),
    "start after end": (raw(2, 1, 0, 0), INVALID_HEADER),
    "count past the most": (raw(0, MOST_ENTRIES, *[word(1)] * (MOST_ENTRIES + 1)), INVALID_HEADER),
    "count of all ones": (raw(0, 0xFFFF, word(1)), INVALID_HEADER),
    "more than the memory holds": (raw(0, 2, word(1), word(2)), INVALID_HEADER),
    "operation 0": (raw(0, 0, word(1, 0)), INVALID_ENTRY),
    "operation 5": (raw(0, 0, word(1, 5)), INVALID_ENTRY),
    "reserved bits": (raw(0, 0, word(1, reserved=1)), INVALID_ENTRY),
    "highest reserved bit": (raw(0, 0, word(1, reserved=64)), INVALID_ENTRY),
    "a large page at an odd address": (raw(0, 0, word(513, large=1)), INVALID_ENTRY),
    "more done than a page": (raw(0, 0, word(1, done=2)), INVALID_ENTRY),
    "more done than a large page": (raw(0, 0, word(512, large=1, done=513)), INVALID_ENTRY),
    "a good entry before a bad one": (raw(0, 1, word(1), word(2, 9)), INVALID_ENTRY),
}


@pytest.mark.parametrize(("data", "status"), BAD.values(), ids=BAD)
def test_a_malformed_list_gets_the_status_of_the_specification(data, status):
    with pytest.raises(PageListRefused) as refused:
        PageStateList.parse(data)
    assert refused.value.status == status


def test_entries_that_are_through_already_are_not_looked_at():
    assert PageStateList.parse(raw(1, 1, word(1, 9), word(2))).current == 1


def test_adjacent_pages_change_in_one_go():
    data = raw(0, 5, word(1), word(2), word(3, 1), word(512, 2, 1), word(1024, 2, 1), word(4))
    assert list(PageStateList.parse(data).runs()) == [
        PageStateRun(4096, 8192, SHARED, False, 2),
        PageStateRun(3 * 4096, 4096, PRIVATE, False, 3),
        PageStateRun(LARGE, 2 * LARGE, SHARED, True, 5),
        PageStateRun(4 * 4096, 4096, SHARED, False, 6),
    ]


def test_a_large_page_cut_short_goes_on_in_small_ones():
    data = raw(0, 0, word(512, 2, 1, 200))
    assert list(PageStateList.parse(data).runs()) == [
        PageStateRun(LARGE + 200 * 4096, 312 * 4096, SHARED, False, 1)
    ]


def test_progress_moves_the_current_entry_and_marks_what_is_through():
    data = bytearray(raw(1, 3, word(7), word(8), word(512, 2, 1), word(9)))
    for offset, part in PageStateList.parse(bytes(data)).progress(3):
        data[offset : offset + len(part)] = part
    assert bytes(data) == raw(3, 3, word(7), word(8, done=1), word(512, 2, 1, 512), word(9))
    assert current_entry(bytes(data)) == 3
    assert PageStateList.parse(bytes(data)).progress(3) == ()


@given(st.integers(0, 1 << 12), st.integers(1, 1500))
def test_entries_cover_a_range_once_in_pages_as_large_as_they_can_be(first, pages):
    gpa, length = first * 4096, pages * 4096
    entries = list(entries_of(gpa, length, SHARED))
    covered = [page for one in entries for page in range(one.gpa // 4096, one.gpa // 4096 + one.pages)]
    assert covered == list(range(first, first + pages))
    large = sum(entry.large for entry in entries)
    assert large == max(0, (gpa + length) // LARGE - -(-gpa // LARGE))


ENTRIES = st.integers(0, (1 << 64) - 1) | st.builds(word, st.integers(0, 2000), st.integers(0, 5), st.integers(0, 1))
LISTS = st.builds(
    lambda current, last, words: raw(current, last, *words),
    st.integers(0, 9),
    st.integers(0, 9),
    st.lists(ENTRIES, max_size=9),
)


@given(st.binary(max_size=80) | LISTS)
def test_any_bytes_are_a_list_of_bounded_work_or_refused(data):
    try:
        pages = PageStateList.parse(data)
    except PageListRefused as refused:
        assert refused.status in (INVALID_HEADER, INVALID_ENTRY)
        return
    runs = list(pages.runs())
    assert 1 <= len(runs) <= len(pages.entries) <= MOST_ENTRIES
    assert runs[-1].current == pages.current + len(pages.entries)
    assert sum(run.length for run in runs) == sum((one.pages - one.done) * 4096 for one in pages.entries)


def test_a_list_of_none_or_too_many_is_the_callers_mistake():
    for count in (0, MOST_ENTRIES + 1):
        with pytest.raises(ValueError, match="1 to 253"):
            build_list([PageStateEntry(0, SHARED)] * count)
