"""A nested table built in one operation is the one that its operations would build one by one, byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from snp_cores import enable_snp
from toy_guests import MIB

from node import operations as op
from node.board import Board
from node.counter_random import CounterRandom
from node.launched_vm import LaunchedVm
from node.platform import HostMode, Platform
from node.product import PRODUCTS
from psp.system_bus import RmpEntry

PAGE, LARGE, GIB = 4096, 2 << 20, 1 << 30
FRAMES = 40 * MIB
USUAL = ((0, 8 * MIB, 3 * LARGE), (4 * GIB, 8 * MIB + 3 * LARGE, LARGE), (4 * GIB - 4 * PAGE, 20 * MIB, 4 * PAGE))
"""RAM below and above the hole, then firmware below 4 GiB: not in the order of their addresses."""

maps = st.lists(
    st.tuples(
        st.sampled_from([0, PAGE, LARGE, 3 * LARGE, 512 * GIB, (1 << 48) - LARGE, 77]),
        st.sampled_from([8 * MIB, 10 * MIB, 9 * MIB + PAGE]), st.sampled_from([PAGE, LARGE, 3 * LARGE, 0, 100]),
    ),
    max_size=3,
).map(tuple)  # fmt: skip


def board_of(product: str, mode: HostMode = HostMode.NONE) -> Board:
    board = Board("board", PRODUCTS[product], 64 * MIB, 100, CounterRandom(1), Platform(mode=mode))
    enable_snp(board)
    return board


def one_by_one(board: Board, build: op.NestedBuild) -> op.Answer:
    for spa, length in build.frames:
        (answer,) = board.execute_host((op.NestedFrames("vm", spa, length, build.encrypted),))
        if answer is not None:
            return answer
    for gpa, spa, length in build.maps:
        (answer,) = board.execute_host((op.NestedMap("vm", gpa, spa, length, build.encrypted),))
        if answer is not None:
            return answer
    return None


@given(maps, st.integers(1, 9), st.booleans())
@example(USUAL, 9, True)
@example(USUAL, 5, False)
@example(((0, 8 * MIB, LARGE), (PAGE, 10 * MIB, LARGE)), 9, False)
@settings(max_examples=40, deadline=None)
def test_a_table_is_the_same_built_at_once_or_piece_by_piece(
    wanted: tuple[tuple[int, int, int], ...], frames: int, encrypted: bool
) -> None:
    once, each = board_of("Rome", HostMode.SME), board_of("Rome", HostMode.SME)
    build = op.NestedBuild("vm", ((FRAMES, 3 * PAGE), (FRAMES + MIB, frames * PAGE)), wanted, encrypted)
    assert once.execute_host((build,))[0] == one_by_one(each, build)
    for spa, length in build.frames:
        assert once.dram.read(spa, length) == each.dram.read(spa, length)


def test_frames_that_are_no_longer_the_hosts_are_an_rmp_fault_of_the_first_mapping() -> None:
    board = board_of("Milan")
    board.execute_host((op.NestedFrames("vm", FRAMES, 8 * PAGE),))
    board.execute_host((op.RmpUpdate(FRAMES + PAGE, PAGE, RmpEntry(assigned=True, asid=1)),))
    (answer,) = board.execute_host((op.NestedBuild("vm", (), USUAL),))
    assert isinstance(answer, op.Fault)
    assert (answer.kind, answer.address) == (op.FaultKind.RMP_FAULT, USUAL[0][0])
    assert len(board.nested_table("vm")) == 0


@pytest.mark.parametrize("count", [0, 64, 65, 300])
def test_however_many_maps_there_are_all_are_there(count: int) -> None:
    board = board_of("Rome")
    wanted = tuple((number * LARGE, 8 * MIB, PAGE) for number in range(count))
    frames = ((FRAMES, (count + 8) * PAGE),)
    assert board.execute_host((op.NestedBuild("vm", frames, wanted),)) == (None,)
    for gpa, _, _ in wanted:
        assert board.nested_table("vm").translate(gpa, PAGE) == [(8 * MIB, PAGE, False, 0)]


@given(st.integers(0, 40), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_what_the_guest_sees_of_a_range_is_behind_it(page: int, pages: int) -> None:
    record = LaunchedVm.__new__(LaunchedVm)
    record.ram = [(0, 8 * PAGE, 8 * PAGE), (64 * PAGE, 16 * PAGE, 8 * PAGE), (40 * PAGE, 30 * PAGE, 4 * PAGE)]
    shown = record.shown(page * PAGE, pages * PAGE)
    assert [one for gpa, _, length in shown for one in record.behind(gpa, length)] == shown
    seen = {spa + at for _, spa, length in shown for at in range(0, length, PAGE)}
    backing = {spa + at for _, spa, length in record.ram for at in range(0, length, PAGE)}
    assert seen == {one for one in range(page * PAGE, (page + pages) * PAGE, PAGE) if one in backing}
