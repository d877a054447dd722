"""The security processor's queue."""

from hypothesis import given
from hypothesis import strategies as st

from node.psp_queue import PspQueue


def test_an_idle_queue_serves_at_once():
    assert PspQueue().serve(100, [(1, 30), (2, 5)]) == (135, 0)


@given(st.lists(st.tuples(st.integers(0, 1000), st.lists(st.integers(0, 50), max_size=4)), max_size=30))
def test_batches_are_served_one_after_another_in_the_order_they_came(batches):
    queue, ends, waits, now = PspQueue(), [0], [], 0
    for gap, services in batches:
        now += gap
        end, waited = queue.serve(now, [(number, ns) for number, ns in enumerate(services)])
        assert end == max(now, ends[-1]) + sum(services)
        assert waited == max(0, ends[-1] - now)
        ends.append(end)
        waits.append(waited)
    assert queue.free_ns == ends[-1]
    assert queue.busy_ns == sum(sum(services) for _, services in batches) == sum(queue.service_ns.values())
    assert queue.waited_ns == sum(waits)
    assert queue.longest_wait_ns == max(waits, default=0)
    assert sum(queue.counts.values()) == sum(len(services) for _, services in batches)
