"""The earliest of many times that change: what a plain minimum says, at the cost of the change."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.entity import NEVER
from cluster.soonest import Soonest

CHANGES = st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(0, 9) | st.just(NEVER)), max_size=400)


@given(CHANGES)
def test_the_first_is_the_plain_minimum_after_every_change(changes: list[tuple[str, int]]) -> None:
    plain: dict[str, int] = {}
    soonest = Soonest()
    for name, time_ns in changes:
        plain[name] = time_ns
        soonest.put(name, time_ns)
        times = [(time, one) for one, time in plain.items() if time != NEVER]
        assert soonest.first() == min(times, default=(NEVER, ""))
        assert all(soonest[one] == time for one, time in plain.items())


def test_a_name_that_has_no_time_has_never() -> None:
    assert Soonest()["nobody"] == NEVER


def test_times_that_only_grow_do_not_fill_the_memory() -> None:
    soonest = Soonest()
    soonest.put("still", 1)
    for time_ns in range(2, 100_000):
        soonest.put("moving", time_ns)  # Its old times lie behind the first and never come up.
    assert len(soonest._heap) < 200
