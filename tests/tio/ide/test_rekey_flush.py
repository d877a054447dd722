"""Fresh keys with a flush: what was sent before and has not arrived is lost, and told of by nobody."""

from __future__ import annotations

import pytest
from ide_ends import ends, go, program

from tio.ide import Failure, IdeStream, StreamState, completion, memory_write
from tio.ide.stream import MOST_POSTED

OLD, NEW = memory_write(0x100, 0x1000, b"old." * 4), memory_write(0x100, 0x2000, b"new." * 4)
ANSWER = completion(0x200, 0x100, 3, b"answers!" * 8)


def rolled(one: IdeStream, other: IdeStream) -> None:
    program(one, other, 1)
    for end in (other, one):
        go(end, 1)


@pytest.mark.parametrize("reorder_check", [False, True])
@pytest.mark.parametrize("lost", [1, MOST_POSTED + 2])
def test_what_is_lost_on_the_way_leaves_the_stream_secure(reorder_check: bool, lost: int) -> None:
    one, other = ends(rekey_flush=True, reorder_check=reorder_check)
    one.send([OLD] * lost)
    rolled(one, other)
    for packet in one.send([ANSWER, NEW, ANSWER]):
        assert other.receive(packet)
    assert (one.state, other.state) == (StreamState.SECURE, StreamState.SECURE)


def test_what_comes_after_all_ends_the_stream() -> None:
    one, other = ends(rekey_flush=True)
    (held,) = one.send([OLD])
    rolled(one, other)
    assert other.receive(held) == []
    assert other.failure is Failure.KEY_SET


def test_without_the_flush_it_is_taken_until_something_comes_under_the_new_keys() -> None:
    one, other = ends()
    (held,) = one.send([OLD])
    rolled(one, other)
    assert [packet for packet, _ in other.receive(held)] == [OLD]
    assert other.state is StreamState.SECURE
