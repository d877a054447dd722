"""Free memory is handed out once, aligned, and comes back whole."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.frame_allocator import FrameAllocator, OutOfMemory

PAGE, LARGE = 4096, 2 << 20
SIZE = 64 * LARGE


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12), st.integers(0, 20)), max_size=40))
def test_pieces_never_overlap_and_all_of_them_come_back(steps: list[tuple[bool, int, int]]) -> None:
    frames = FrameAllocator([(LARGE, SIZE)])
    held: list[list[tuple[int, int]]] = []
    peak = 0
    for large, count, victim in steps:
        unit = LARGE if large else PAGE
        if held and victim < 8:
            frames.release(held.pop(victim % len(held)))
        else:
            try:
                pieces = frames.allocate(count * unit, unit)
            except OutOfMemory:
                continue
            assert sum(length for _, length in pieces) == count * unit
            assert all(spa % unit == 0 and spa >= LARGE and spa + length <= LARGE + SIZE for spa, length in pieces)
            held.append(pieces)
        spans = sorted((spa, spa + length) for pieces in held for spa, length in pieces)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        used = sum(end - start for start, end in spans)
        peak = max(peak, used)
        assert (frames.used_bytes, frames.free_bytes, frames.peak_bytes) == (used, SIZE - used, peak)
    for pieces in held:
        frames.release(pieces)
    assert frames.allocate(SIZE, LARGE) == [(LARGE, SIZE)]


def test_memory_in_one_piece_is_preferred_and_scattered_memory_taken_if_need_be() -> None:
    frames = FrameAllocator([(0, 4 * LARGE), (10 * LARGE, 6 * LARGE)])
    assert frames.allocate(5 * LARGE, LARGE) == [(10 * LARGE, 5 * LARGE)]
    assert frames.allocate(5 * LARGE, LARGE) == [(0, 4 * LARGE), (15 * LARGE, LARGE)]


def test_too_much_is_refused_with_what_there_is() -> None:
    frames = FrameAllocator([(0, LARGE)])
    with pytest.raises(OutOfMemory, match=rf"memory: {2 * LARGE} bytes wanted, {LARGE} free"):
        frames.allocate(2 * LARGE, LARGE)
    assert frames.free_bytes == LARGE


def test_what_is_free_cannot_be_released() -> None:
    frames = FrameAllocator([(0, LARGE)])
    pieces = frames.allocate(PAGE, PAGE)
    frames.release(pieces)
    with pytest.raises(ValueError, match="released twice"):
        frames.release(pieces)
