"""Ranges whose owners are told of accesses: who hears of what, and how they let go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.kept_ranges import KeptRanges


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 30)), max_size=12),
    st.lists(st.integers(0, 200), max_size=4),
    st.integers(0, 220),
    st.integers(0, 60),
)
def test_exactly_the_owners_that_an_access_meets_are_told_of_their_part(
    ranges: list[tuple[int, int]], gone: list[int], spa: int, length: int
) -> None:
    kept, model, told = KeptRanges(500), {}, []
    for start, size in ranges:
        if any(start < end and first < start + size for first, end in model.items()) and size:
            with pytest.raises(ValueError, match="kept by another"):
                kept.keep(start, size, lambda *_: None)
        else:
            kept.keep(start, size, lambda *part: told.append(part))
            if size:
                model[start] = start + size
    for start in gone:
        kept.let_go(start)
        model.pop(start, None)
    assert kept.first == min(model, default=500)
    kept.tell(spa, length)
    met = [(max(spa, first), min(spa + length, end)) for first, end in sorted(model.items())]
    assert told == [(low, high - low) for low, high in met if low < high]
    assert kept.meets(spa, length) == any(low < high for low, high in met)


def test_an_owner_may_let_go_while_it_is_told() -> None:
    kept, told = KeptRanges(100), []
    for start in (10, 20, 30):
        kept.keep(start, 5, lambda spa, _: (told.append(spa), kept.let_go(spa), kept.let_go(20)))
    kept.tell(0, 100)
    assert told == [10, 20, 30]
    assert kept.first == 100


def test_an_owner_who_comes_while_another_is_told_is_told_of_the_same_access() -> None:
    """A VM that is laid down has nested tables, which hold what lies there in another form yet."""
    kept, heard = KeptRanges(1 << 20), []

    def tables(spa: int, length: int) -> None:
        heard.append(("tables", spa, length))

    def vm(spa: int, length: int) -> None:
        heard.append(("vm", spa, length))
        kept.let_go(0x1000)
        kept.keep(0x3000, 0x1000, tables)

    assert kept.keep_apart(0x1000, 0x8000, vm)
    kept.tell(0x2000, 0x4000)
    assert heard == [("vm", 0x2000, 0x4000), ("tables", 0x3000, 0x1000)]
