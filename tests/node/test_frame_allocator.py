"""Free memory: nothing is given out twice, and everything that comes back can be given out whole again."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from node.frame_allocator import FrameAllocator, OutOfMemory, joined

PAGE = 4096
LARGE = 2 << 20
RANGES = ((LARGE, 3 * LARGE), (5 * LARGE + PAGE, LARGE + 7 * PAGE))
TOTAL = sum(length for _, length in RANGES)


def test_one_piece_is_given_where_one_run_has_room() -> None:
    frames = FrameAllocator([(PAGE, 64 * LARGE)])
    assert frames.allocate(16 * LARGE, LARGE) == [(LARGE, 16 * LARGE)]


def test_pieces_that_touch_are_one_and_others_stay_apart() -> None:
    pieces = [(5 * PAGE, PAGE), (PAGE, 2 * PAGE), (9 * PAGE, PAGE), (3 * PAGE, 2 * PAGE)]
    assert list(joined(pieces)) == [(PAGE, 5 * PAGE), (9 * PAGE, PAGE)]
    assert list(joined([])) == []


def test_a_request_larger_than_any_run_is_met_in_aligned_pieces() -> None:
    frames = FrameAllocator([(LARGE, LARGE), (4 * LARGE + PAGE, 3 * LARGE)])
    assert frames.allocate(3 * LARGE, LARGE) == [(LARGE, LARGE), (5 * LARGE, 2 * LARGE)]


def test_a_request_that_cannot_be_met_takes_nothing() -> None:
    frames = FrameAllocator([(PAGE, 3 * LARGE)])  # room for two aligned pieces only
    with pytest.raises(OutOfMemory, match=str(3 * LARGE)):
        frames.allocate(3 * LARGE, LARGE)
    assert (frames.free_bytes, frames.used_bytes, frames.peak_bytes) == (3 * LARGE, 0, 0)
    assert frames.allocate(3 * LARGE, PAGE) == [(PAGE, 3 * LARGE)]


@pytest.mark.parametrize(
    "piece", [(LARGE, PAGE), (0, 2 * LARGE), (LARGE - PAGE, 2 * PAGE), (2 * LARGE - PAGE, 2 * PAGE), (8 * LARGE, 0)]
)
def test_memory_that_is_free_already_and_nothing_at_all_cannot_be_released(piece: tuple[int, int]) -> None:
    frames = FrameAllocator([(LARGE, LARGE)])
    with pytest.raises(ValueError, match=r"released twice|length"):
        frames.release([piece])
    assert frames.free_bytes == LARGE


@pytest.mark.parametrize("length", [0, -PAGE])
def test_an_empty_request_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="length"):
        FrameAllocator(RANGES).allocate(length, PAGE)


class Frames(RuleBasedStateMachine):
    """The model is the set of page numbers that are free."""

    @initialize()
    def start(self) -> None:
        self.frames = FrameAllocator(RANGES)
        self.free = {page for spa, length in RANGES for page in range(spa // PAGE, (spa + length) // PAGE)}
        self.held: list[list[tuple[int, int]]] = []
        self.peak = 0

    @rule(pages=st.sampled_from([1, 1, 2, 511, 512, 513, 1024, 2000]), alignment=st.sampled_from([PAGE, LARGE]))
    def allocate(self, pages: int, alignment: int) -> None:
        try:
            pieces = self.frames.allocate(pages * PAGE, alignment)
        except OutOfMemory:
            assert self.most(alignment) < pages
            return
        taken = [page for spa, length in pieces for page in range(spa // PAGE, (spa + length) // PAGE)]
        assert len(taken) == len(set(taken)) == pages
        assert self.free.issuperset(taken)
        assert not any(spa % alignment for spa, _ in pieces)
        self.free.difference_update(taken)
        self.held.append(pieces)
        self.peak = max(self.peak, TOTAL - len(self.free) * PAGE)

    @rule(units=st.lists(st.integers(1, 3), max_size=2), pages=st.sampled_from([1, 512, 700]))
    def allocate_row(self, units: list[int], pages: int) -> None:
        lengths = [*[unit * LARGE for unit in units], pages * PAGE]
        used = self.frames.used_bytes
        try:
            row = self.frames.allocate_row(lengths, LARGE)
        except OutOfMemory:
            assert self.frames.used_bytes == used
            self.peak = self.frames.peak_bytes  # What fitted was taken before the rest did not.
            return
        assert [sum(size for _, size in pieces) for pieces in row] == lengths
        pieces = [piece for pieces in row for piece in pieces]
        taken = [page for spa, length in pieces for page in range(spa // PAGE, (spa + length) // PAGE)]
        assert len(taken) == len(set(taken))
        assert self.free.issuperset(taken)
        assert not any(spa % LARGE for spa, _ in pieces)
        if len(list(joined(pieces))) > 1:
            assert not any(self._has_room(start, sum(lengths)) for start in range(0, max(self.free) * PAGE, LARGE))
        self.free.difference_update(taken)
        self.held.append(pieces)
        self.peak = max(self.peak, TOTAL - len(self.free) * PAGE)

    def _has_room(self, start: int, length: int) -> bool:
        return self.free.issuperset(range(start // PAGE, (start + length) // PAGE))

    def most(self, alignment: int) -> int:
        """Pages in whole free units; a request that fits one run as it is needs no more."""
        unit = alignment // PAGE
        last = max(self.free, default=0) + 1
        return sum(
            unit for page in range(0, last, unit) if all(one in self.free for one in range(page, page + unit))
        )

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        pieces = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.frames.release(pieces)
        self.free.update(page for spa, length in pieces for page in range(spa // PAGE, (spa + length) // PAGE))

    @invariant()
    def books_agree(self) -> None:
        assert self.frames.free_bytes == len(self.free) * PAGE
        assert self.frames.used_bytes == TOTAL - self.frames.free_bytes
        assert self.frames.peak_bytes == self.peak

    def teardown(self) -> None:
        for pieces in getattr(self, "held", ()):
            self.frames.release(pieces)
        if hasattr(self, "frames"):
            free = zip(self.frames._starts, self.frames._ends, strict=True)
            assert [(start, end - start) for start, end in free] == sorted(RANGES)


TestFrames = Frames.TestCase
TestFrames.settings = settings(max_examples=31, stateful_step_count=25, deadline=None)


def test_what_is_taken_from_the_end_leaves_the_beginning_in_one_piece():
    frames = FrameAllocator([(0, 16 << 20)])
    assert frames.allocate_last(3 * 4096, 4096) == [((16 << 20) - 3 * 4096, 3 * 4096)]
    assert frames.allocate_last(4096, 4096) == [((16 << 20) - 4 * 4096, 4096)]
    assert frames.allocate(14 << 20, 2 << 20) == [(0, 14 << 20)]
    assert frames.used_bytes == (14 << 20) + 4 * 4096
    with pytest.raises(OutOfMemory):
        frames.allocate_last(2 << 20, 4096)
    frames.release([((16 << 20) - 3 * 4096, 3 * 4096)])
    assert frames.allocate_last(2 * 4096, 4096) == [((16 << 20) - 2 * 4096, 2 * 4096)]
    with pytest.raises(ValueError, match="more than zero"):
        frames.allocate_last(0, 4096)
