"""What a guest shares is what it said last of each page."""

from hypothesis import given, settings
from hypothesis import strategies as st

from node.shared_pages import SharedPages

PAGES = 24


@settings(max_examples=60, deadline=None)
@given(
    said=st.lists(st.tuples(st.integers(0, PAGES - 1), st.integers(1, 8), st.booleans()), max_size=8),
    asked=st.tuples(st.integers(0, PAGES - 1), st.integers(1, PAGES)),
)
def test_every_page_is_as_it_was_told_last(said, asked):
    pages, expected = SharedPages(), [False] * (2 * PAGES)
    for first, count, shared in said:
        pages.change(first * 4096, count * 4096, shared=shared)
        expected[first : first + count] = [shared] * count
    assert pages.told == bool(said)
    first, count = asked
    parts = list(pages.parts(first * 4096, count * 4096))
    assert [shared for _, length, shared in parts for _ in range(length // 4096)] == expected[first : first + count]
    assert [gpa for gpa, _, _ in parts] == [
        first * 4096 + sum(length for _, length, _ in parts[:at]) for at in range(len(parts))
    ]
    found = [gpa // 4096 + page for gpa, length in pages.ranges() for page in range(length // 4096)]
    assert found == [page for page, shared in enumerate(expected) if shared]
    ends = [gpa + length for gpa, length in pages.ranges()]
    assert all(end < gpa for end, (gpa, _) in zip(ends, pages.ranges()[1:], strict=False))
