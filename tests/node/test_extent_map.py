"""Runs behave as a dictionary of addresses would, and neighbours that continue each other are one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from hypothesis import given, settings
from hypothesis import strategies as st

from node.extent_map import ExtentMap


@dataclass(frozen=True, slots=True)
class Number:
    """A value that advances with the address, unless it is still."""

    value: int
    still: bool = False

    def advanced(self, distance: int) -> Self:
        return self if self.still else type(self)(self.value + distance)


puts = st.tuples(
    st.integers(0, 60),
    st.integers(1, 30),
    st.none() | st.builds(Number, st.integers(0, 5), st.booleans()),
)


@settings(max_examples=93, deadline=None)
@given(st.lists(puts, max_size=12))
def test_runs_agree_with_a_value_for_each_address(changes: list[tuple[int, int, Number | None]]) -> None:
    runs: ExtentMap[Number] = ExtentMap()
    model: dict[int, Number] = {}
    for start, length, value in changes:
        runs.put(start, start + length, value)
        for address in range(start, start + length):
            model.pop(address, None)
            if value is not None:
                model[address] = value.advanced(address - start)
    for address in range(100):
        found = runs.find(address)
        assert (found[2].advanced(address - found[0]) if found else None) == model.get(address)
    seen = {}
    for first, stop, piece in runs.pieces(0, 100):
        for address in range(first, stop):
            if piece is not None:
                seen[address] = piece.advanced(address - first)
    assert seen == model
    for first, stop, _ in changes:
        assert runs.is_gap(first, first + stop) == model.keys().isdisjoint(range(first, first + stop))
    assert runs.is_gap(90, 91)
    borders = sum(
        address in model and (address - 1 not in model or model[address - 1].advanced(1) != model[address])
        for address in range(100)
    )
    assert len(runs) == borders


def test_a_range_between_runs_is_a_gap() -> None:
    runs: ExtentMap[Number] = ExtentMap()
    runs.put(10, 20, Number(0))
    assert list(runs.pieces(0, 30)) == [(0, 10, None), (10, 20, Number(0)), (20, 30, None)]
    runs.clear()
    assert list(runs.pieces(0, 30)) == [(0, 30, None)]
