"""Guest-physical addresses reach the memory they were last pointed at, or fault."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.nested_page_table import NestedPageFault, NestedPageTable

PAGE = 4096


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 100) | st.none(), st.integers(1, 8)), max_size=10),
    st.integers(0, 40 * PAGE - 1),
    st.integers(1, 4 * PAGE),
)
def test_translation_agrees_with_one_entry_a_page(
    changes: list[tuple[int, int | None, int]], gpa: int, length: int
) -> None:
    table = NestedPageTable()
    model: dict[int, int] = {}
    for page, target, count in changes:
        for number in range(count):
            model.pop(page + number, None)
            if target is not None:
                model[page + number] = target + number
        if target is None:
            table.unmap(page * PAGE, count * PAGE)
        else:
            table.map(page * PAGE, target * PAGE, count * PAGE)
    missing = [page for page in range(gpa // PAGE, (gpa + length - 1) // PAGE + 1) if page not in model]
    if missing:
        with pytest.raises(NestedPageFault) as caught:
            table.translate(gpa, length)
        assert caught.value.gpa // PAGE == missing[0]
        return
    reached = [spa + offset for spa, size in table.translate(gpa, length) for offset in range(size)]
    assert reached == [model[at // PAGE] * PAGE + at % PAGE for at in range(gpa, gpa + length)]


@pytest.mark.parametrize(("gpa", "spa", "length"), [(1, 0, PAGE), (0, 1, PAGE), (0, 0, 1), (-PAGE, 0, PAGE)])
def test_only_whole_pages_are_mapped(gpa: int, spa: int, length: int) -> None:
    with pytest.raises(ValueError, match="whole 4 KiB pages"):
        NestedPageTable().map(gpa, spa, length)


def test_sixty_four_gib_are_one_run() -> None:
    table = NestedPageTable()
    for part in range(64):
        table.map(part << 30, (100 + part) << 30, 1 << 30)
    assert len(table) == 1
