"""Translation buffers: tags, sizes, flushes and their bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.tlb import Space, Tlb, Translation

PAGE, LARGE, HUGE = 4096, 2 << 20, 1 << 30
GPA, GVA = Space.GUEST_PHYSICAL, Space.VIRTUAL


def test_one_changed_entry_drops_the_large_translation_around_it() -> None:
    tlb = Tlb(4)
    tlb.fill(0, 1, GPA, 0, page(2, LARGE))
    tlb.drop(LARGE, 2 * LARGE)
    tlb.drop(3 * LARGE, 4 * LARGE)
    assert tlb.find(0, 1, GPA, 0) is not None
    tlb.drop(2 * LARGE + 7 * PAGE, 2 * LARGE + 8 * PAGE)
    assert tlb.find(0, 1, GPA, 0) is None


def page(number: int, size: int = PAGE, **more: bool) -> Translation:
    return Translation(number * size, size, **more)


@pytest.mark.parametrize("size", [PAGE, LARGE, 4 << 20, HUGE])
def test_a_translation_serves_its_whole_page_and_nothing_beside_it(size: int) -> None:
    tlb = Tlb(8)
    tlb.fill(0, 1, GVA, 5 * size + 123, page(9, size))
    for address in (5 * size, 5 * size + size // 2, 6 * size - 1):
        found = tlb.find(0, 1, GVA, address)
        assert found is not None
        assert found.page == 9 * size
    assert tlb.find(0, 1, GVA, 5 * size - 1) is None
    assert tlb.find(0, 1, GVA, 6 * size) is None
    assert (tlb.hits, tlb.misses) == (3, 2)


def test_threads_asids_and_kinds_of_address_share_nothing() -> None:
    tlb = Tlb(8)
    tlb.fill(0, 1, GVA, 0, page(1))
    assert tlb.find(1, 1, GVA, 0) is None
    assert tlb.find(0, 2, GVA, 0) is None
    assert tlb.find(0, "vm", GVA, 0) is None
    assert tlb.find(0, 1, GPA, 0) is None
    assert tlb.find(0, 1, GVA, 0) is not None


def filled() -> Tlb:
    tlb = Tlb(32)
    for core in (0, 1):
        for tag in (1, 2):
            tlb.fill(core, tag, GVA, 0, page(1))
            tlb.fill(core, tag, GVA, LARGE, page(2, LARGE, global_=True))
            tlb.fill(core, tag, GPA, 0, page(3))
    return tlb


def held(tlb: Tlb, core: int, tag: int) -> list[bool]:
    where = [(GVA, 0), (GVA, LARGE), (GPA, 0)]
    return [tlb.find(core, tag, space, address) is not None for space, address in where]


ALL, NONE = [True] * 3, [False] * 3


def test_a_flush_of_one_asid_leaves_others_and_other_threads_alone() -> None:
    tlb = filled()
    tlb.flush(0, 1)
    assert (held(tlb, 0, 1), held(tlb, 0, 2), held(tlb, 1, 1)) == (NONE, ALL, ALL)
    tlb.flush(0, 2, keep_global=True)
    assert held(tlb, 0, 2) == [False, True, False]
    tlb.flush(1)
    assert (held(tlb, 1, 1), held(tlb, 1, 2)) == (NONE, NONE)
    tlb.flush(7)


def test_the_guests_own_flushes_leave_nested_translations_alone() -> None:
    tlb = filled()
    tlb.flush_virtual(0, 1, keep_global=True)
    assert held(tlb, 0, 1) == [False, True, True]
    tlb.flush_address(0, 1, LARGE + 5)
    assert held(tlb, 0, 1) == [False, False, True]
    assert held(tlb, 0, 2) == ALL
    tlb.flush_virtual(0, 2, keep_global=False)
    assert held(tlb, 0, 2) == [False, False, True]


@pytest.mark.parametrize(
    ("start", "end", "left"),
    [
        (3 * PAGE, 4 * PAGE, [True, True, False]),
        (2 * PAGE, 3 * PAGE, ALL),
        (PAGE, 2 * PAGE, ALL),  # a guest-physical address of the same number
        (0, HUGE, [True, True, False]),
    ],
)
def test_a_change_of_rmp_entries_drops_what_leads_to_their_pages_on_every_thread(
    start: int, end: int, left: list[bool]
) -> None:
    tlb = filled()
    tlb.drop(start, end)
    assert [held(tlb, core, tag) for core in (0, 1) for tag in (1, 2)] == [left] * 4


def test_what_was_not_used_for_longest_goes_first() -> None:
    tlb = Tlb(2)
    tlb.fill(0, 1, GVA, 0, page(0))
    tlb.fill(0, 1, GVA, PAGE, page(1))
    tlb.find(0, 1, GVA, 0)
    tlb.fill(0, 1, GVA, 2 * PAGE, page(2))
    assert [tlb.find(0, 1, GVA, at * PAGE) is not None for at in range(3)] == [True, False, True]
    tlb.fill(0, 1, GVA, 0, page(7))  # in the place of its like
    assert len(tlb) == 2
    found = tlb.find(0, 1, GVA, 0)
    assert found is not None
    assert found.page == 7 * PAGE


@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 2), st.integers(1, 2), st.integers(0, 9)), max_size=60))
def test_a_thread_never_holds_more_than_it_has_room_for(most: int, fills: list[tuple[int, int, int]]) -> None:
    tlb = Tlb(most)
    for core, asid, number in fills:
        tlb.fill(core, asid, GPA, number * PAGE, page(number))
        assert tlb.find(core, asid, GPA, number * PAGE) is not None
    for core in range(3):
        kept = sum(tlb.find(core, asid, GPA, at * PAGE) is not None for asid in (1, 2) for at in range(10))
        assert kept <= most
        assert kept == min(most, len({fill for fill in fills if fill[0] == core}))


def test_a_buffer_has_room_for_something() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Tlb(0)
