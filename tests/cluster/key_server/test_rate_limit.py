"""Who asks faster than the rate waits exactly as long as it says, whatever clock it is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.key_server.rate_limit import RateLimit

S = 1_000_000_000


def test_a_burst_passes_and_then_one_for_each_interval():
    limit = RateLimit(2.0, burst=3)
    assert [limit.wait_ns("a", 0) for _ in range(4)] == [0, 0, 0, S // 2]
    assert limit.wait_ns("a", S // 2 - 1) == 1
    assert limit.wait_ns("a", S // 2) == 0
    assert limit.wait_ns("a", S // 2) == S // 2
    assert [limit.wait_ns("a", 60 * S) for _ in range(4)] == [0, 0, 0, S // 2]


def test_clients_do_not_wait_for_each_other():
    limit = RateLimit(1.0)
    assert [limit.wait_ns(client, 0) for client in "abab"] == [0, 0, S, S]


@given(st.lists(st.integers(0, 3 * S), max_size=40), st.integers(1, 4))
@settings(max_examples=25)
def test_no_span_of_time_sees_more_than_rate_and_burst_allow(steps, burst):
    limit, now, passed = RateLimit(1.0, burst), 0, []
    for step in steps:
        now += step // 4
        wait = limit.wait_ns("a", now)
        if wait:
            # Exactly then, and not a nanosecond sooner.
            again = RateLimit(1.0, burst)
            again._due_ns = dict(limit._due_ns)
            assert again.wait_ns("a", now + wait - 1) == 1
            assert again.wait_ns("a", now + wait) == 0
        else:
            passed.append(now)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + (passed[last] - passed[first]) // S + 1


def test_a_crowd_of_names_costs_bounded_memory_and_then_counts_as_one():
    limit = RateLimit(0.001)
    assert not any(limit.wait_ns(str(client), 0) for client in range(4096))
    assert limit.wait_ns("7", 3) == 1000 * S - 3, "who is known waits for its own last request"
    assert [limit.wait_ns(f"new {n}", 1) for n in range(3)] == [0, 1000 * S, 1000 * S]
    assert limit.wait_ns("later", 2000 * S) == 0
    assert len(limit._due_ns) == 1


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_a_limit_that_lets_nobody_in_is_refused(rate, burst):
    with pytest.raises(ValueError, match="rate: expected"):
        RateLimit(rate, burst)
