"""Hosts of one process go on without windows: as far as nothing can reach them, in slices that wall time bounds."""

import time

import pytest
from test_shard import Bench, Dear, Idler, Runaway, letter, ticking
from toy_hosts import Toy, ToyHost

from cluster.entity import NEVER, Message
from cluster.inbox import ProtocolViolationError
from cluster.slices import CALL_S, SLICE_EVENTS, SLICE_S
from cluster.together import Together

LOOKAHEAD_NS, END_NS = 100, 2000


def together(*toys: Toy, kind: type[ToyHost] = ToyHost, end_ns: int = END_NS, clock=time.monotonic) -> Together:
    return Together({toy.name: kind(toy) for toy in toys}, LOOKAHEAD_NS, end_ns, clock)


class Watched(ToyHost):
    """Notes how far it may go each time, and how far everybody is by then."""

    horizons: list[tuple[str, int, int]]

    def advance(self, horizon_ns, event_budget):
        self.horizons.append((self.name, self.next_event_ns(), horizon_ns))
        return super().advance(horizon_ns, event_budget)


def test_quiet_hosts_go_to_the_end_one_after_the_other_and_others_no_further_than_an_answer_reaches(monkeypatch):
    monkeypatch.setattr(Watched, "horizons", [], raising=False)
    assert together(ticking("a"), ticking("b"), kind=Watched).go_on(NEVER, [], 0).next_ns >= END_NS
    assert {horizon for _, _, horizon in Watched.horizons} == {END_NS}
    names = [name for name, _, _ in Watched.horizons]
    assert names == sorted(names)
    Watched.horizons.clear()
    speakers = [Toy(name, ("a", "b"), tick=10, speak=40) for name in ("a", "b")]
    heard: list[Message] = []
    assert together(*speakers, kind=Watched).go_on(NEVER, heard, 0).next_ns < END_NS
    assert heard
    assert all(horizon <= first + LOOKAHEAD_NS for _, first, horizon in Watched.horizons)


def test_the_control_plane_acts_when_all_before_it_is_done_and_at_once_where_nobody_will_speak():
    one = together(ticking("a"), ticking("b"))
    stretch = one.go_on(500, [], 0)
    assert stretch.events == 0  # All promise silence.
    assert stretch.silent_ns == NEVER
    one.post(letter("a", 600))
    stretch = one.go_on(600, [], 0)
    assert stretch.next_ns > 500
    assert stretch.silent_ns > 600


def test_where_calls_end_changes_nothing():
    bench = Bench()
    bench.event_s = CALL_S / 3
    Dear.bench = bench
    slow, quick = together(ticking("a"), ticking("b"), kind=Dear, clock=bench), together(ticking("a"), ticking("b"))
    calls, done = 1, 0
    while (stretch := slow.go_on(NEVER, [], 0)).next_ns < END_NS:
        calls, done = calls + 1, done + stretch.events
    assert calls > 5
    assert done + stretch.events == quick.go_on(NEVER, [], 0).events
    assert slow.busy_s == pytest.approx(bench.now_s)


def test_slices_shrink_where_events_are_dear():
    bench = Bench()
    Dear.bench = bench
    one = together(ticking("a"), kind=Dear, clock=bench, end_ns=100_000)
    bench.event_s = 2 * SLICE_S
    while bench.slices[-1:] != [1]:
        one.go_on(NEVER, [], 0)
    assert max(bench.slices) <= SLICE_EVENTS


@pytest.mark.parametrize(("kind", "wrong"), [(Runaway, "past its horizon"), (Idler, "did nothing")])
def test_an_entity_that_does_too_much_or_nothing_is_named(kind, wrong):
    with pytest.raises(ProtocolViolationError, match=rf"odd: .*{wrong}"):
        together(ticking("odd", 10), kind=kind, end_ns=100).go_on(NEVER, [], 0)


def test_mail_from_the_past_and_for_nobody_is_refused_by_name():
    one = together(ticking("a"), ticking("b"))
    one.go_on(NEVER, [], 0)
    with pytest.raises(ProtocolViolationError, match="a: got a message for 999 ns"):
        one.post(letter("a", 999))
    with pytest.raises(ProtocolViolationError, match="to nobody, which is not here"):
        one.post(letter("nobody", 5000))


def test_who_speaks_for_a_time_at_which_the_control_plane_has_acted_is_named():
    one = together(Toy("a", ("a",), tick=10, speak=40))
    with pytest.raises(ProtocolViolationError, match="inside a window that began later"):
        one.go_on(NEVER, [], END_NS)


