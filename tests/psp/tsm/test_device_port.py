"""A device's port is found by the streams in its IDE extended capability, word by word from the standard."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psp.tsm.device_port import find_ports, stream_ids
from tio.ide.key_messages import QueryResponse
from tio.ide.key_programmer import KeyProgrammingError
from tio.steps import carry

HEADER = 0x30 | 1 << 16


def block(stream_id: int, ranges: int = 0) -> tuple[int, ...]:
    """Capability, control, status, two of requester ids, three for each range of addresses."""
    return (ranges, stream_id << 24 | 1, 2, 0xFFFF, 1, *(0xEE00_0000,) * 3 * ranges)


@pytest.mark.parametrize(
    ("registers", "expected"),
    [
        ((), set()),
        ((HEADER, 2), set()),
        ((HEADER, 0, 0, *block(5)), set()),
        ((HEADER, 2, 0, *block(5)), {5}),
        ((HEADER, 2 | 1 << 16, 0, *block(5), *block(9)), {5, 9}),
        ((HEADER, 2 | 1 << 16, 0, *block(5, ranges=2), *block(9)), {5, 9}),
        ((HEADER, 3 | 1 << 13 | 1 << 16, 0, *(0x7700_0000,) * 4, *block(5, ranges=1), *block(255)), {5, 255}),
        ((HEADER, 2 | 255 << 16, 0, *block(5)), {5}),
    ],
)
def test_streams_are_where_the_capability_says(registers: tuple[int, ...], expected: set[int]) -> None:
    assert stream_ids(registers) == expected


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, (1 << 32) - 1), max_size=24))
def test_any_words_name_some_streams(words: list[int]) -> None:
    assert stream_ids(tuple(words)) <= set(range(256))


def test_ports_are_asked_one_after_the_other_until_all_streams_are_found() -> None:
    asked = []

    def answer(query: bytes) -> bytes:
        index = query[2]
        asked.append(index)
        registers = (HEADER, 2, 0, *block(10 + index))
        return QueryResponse(index, 0, 1, 0, 3, registers).pack()

    assert carry(find_ports(frozenset({10, 12})), answer) == {10: 0, 12: 2}
    assert asked == [0, 1, 2]
    with pytest.raises(KeyProgrammingError, match="expected streams"):
        carry(find_ports(frozenset({99})), answer)
