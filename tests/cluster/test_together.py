"""Hosts of one process go on without windows: as far as nothing can reach them, in slices that wall time bounds."""

import time
from heapq import heappop

import pytest
from test_shard import Bench, Dear, Idler, Runaway, letter, ticking
from toy_hosts import Toy, ToyHost

from cluster.entity import NEVER, Message
from cluster.inbox import ProtocolViolationError
from cluster.slices import CALL_S, SLICE_EVENTS, SLICE_S
from cluster.together import Together

LOOKAHEAD_NS, END_NS = 100, 2000


def nobody(_: int) -> int:
    return NEVER


def together(*toys: Toy, kind: type[ToyHost] = ToyHost, end_ns: int = END_NS, clock=time.monotonic) -> Together:
    return Together({toy.name: kind(toy) for toy in toys}, LOOKAHEAD_NS, end_ns, clock)


class Watched(ToyHost):
    """Notes how far it may go each time, and when it speaks."""

    horizons: list[tuple[str, int, list[int]]]

    def advance(self, horizon_ns, event_budget):
        advance = super().advance(horizon_ns, event_budget)
        self.horizons.append((self.name, horizon_ns, [message.time_ns for message in advance.outputs]))
        return advance


def test_quiet_hosts_go_to_the_end_one_after_the_other_and_others_no_further_than_an_answer_reaches(monkeypatch):
    monkeypatch.setattr(Watched, "horizons", [], raising=False)
    assert together(ticking("a"), ticking("b"), kind=Watched).go_on(NEVER, [], nobody).next_ns >= END_NS
    assert {horizon for _, horizon, _ in Watched.horizons} == {END_NS}
    names = [name for name, _, _ in Watched.horizons]
    assert names == sorted(names)
    Watched.horizons.clear()
    speakers = [Toy(name, ("a", "b"), tick=10, speak=40) for name in ("a", "b")]
    heard: list[Message] = []

    def hears(now_ns: int) -> int:
        while heard and heard[0].time_ns == now_ns:
            answered.append(heappop(heard).time_ns)
        return heard[0].time_ns if heard else NEVER

    answered: list[int] = []
    assert together(*speakers, kind=Watched).go_on(NEVER, heard, hears).next_ns >= END_NS
    assert answered == sorted(answered) != []
    for number, (_, horizon, _) in enumerate(Watched.horizons):
        later = [time_ns for _, _, said in Watched.horizons[number:] for time_ns in said]
        assert horizon <= min(later, default=END_NS) + LOOKAHEAD_NS


def test_the_control_plane_acts_when_all_before_it_is_done_and_at_once_where_nobody_will_speak():
    acts: list[int] = []

    def act(now_ns: int) -> int:
        acts.append(now_ns)
        return NEVER

    one = together(ticking("a"), ticking("b"))
    stretch = one.go_on(500, [], act, until_acted=True)
    assert (acts, stretch.events, stretch.acts_ns) == ([500], 0, NEVER)  # All promise silence.
    one.post(letter("a", 600))
    stretch = one.go_on(600, [], act, until_acted=True)
    assert acts == [500, 600]
    assert stretch.events > 0  # What may be said of the letter comes before what the control plane does then.


def test_a_call_ends_after_one_act_where_that_is_asked_for_and_else_when_acts_have_taken_long_enough():
    bench = Bench()
    acts: list[int] = []

    def act(now_ns: int) -> int:
        acts.append(now_ns)
        bench.now_s += CALL_S / 2
        return now_ns + 10

    one = together(Toy("a", tick=0, speak=0), clock=bench)
    assert one.go_on(100, [], act, until_acted=True).acts_ns == 110
    assert acts == [100]
    assert one.go_on(110, [], act).acts_ns == 130
    assert acts == [100, 110, 120]
    assert one.busy_s == 0.0


def test_where_calls_end_changes_nothing():
    bench = Bench()
    bench.event_s = CALL_S / 3
    Dear.bench = bench
    slow, quick = together(ticking("a"), ticking("b"), kind=Dear, clock=bench), together(ticking("a"), ticking("b"))
    calls, done = 1, 0
    while (stretch := slow.go_on(NEVER, [], nobody)).next_ns < END_NS:
        calls, done = calls + 1, done + stretch.events
    assert calls > 5
    assert done + stretch.events == quick.go_on(NEVER, [], nobody).events
    assert slow.busy_s == pytest.approx(bench.now_s)


def test_slices_shrink_where_events_are_dear():
    bench = Bench()
    Dear.bench = bench
    one = together(ticking("a"), kind=Dear, clock=bench, end_ns=100_000)
    bench.event_s = 2 * SLICE_S
    while bench.slices[-1:] != [1]:
        one.go_on(NEVER, [], nobody)
    assert max(bench.slices) <= SLICE_EVENTS


@pytest.mark.parametrize(("kind", "wrong"), [(Runaway, "past its horizon"), (Idler, "did nothing")])
def test_an_entity_that_does_too_much_or_nothing_is_named(kind, wrong):
    with pytest.raises(ProtocolViolationError, match=rf"odd: .*{wrong}"):
        together(ticking("odd", 10), kind=kind, end_ns=100).go_on(NEVER, [], nobody)


def test_mail_from_the_past_and_for_nobody_is_refused_by_name():
    one = together(ticking("a"), ticking("b"))
    one.go_on(NEVER, [], nobody)
    with pytest.raises(ProtocolViolationError, match="a: got a message for 999 ns"):
        one.post(letter("a", 999))
    with pytest.raises(ProtocolViolationError, match="to nobody, which is not here"):
        one.post(letter("nobody", 5000))


class Liar(ToyHost):
    """Promises silence, and speaks."""

    def earliest_output_ns(self):
        return NEVER


class Fickle(ToyHost):
    """Promises silence, then takes it back; an event at a time."""

    asked = False

    def earliest_output_ns(self):
        return super().earliest_output_ns() if self.asked else NEVER

    def advance(self, horizon_ns, event_budget):
        self.asked = True
        return super().advance(horizon_ns, 1)


@pytest.mark.parametrize("sooner_ns", [0, 10])
@pytest.mark.parametrize(("kind", "wrong"), [(Liar, "promised nothing before"), (Fickle, "control plane has acted")])
def test_who_speaks_for_a_time_at_which_the_control_plane_has_acted_is_named(kind, wrong, sooner_ns):
    toy = Toy("a", ("a",), tick=10, speak=40)
    with pytest.raises(ProtocolViolationError, match=rf"^a: sent at .*{wrong}"):
        together(toy, kind=kind).go_on(toy.speak_gap(0) + sooner_ns, [], nobody)


def test_whoever_stops_finds_all_at_the_same_time():
    heard: list[Message] = []
    one = together(*[Toy(name, ("a", "b"), tick=7, speak=40) for name in ("a", "b")])
    one.go_on(NEVER, heard, lambda _: END_NS, until_acted=True)
    reached = one.level(0)
    assert 0 < reached < END_NS
    for entity in one._entities:
        other = ToyHost(Toy(entity.name, ("a", "b"), tick=7, speak=40))
        while other.next_event_ns() < reached:
            other.advance(reached, 1)
        assert entity.collect(reached) == other.collect(reached)
