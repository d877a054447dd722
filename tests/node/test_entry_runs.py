"""Runs in columns say of every page what was put there last, in as few runs as that takes, whatever the leaves."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node import entry_runs
from node.entry_runs import IN_DRAM, EntryRuns, Run
from node.rmp_entry import encoded
from psp.system_bus import PAGE_BYTES, RmpEntry

PAGES = 120
GUESTS = Run.of(RmpEntry(assigned=True, asid=3, gpa=0x10_0000, validated=True, vmpl_permissions=(15, 1, 2, 4)))
FIRMWARES = Run.of(RmpEntry(assigned=True, immutable=True))
KINDS = (GUESTS, FIRMWARES, IN_DRAM, None)
PUTS = st.lists(
    st.tuples(st.integers(0, PAGES - 1), st.sampled_from([1, 1, 1, 2, 5, 40]), st.sampled_from(KINDS), st.booleans()),
    min_size=1, max_size=120,
)  # fmt: skip




def at(run: Run | None, distance: int) -> tuple[int, int] | None:
    """Words of a page so far into a run, by the rule that GPAs of a guest's pages follow."""
    if run is None:
        return None
    return (run.low + (distance * PAGE_BYTES if run.low >> 51 & 0x3FF else 0), run.high)


def told(runs: EntryRuns) -> dict[int, tuple[int, int] | None]:
    return {
        page: at(run, page - first)
        for first, stop, run in runs.pieces(0, PAGES + 50)
        for page in range(first, stop)
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(PUTS)
def test_what_was_put_last_is_there(puts: list[tuple[int, int, Run | None, bool]]) -> None:
    patch = pytest.MonkeyPatch()
    for name, most in (("_MOST", 8), ("_FEW", 3), ("_JOINED", 7)):
        patch.setattr(entry_runs, name, most)
    runs, model = EntryRuns(PAGES), dict[int, tuple[int, int] | None].fromkeys(range(PAGES + 50))
    for start, pages, kind, follows in puts:
        run = kind.advanced(start) if kind is not None and follows else kind
        runs.put(start, start + pages, run)
        model.update({page: at(run, page - start) for page in range(start, start + pages)})
        assert all(len(leaf.starts) <= 8 for leaf in runs._leaves)
    assert told(runs) == model
    spans = [(first, stop, run) for first, stop, run in runs.pieces(0, PAGES + 50) if run is not None]
    assert len(runs) == len(spans) == runs.count(0, PAGES + 50)
    for before, after in pairwise(spans):
        assert before[1] < after[0] or before[2].advanced(before[1] - before[0]) != after[2]
    for page in range(PAGES):
        found = runs.find(page)
        assert (None if found is None else at(found[2], page - found[0])) == model[page]
        for stop in range(page + 1, page + 4):
            assert runs.is_gap(page, stop) == all(model[one] is None for one in range(page, stop))
            assert runs.count(page, stop) == sum(page <= span[0] < stop for span in spans)
    columns = runs.columns(7, 90)
    assert list(zip(*(one.tolist() for one in columns), strict=True)) == [
        (first, stop, run.low, run.high) for first, stop, run in runs.pieces(7, 90) if run is not None
    ]
    # Taken out and put in again in one piece, all is as it was.
    runs.replace(7, 90, columns)
    assert told(runs) == model
    assert len(runs) == len(spans)
    assert all(len(leaf.starts) <= 8 for leaf in runs._leaves)
    patch.undo()


def test_pages_beyond_16_tib_have_entries_too() -> None:
    runs = EntryRuns(1 << 40)
    runs.put((1 << 40) - 2, (1 << 40) - 1, GUESTS)
    assert runs.find((1 << 40) - 2) == ((1 << 40) - 2, (1 << 40) - 1, GUESTS)


def test_a_gap_that_was_found_is_none_once_a_run_lies_there_and_one_again_after_that() -> None:
    runs = EntryRuns(1 << 20)
    for _ in range(2):
        assert runs.is_gap(0, 1 << 20)
        assert runs.is_gap(10, 20)
        runs.put(15, 16, GUESTS)
        assert not runs.is_gap(10, 20)
        assert runs.is_gap(0, 15)
        assert not runs.is_gap(0, 16)
        assert runs.is_gap(16, 1 << 20)
        assert not runs.is_gap(15, 1 << 20)
        runs.clear()


def test_nothing_is_left_of_runs_that_are_gone() -> None:
    runs = EntryRuns(1 << 20)
    for page in range(0, 6000, 2):
        runs.put(page, page + 1, GUESTS)
    for page in range(5998, -2, -2):
        runs.put(page, page + 1, None)
    assert len(runs) == 0
    assert len(runs._leaves) == 1
    assert list(runs.pieces(0, 9)) == [(0, 9, None)]
    assert not len(runs.columns(0, 9).starts)


def test_an_entry_of_a_run_is_the_one_that_was_put() -> None:
    entry = RmpEntry(True, True, True, 0x40_0000, 7, True, True, (1, 2, 3, 255))
    assert Run.of(entry).entry == entry
    assert Run.of(entry) == encoded(entry)
    assert np.uint64(IN_DRAM.low) == 1 << 63
    assert IN_DRAM.entry is None
