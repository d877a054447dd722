"""Nested page tables against one plain entry per page; runs stay few where mappings are regular."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from rmp_tables import rmp_of

from node.nested_page_table import NestedPageFault, NestedPageTable
from node.rmp import GuestCore, RmpCode
from psp.system_bus import RmpEntry

PAGE = 4096
GIB = 1 << 30
PAGES = 64


def test_a_range_is_translated_in_as_few_pieces_as_it_is_mapped_in() -> None:
    table = NestedPageTable()
    table.map(0, 16 * PAGE, 2 * PAGE)
    table.map(2 * PAGE, 18 * PAGE, PAGE)  # continues the first
    table.map(3 * PAGE, 5 * PAGE, PAGE)
    assert len(table) == 2
    assert table.translate(100, 3 * PAGE) == [
        (16 * PAGE + 100, 3 * PAGE - 100, False, 0),
        (5 * PAGE, 100, False, False),
    ]


def test_a_fault_names_the_first_address_without_a_mapping() -> None:
    table = NestedPageTable()
    table.map(0, 16 * PAGE, PAGE)
    for gpa, length, missing in ((8 * PAGE, 1, 8 * PAGE), (100, PAGE, PAGE), (PAGE, 0, PAGE), (0, -1, 0)):
        with pytest.raises(NestedPageFault) as caught:
            table.translate(gpa, length)
        assert caught.value.gpa == missing


def test_only_whole_pages_are_mapped() -> None:
    table = NestedPageTable()
    for gpa, spa, length in ((1, 0, PAGE), (0, 8, PAGE), (0, 0, 100), (-PAGE, 0, PAGE), (0, -PAGE, PAGE)):
        with pytest.raises(ValueError, match="whole 4 KiB pages"):
            table.map(gpa, spa, length)
    with pytest.raises(ValueError, match="whole 4 KiB pages"):
        table.unmap(0, 100)
    assert len(table) == 0


def test_an_empty_mapping_maps_nothing() -> None:
    table = NestedPageTable()
    table.map(0, 0, 0)
    assert len(table) == 0
    table.map(0, GIB, 4 * PAGE)
    table.map(PAGE, 0, 0)
    table.unmap(PAGE, 0)
    assert len(table) == 1
    assert table.translate(0, 4 * PAGE) == [(GIB, 4 * PAGE, False, False)]


def test_a_guest_of_16_gib_that_nobody_touched_costs_at_most_64_kib() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        rmp = rmp_of(64 * GIB)
        table = NestedPageTable()
        table.map(0, GIB, 16 * GIB)
        assert rmp.rmpupdate(GIB, 16 * GIB, RmpEntry(assigned=True, large=True, asid=1)) is RmpCode.SUCCESS
        assert rmp.pvalidate(GIB, 0, GuestCore(1), 16 * GIB, large=True, validate=True) == (RmpCode.SUCCESS, False)
        assert tracemalloc.get_traced_memory()[0] - before <= 64 << 10
    finally:
        tracemalloc.stop()


@given(st.permutations(range(40)))
@settings(max_examples=30, deadline=None)
def test_pages_mapped_one_by_one_in_any_order_become_one_run(order: list[int]) -> None:
    table = NestedPageTable()
    for page in order:
        table.map(page * PAGE, GIB + page * PAGE, PAGE)
    assert len(table) == 1


class Mappings(RuleBasedStateMachine):
    """Maps and unmaps over a few pages, with targets that often continue their neighbours."""

    pages = st.integers(0, PAGES - 1)
    counts = st.integers(0, 12)

    @initialize()
    def start(self) -> None:
        self.table = NestedPageTable()
        self.model: dict[int, int] = {}

    @rule(page=pages, count=counts, shift=st.sampled_from([0, 0, 100, 101]))
    def map(self, page: int, count: int, shift: int) -> None:
        self.table.map(page * PAGE, (page + shift) * PAGE, count * PAGE)
        self.model.update((number, number + shift) for number in range(page, page + count))

    @rule(page=pages, count=counts)
    def unmap(self, page: int, count: int) -> None:
        self.table.unmap(page * PAGE, count * PAGE)
        for number in range(page, page + count):
            self.model.pop(number, None)

    @rule(gpa=st.integers(0, PAGES * PAGE), length=st.integers(1, 10 * PAGE))
    def translate(self, gpa: int, length: int) -> None:
        touched = range(gpa // PAGE, (gpa + length - 1) // PAGE + 1)
        missing = [page for page in touched if page not in self.model]
        if missing:
            with pytest.raises(NestedPageFault) as caught:
                self.table.translate(gpa, length)
            assert caught.value.gpa == max(gpa, missing[0] * PAGE)
            return
        pieces = self.table.translate(gpa, length)
        assert sum(size for _, size, _, _ in pieces) == length
        at = gpa
        for spa, size, _, _ in pieces:
            for address in {at, at + size - 1, *range(at - at % PAGE + PAGE, at + size, PAGE)}:
                assert spa + address - at == self.model[address // PAGE] * PAGE + address % PAGE
            at += size

    @invariant()
    def neighbours_that_continue_each_other_are_one_run(self) -> None:
        runs = sum(self.model.get(page - 1) != target - 1 for page, target in self.model.items())
        assert len(self.table) == runs


TestMappings = Mappings.TestCase
TestMappings.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
