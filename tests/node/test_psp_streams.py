"""Rows of page commands share the security processor evenly, and with whoever else has a command for it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.clock import Clock
from node.neighbour_ledger import HOST
from node.psp_queue import PspQueue
from node.psp_streams import PspStreams

PAGE_NS, COMMAND = 1000, 0x41


def make():
    clock, queue, promises = Clock(), PspQueue(), {}
    return clock, queue, promises, PspStreams(clock, queue, promises)


def serve(clock, queue, streams, *service_ns):
    """Commands of somebody else, now; when they are through."""
    commands = [(1, one) for one in service_ns]
    end_ns, _ = queue.serve(clock.now_ns, commands, streams.ahead_ns())
    streams.served(end_ns - sum(service_ns), end_ns)
    return end_ns


def at(clock, time_ns, action):
    clock.after(time_ns - clock.now_ns, action)


def test_one_row_alone_takes_its_commands_one_after_another():
    clock, queue, promises, streams = make()
    ends = []
    streams.start("a", COMMAND, 50, PAGE_NS, lambda: ends.append(clock.now_ns))
    assert promises == {"a": 50 * PAGE_NS}
    clock.env.run()
    assert ends == [50 * PAGE_NS]
    assert (queue.counts[COMMAND], queue.busy_ns, promises) == (50, 50 * PAGE_NS, {})


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 40_000), st.integers(1, 60)), min_size=1, max_size=4),
    others=st.lists(st.tuples(st.integers(0, 90_000), st.integers(1, 20_000)), max_size=5),
)
def test_the_processor_never_idles_while_a_row_waits_and_never_serves_two_at_once(rows, others):
    clock, queue, promises, streams = make()
    ends, served, waited, blamed = {}, [], {}, {}
    streams.blamed = lambda row, who, ns: blamed.setdefault(row, []).append((who, ns))
    for number, (start_ns, commands) in enumerate(rows):
        at(clock, start_ns, lambda number=number, commands=commands: (
            streams.start(
                str(number), COMMAND, commands, PAGE_NS, lambda: ends.setdefault(number, clock.now_ns),
                lambda ns: waited.setdefault(number, ns),
            )
        ))  # fmt: skip
    for time_ns, service_ns in others:
        at(clock, time_ns, lambda ns=service_ns: served.append((serve(clock, queue, streams, ns), ns)))
    clock.env.run()
    assert sorted(ends) == list(range(len(rows)))
    assert not promises
    # A row's commands and what it waited for each of the others are all of its time.
    for number, (start_ns, commands) in enumerate(rows):
        for_others = blamed.get(str(number), [])
        assert sum(ns for _, ns in for_others) == pytest.approx(waited[number], abs=1)
        assert ends[number] - start_ns == pytest.approx(commands * PAGE_NS + waited[number], abs=2)
        assert {who for who, _ in for_others} <= {HOST, *map(str, range(len(rows)))} - {str(number)}
    # What all of it takes is served between the first start and the last end, and it is busy throughout if
    # everything comes at once.
    work = sum(commands for _, commands in rows) * PAGE_NS
    assert max(ends.values()) >= min(start for start, _ in rows) + max(commands for _, commands in rows) * PAGE_NS
    if len({start for start, _ in rows}) == 1 and not others:
        assert max(ends.values()) == pytest.approx(rows[0][0] + work, abs=2)
    assert queue.busy_ns == work + sum(service for _, service in others)
    for end_ns, service_ns in served:
        for other_end, other_service in served:
            assert end_ns == other_end or end_ns <= other_end - other_service or other_end <= end_ns - service_ns


def test_two_rows_that_begin_together_end_together_and_a_short_one_leaves_the_rest_to_the_other():
    clock, _, _, streams = make()
    ends = {}
    streams.start("long", COMMAND, 30, PAGE_NS, lambda: ends.setdefault("long", clock.now_ns))
    streams.start("short", COMMAND, 10, PAGE_NS, lambda: ends.setdefault("short", clock.now_ns))
    clock.env.run()
    assert ends == {"short": 20 * PAGE_NS, "long": 40 * PAGE_NS}


def test_others_wait_for_what_is_in_the_mailbox_and_the_row_stands_still_meanwhile():
    clock, queue, promises, streams = make()
    ends = []
    streams.start("a", COMMAND, 20, PAGE_NS, lambda: ends.append(clock.now_ns))
    found = []
    at(clock, 5000, lambda: found.append(serve(clock, queue, streams, 7000, 2000)))
    at(clock, 6000, lambda: found.append(promises["a"]))
    clock.env.run()
    # Half a command ahead on the mean.
    assert found == [5000 + PAGE_NS // 2 + 9000, 20 * PAGE_NS + 9000]
    assert ends == [20 * PAGE_NS + 9000]


def test_a_row_that_begins_behind_others_waits_for_them_and_one_that_is_broken_off_leaves_what_it_did():
    clock, queue, _, streams = make()
    ends = []
    serve(clock, queue, streams, 4000)
    streams.start("a", COMMAND, 3, PAGE_NS, lambda: ends.append(clock.now_ns))
    clock.env.run()
    assert ends == [7000]
    streams.start("b", COMMAND, 10, PAGE_NS, lambda: ends.append(-1))
    at(clock, 7000 + 4 * PAGE_NS, lambda: streams.stop("b"))
    clock.env.run()
    assert ends == [7000]
    assert queue.counts[COMMAND] == 3 + 4
