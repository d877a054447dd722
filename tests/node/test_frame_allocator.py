"""Free memory: nothing is given out twice, and everything that comes back can be given out whole again."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from node.frame_allocator import MOST_PUT_OFF, FrameAllocator, OutOfMemory, Wanted, joined

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


class Tenant:
    """A run, pages and a run from the end, then the rest of its pages, of each of two allocators."""

    def __init__(self, wanted: Wanted, rest: int) -> None:
        self.wanted, self.rest = wanted, rest
        self.era = -1
        self.first = self.pages = wanted.pages - rest

    def take(self, frames: FrameAllocator) -> list[tuple[int, int]]:
        (run, _, last), pages = self.wanted, self.first
        start = frames.allocate_run(run, LARGE)
        assert start is not None
        pieces = [(start, run)]
        for _ in range(pages):
            pieces += frames.allocate(PAGE, PAGE)
        pieces += frames.allocate_last(last, PAGE)
        assert len(pieces) == pages + 2
        return pieces


LASTS = st.one_of(st.integers(1, 9), st.integers(1, 150 * 512))
"""Pages from the end of memory: of nested tables there are few."""


class PutOff(RuleBasedStateMachine):
    """Two allocators are asked for the same; of one everything that may be is put off."""

    @initialize(
        lengths=st.lists(st.one_of(st.integers(0, 60), st.integers(500, 4000)), min_size=1, max_size=3),
        before=st.one_of(st.none(), st.integers(0, 600)),
    )  # fmt: skip
    def start(self, lengths: list[int], before: int | None) -> None:
        ranges, at = [], LARGE + PAGE
        for length in lengths:
            ranges.append((at, length * LARGE + 5 * PAGE))
            at += (length + 1) * LARGE
        self.begin(ranges, None if before is None else min(before, ranges[0][1] // PAGE - 1))

    def begin(self, ranges: list[tuple[int, int]], before: int | None) -> None:
        """Over such memory, in which a page stays taken, before which so many are free; None for no such page."""
        self.now, self.later = FrameAllocator(ranges), FrameAllocator(ranges)
        self.ranges = ranges
        for frames in (self.now, self.later) if before is not None else ():
            spa, _ = frames.allocate((before + 1) * PAGE, PAGE)[-1]
            frames.release([(spa, before * PAGE)] if before else [])
            frames.stays(spa + before * PAGE)
        self.tenants: list[Tenant] = []
        self.pieces: dict[int, tuple[list[tuple[int, int]], list[tuple[int, int]]]] = {}
        self.held: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]] = []

    @rule(
        run=st.integers(1, 4 * 512), last=LASTS, pages=st.integers(1, 3), rest=st.integers(0, 2),
        times=st.sampled_from([1, 1, 1, 1, 15]),
    )  # fmt: skip
    def come(self, run: int, last: int, pages: int, rest: int, times: int = 1) -> None:
        for _ in range(times):
            one = Tenant(Wanted(run * PAGE, pages + rest, last * PAGE), rest)
            mine, theirs = self.pieces.setdefault(id(one), ([], []))
            if not self.later.take_later(partial(self._come, one, mine), one.wanted, rest):
                return
            one.era = self.later.era
            theirs.extend(one.take(self.now))  # What was certain comes true.
            self.tenants.append(one)

    def _come(self, one: Tenant, mine: list[tuple[int, int]]) -> None:
        mine.extend(one.take(self.later))

    @rule(part=st.sampled_from([1, 1, 2, 3, 4]), last=LASTS)
    def come_as_large_as_is_certain(self, part: int, last: int) -> None:
        """Or so many times smaller."""
        least, most = 0, sum(length for _, length in self.ranges) // PAGE
        while least < most:
            run = (least + most + 1) // 2
            if self.later.has_room(Wanted(run * PAGE, 1, last * PAGE)):
                least = run
            else:
                most = run - 1
        if least >= part:
            self.come(least // part, last, 1, 0)

    @precondition(lambda self: any(one.rest for one in self.tenants))
    @rule(data=st.data())
    def take_the_rest(self, data: st.DataObject) -> None:
        some = [one for one in self.tenants if one.rest]
        one = some[data.draw(st.integers(0, len(some) - 1))]
        (mine, theirs), rest = self.pieces[id(one)], one.rest
        if self.later.take_rest_later(lambda: mine.extend(self._pages(self.later, rest)), rest, one.era):
            theirs.extend(self._pages(self.now, rest))
            one.pages += rest
            one.rest = 0

    @staticmethod
    def _pages(frames: FrameAllocator, count: int) -> list[tuple[int, int]]:
        return [frames.allocate(PAGE, PAGE)[0] for _ in range(count)]

    @precondition(lambda self: self.tenants)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self._leave(self.tenants[data.draw(st.integers(0, len(self.tenants) - 1))])

    @rule()
    def all_but_the_last_leave(self) -> None:
        for one in self.tenants[:-1]:
            self._leave(one)

    def _leave(self, one: Tenant) -> None:
        self.tenants.remove(one)
        mine, theirs = self.pieces.pop(id(one))
        run, _, last = one.wanted
        self.later.give_later(lambda: self.later.release(mine), Wanted(run, one.pages, last), one.era)
        self.now.release(theirs)

    @rule(pages=st.sampled_from([1, 511, 1500]), alignment=st.sampled_from([PAGE, LARGE]))
    def take_at_once(self, pages: int, alignment: int) -> None:
        try:
            pieces = self.now.allocate(pages * PAGE, alignment)
        except OutOfMemory:
            with pytest.raises(OutOfMemory):
                self.later.allocate(pages * PAGE, alignment)
            return
        mine = self.later.allocate(pages * PAGE, alignment)
        assert mine == pieces
        self.held.append((mine, pieces))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_at_once(self, data: st.DataObject) -> None:
        mine, pieces = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.later.release(mine)
        self.now.release(pieces)

    @rule()
    def ask(self) -> None:
        assert self.later.free_runs() == self.now.free_runs()
        for mine, theirs in self.pieces.values():
            assert mine == theirs

    @invariant()
    def books_agree(self) -> None:
        assert self.later.used_bytes == self.now.used_bytes
        assert self.later.peak_bytes == self.now.peak_bytes
        assert len(self.later._acts) <= MOST_PUT_OFF

    def teardown(self) -> None:
        if hasattr(self, "now"):
            self.ask()


TestPutOff = PutOff.TestCase
TestPutOff.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_pieces_from_the_end_that_came_to_lie_below_a_run_cut_nobody_off_who_was_sure_of_room():
    """One stands in the middle of memory, alone, once all around it have gone."""
    whole, low, high, end, count = 6400, 2064, 704, 100, 15
    assert whole - 2 * low - high < (count + 1) * end
    machine = PutOff()
    machine.begin([(LARGE + PAGE, 256 * PAGE), (4 * LARGE, whole * LARGE)], 0)
    machine.come(low * 512, 1, 1, 0)
    machine.come(low * 512, 1, 1, 0)
    machine.come(high * 512, 1, 1, 0)
    assert len(machine.later._acts) == 3
    machine._leave(machine.tenants[1])
    machine.come(512, end * 512, 1, 0, count)
    machine.come(512, end * 512, 1, 0)
    machine.all_but_the_last_leave()
    machine.come_as_large_as_is_certain(1, 1)
    machine.teardown()


def test_an_act_that_cannot_be_carried_out_is_named_and_all_others_are_carried_out():
    frames = FrameAllocator([(LARGE, 64 * LARGE)])
    spare = frames.allocate(PAGE, PAGE)
    frames.returned = []
    assert frames.take_later(lambda: frames.allocate_run(LARGE, LARGE), Wanted(LARGE, 0, 0))
    frames.release(spare)
    frames.release(spare)
    frames.release([(80 * LARGE, 2 * PAGE)])
    assert frames.take_later(lambda: frames.allocate_run(2 * LARGE, LARGE), Wanted(2 * LARGE, 0, 0))
    with pytest.raises(ValueError, match=f"{LARGE:#x}: released twice") as raised:
        frames.allocate(PAGE, PAGE)
    (note,) = raised.value.__notes__
    assert "_release of" in note
    assert f"[({LARGE}, {PAGE})]" in note
    assert frames.used_bytes == 3 * LARGE - 2 * PAGE
    assert frames.free_runs() == [(LARGE, LARGE), (5 * LARGE, 60 * LARGE), (80 * LARGE, 2 * PAGE)]
    assert frames.returned == [*spare, *spare, (80 * LARGE, 2 * PAGE)]
    frames.release([(2 * LARGE, LARGE)])
    assert frames.returned[3:] == [(2 * LARGE, LARGE)]


def test_an_act_that_takes_other_than_it_said_is_named():
    frames = FrameAllocator([(LARGE, 64 * LARGE)])

    def too_little() -> None:
        frames.allocate(PAGE, PAGE)

    assert frames.take_later(too_little, Wanted(LARGE, 0, 0))
    with pytest.raises(AssertionError, match=f"{LARGE} bytes expected, {PAGE} taken") as raised:
        frames.settle()
    assert "too_little" in raised.value.__notes__[0]
    assert frames.used_bytes == PAGE


def test_single_pages_cut_no_run_short_while_they_come_from_behind_one_that_stays():
    """What else lies there may be given back: no run that is taken then begins there."""
    frames = FrameAllocator([(LARGE, LARGE), (4 * LARGE, 12 * LARGE)])
    lasting, piece = frames.allocate(PAGE, PAGE), frames.allocate(LARGE - 101 * PAGE, PAGE)
    wanted = Wanted(5 * LARGE, 100, PAGE)
    assert not frames.has_room(wanted)
    frames.stays(lasting[0][0])
    assert frames.has_room(wanted)
    frames.give_later(lambda: frames.release(piece), Wanted(LARGE - 101 * PAGE, 0, 0), -1)
    assert frames.has_room(wanted)
    assert frames.take_later(lambda: frames.allocate_run(LARGE, LARGE), Wanted(LARGE, 0, 0))
    assert frames.free_runs() == [(LARGE + PAGE, LARGE - PAGE), (5 * LARGE, 11 * LARGE)]


def test_single_pages_may_cut_a_run_where_those_below_might_be_taken_with_what_lies_beside_them():
    frames = FrameAllocator([(LARGE, LARGE), (4 * LARGE, 12 * LARGE)])
    piece = frames.allocate(LARGE - 100 * PAGE, PAGE)
    frames.give_later(lambda: frames.release(piece), Wanted(LARGE - 100 * PAGE, 0, 0), -1)
    assert not frames.has_room(Wanted(5 * LARGE, 100, PAGE))
    assert frames.take_later(lambda: frames.allocate_run(LARGE, LARGE), Wanted(LARGE, 0, 0))
    assert frames.free_runs() == [(4 * LARGE, 12 * LARGE)]


def test_what_comes_and_goes_with_nobody_asking_waits_in_a_short_list_and_its_bytes_are_counted():
    frames = FrameAllocator([(LARGE, 64 * LARGE)])
    wanted = Wanted(LARGE, 1, PAGE)
    taken: list[tuple[int, int]] = []

    def take() -> None:
        taken.extend([(frames.allocate_run(LARGE, LARGE), LARGE), *frames.allocate(PAGE, PAGE)])
        taken.extend(frames.allocate_last(PAGE, PAGE))

    def give() -> None:
        frames.release(list(taken))
        taken.clear()

    for _ in range(3 * MOST_PUT_OFF):
        assert frames.take_later(take, wanted)
        assert frames.used_bytes == LARGE + 2 * PAGE
        frames.give_later(give, wanted, frames.era)
        assert len(frames._acts) <= MOST_PUT_OFF
    assert (frames.used_bytes, frames.peak_bytes) == (0, LARGE + 2 * PAGE)
    assert frames.free_runs() == [(LARGE, 64 * LARGE)]


def test_room_is_not_certain_where_gaps_between_pieces_could_be_too_short():
    """Whatever first fit has done meanwhile: the run of 8 might be cut so that none of 3 is left."""
    frames = FrameAllocator([(0, 8 * LARGE)])
    assert frames.has_room(Wanted(3 * LARGE, 0, 0))
    assert frames.take_later(lambda: frames.allocate(LARGE, LARGE), Wanted(LARGE, 0, 0))
    assert not frames.has_room(Wanted(3 * LARGE, 0, 0))
    # Once it has looked there it is.
    assert frames.take_later(lambda: frames.allocate(3 * LARGE, LARGE), Wanted(3 * LARGE, 0, 0))
    assert frames.free_runs() == [(4 * LARGE, 4 * LARGE)]
