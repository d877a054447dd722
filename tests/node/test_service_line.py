"""A wait for a server is the doing of those who are served meanwhile, and of nobody else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.service_line import ServiceLine


def test_a_wait_is_shared_out_by_whose_service_falls_into_it():
    line = ServiceLine()
    for who, end in (("a", 10), ("b", 30), ("a", 35)):
        line.join(who, end)
    assert line.ahead(0, 4, 35) == [("a", 6), ("b", 20), ("a", 5)]
    assert line.ahead(0, 4, 20) == [("a", 6), ("b", 10)]
    assert line.ahead(10, 31, 35) == [("a", 4)]


def test_nobody_waits_for_one_that_is_through():
    line = ServiceLine()
    line.join("a", 10)
    assert line.ahead(10, 10, 10) == []
    line.join("b", 20)
    assert line.ahead(12, 12, 20) == [("b", 8)]


def test_a_server_that_is_booked_for_later_is_waited_for_too():
    line = ServiceLine()
    line.join("late", 200)  # Ready at 100 only.
    assert line.ahead(10, 20, 200) == [("late", 180)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30), st.sampled_from("abc")), max_size=20))
def test_the_parts_add_up_to_the_wait_and_are_what_a_clock_would_count(requests):
    line, now, free, owner_at = ServiceLine(), 0, 0, {}
    for gap, service, who in requests:
        now += gap
        start = max(now, free)
        counted = {}
        for tick in range(now, start):
            counted[owner_at[tick]] = counted.get(owner_at[tick], 0) + 1
        found = {}
        for other, ns in line.ahead(now, now, start):
            found[other] = found.get(other, 0) + ns
        assert found == pytest.approx(counted)
        for tick in range(start, start + service):
            owner_at[tick] = who
        free = start + service
        line.join(who, free)
