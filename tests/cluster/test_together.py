"""Hosts of one process go on without windows: as far as nothing can reach them, in slices that wall time bounds."""

import time
from bisect import bisect_left, insort

import pytest
from test_shard import Bench, Dear, Idler, Runaway, letter, ticking
from toy_hosts import RestingToy, Toy, ToyHost, build_resting, build_toy, digest, run_toys, toys

from cluster.entity import NEVER, Advance, Message
from cluster.inbox import ProtocolViolationError
from cluster.inline_layout import InlineLayout
from cluster.slices import CALL_S, SLICE_EVENTS, SLICE_S
from cluster.together import Together

LOOKAHEAD_NS, END_NS = 100, 2000


class Acts:
    """A control plane that acts at times of its own, and on whatever it hears; ``say`` gives its mail for a time."""

    def __init__(self, *times_ns: int, say=lambda _: ()) -> None:
        self.left, self.at_ns, self.say = list(times_ns), [], say
        self.heard: list[Message] = []

    def next_event_ns(self) -> int:
        return self.left[0] if self.left else NEVER

    def step(self, now_ns, messages):
        self.at_ns.append(now_ns)
        self.heard += messages
        if self.left[:1] == [now_ns]:
            del self.left[0]
        return self.say(now_ns), self.next_event_ns()


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
    assert together(ticking("a"), ticking("b"), kind=Watched).go_on(Acts(), NEVER).next_ns >= END_NS
    assert {horizon for _, horizon, _ in Watched.horizons} == {END_NS}
    names = [name for name, _, _ in Watched.horizons]
    assert names == sorted(names)
    Watched.horizons.clear()
    speakers = [Toy(name, ("a", "b"), tick=10, speak=40) for name in ("a", "b")]
    control = Acts()
    assert together(*speakers, kind=Watched).go_on(control, NEVER).next_ns >= END_NS
    assert control.at_ns == sorted({message.time_ns for message in control.heard}) != []
    assert control.heard == sorted(control.heard)
    for number, (_, horizon, _) in enumerate(Watched.horizons):
        later = [time_ns for _, _, said in Watched.horizons[number:] for time_ns in said]
        assert horizon <= min(later, default=END_NS) + LOOKAHEAD_NS


def test_the_control_plane_acts_when_all_before_it_is_done_and_at_once_where_nobody_will_speak():
    control = Acts(500, 600, say=lambda now_ns: [letter("a", 600)] if now_ns == 500 else [])
    one = together(ticking("a"), ticking("b"))
    stretch = one.go_on(control, 500, until_acted=True)
    assert (control.at_ns, stretch.events, stretch.acts, stretch.acts_ns) == ([500], 0, 1, 600)  # All promise silence.
    stretch = one.go_on(control, 600, until_acted=True)
    assert control.at_ns == [500, 600]
    assert stretch.events > 0  # What may be said of the letter comes before what the control plane does then.


def test_a_call_ends_after_one_act_where_that_is_asked_for_and_else_when_acts_have_taken_long_enough():
    bench = Bench()

    def slowly(_: int) -> tuple[()]:
        bench.now_s += CALL_S / 2
        return ()

    control = Acts(*range(100, 2000, 10), say=slowly)
    one = together(Toy("a", tick=0, speak=0), clock=bench)
    assert one.go_on(control, 100, until_acted=True).acts_ns == 110
    assert control.at_ns == [100]
    assert [one.go_on(control, 110 + 20 * call).acts for call in range(5)] == [2] * 5
    assert len(control.at_ns) == 11
    assert one.busy_s == 0.0


def test_the_clock_is_looked_at_seldom_where_acts_are_cheap():
    looks = []
    control = Acts(*range(100, 10_100, 10))
    one = together(Toy("a", tick=0, speak=0), end_ns=20_000, clock=lambda: looks.append(0) or 0.0)
    assert one.go_on(control, 100).acts == 1000
    assert len(looks) < 200


@pytest.mark.parametrize("until_acted", [0, 16])
@pytest.mark.parametrize("dear_from", [0, 1, 100])
@pytest.mark.parametrize("answers", [False, True])
def test_calls_end_in_time_where_acts_or_what_is_answered_at_once_are_dear_but_for_one_in_which_they_become_so(
    answers, dear_from, until_acted
):
    bench, dear_s = Bench(), CALL_S / 2

    class Answering(Timetable):
        def answer(self, message):
            self.done.append(message.time_ns)
            bench.now_s += dear_s * (answers and len(self.done) > dear_from)
            return NEVER, 1, ()

    def say(now_ns):
        bench.now_s += dear_s * (not answers and len(control.at_ns) > dear_from)
        return [letter("a", now_ns + LOOKAHEAD_NS)]

    control, acts_ns, lasted_s = Acts(*range(1000, 3000, 10), say=say), 1000, []
    hosts = Together({"a": Answering("a")}, LOOKAHEAD_NS, 1 << 20, bench)
    while control.left:
        began_s = bench.now_s
        acts_ns = hosts.go_on(control, acts_ns, until_acted=len(lasted_s) < until_acted).acts_ns
        lasted_s.append(bench.now_s - began_s)
    dear = len(control.at_ns) - dear_from
    assert sum(lasted_s) == pytest.approx(dear * dear_s)
    # It is read around acts: what is answered at once after the last that a call times is in it as well.
    assert sorted(lasted_s)[-2] <= CALL_S + dear_s
    assert max(lasted_s) <= (17 if dear_from else 3) * dear_s
    assert hosts.busy_s == pytest.approx(sum(lasted_s) * answers)


def test_where_calls_end_changes_nothing():
    bench = Bench()
    bench.event_s = CALL_S / 3
    Dear.bench = bench
    slow, quick = together(ticking("a"), ticking("b"), kind=Dear, clock=bench), together(ticking("a"), ticking("b"))
    calls, done = 1, 0
    while (stretch := slow.go_on(Acts(), NEVER)).next_ns < END_NS:
        calls, done = calls + 1, done + stretch.events
    assert calls > 5
    assert done + stretch.events == quick.go_on(Acts(), NEVER).events
    assert slow.busy_s == pytest.approx(bench.now_s)


class Timetable:
    """Has events at times that are given, and at those of its mail; says nothing, and promises that."""

    def __init__(self, name: str, *times_ns: int) -> None:
        self.name, self.left = name, sorted(times_ns)
        self.done: list[int] = []

    def deliver(self, message):
        insort(self.left, message.time_ns)

    def answer(self, message):
        self.deliver(message)
        return self.next_event_ns(), 0, ()

    def next_event_ns(self):
        return self.left[0] if self.left else NEVER

    def earliest_output_ns(self):
        return NEVER

    def advance(self, horizon_ns, event_budget):
        count = min(event_budget, bisect_left(self.left, horizon_ns))
        self.done += self.left[:count]
        del self.left[:count]
        next_ns = self.next_event_ns()
        return Advance(min(next_ns, horizon_ns), next_ns, count, ())


@pytest.mark.parametrize("slice_events", range(1, 6))
@pytest.mark.parametrize("mail_ns", [(50,), (50, 40), (40, 50), (50, 100), (100, 50), (150,)])
def test_a_host_that_mail_woke_before_its_next_event_goes_on_wherever_calls_end_in_that(
    slice_events, mail_ns, monkeypatch
):
    monkeypatch.setattr("cluster.slices.SLICE_EVENTS", slice_events)
    monkeypatch.setattr("cluster.together.CALL_S", 0.0)
    mine, others = [100, 100, 100, 100, 300, 300], [20, 100, 400]
    one, other = Timetable("a", *mine), Timetable("b", *others)
    hosts = Together({"a": one, "b": other}, 5, END_NS, time.monotonic)
    control = Acts(10, say=lambda _: [letter("a", time_ns) for time_ns in mail_ns])
    acts_ns, calls = 10, 0
    while (stretch := hosts.go_on(control, acts_ns)).next_ns < END_NS:
        acts_ns, calls = stretch.acts_ns, calls + 1
    assert (one.done, other.done) == (sorted([*mine, *mail_ns]), others)
    assert calls >= 1


@pytest.mark.parametrize("slice_events", range(1, 6))
@pytest.mark.parametrize("later_ns", [(0, 0, 0), (0, 10, 0), (10, 0, 0), (10, 10, 0)])
def test_letters_of_one_nanosecond_are_one_event_also_where_they_are_answered_in_the_same_breath(
    later_ns, slice_events, monkeypatch
):
    monkeypatch.setattr("cluster.slices.SLICE_EVENTS", slice_events)
    mail = [
        letter("a", 500 + LOOKAHEAD_NS + ns, hops=1)._replace(sequence=number) for number, ns in enumerate(later_ns)
    ]  # fmt: skip
    toy = Toy("a", ("a",), tick=0, speak=0)
    other = ToyHost(toy)
    for message in mail:
        other.deliver(message)
    while other.next_event_ns() < END_NS:
        other.advance(END_NS, 1000)
    hosts, control, acts_ns, events = together(toy), Acts(500, say=lambda now_ns: mail if now_ns == 500 else []), 500, 0
    while acts_ns < END_NS:
        stretch = hosts.go_on(control, acts_ns)
        events, acts_ns = events + stretch.events, stretch.acts_ns
    assert (hosts._seats["a"].entity.collect(0), events) == (other.collect(0), other.events)
    assert len(control.heard) == len(mail)


@pytest.mark.parametrize("slice_events", [1, 2, 3])
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("build", "speak"), [(build_toy, 400), (build_resting, 0)])  # Who rests does not speak.
def test_a_fleet_whose_calls_end_after_every_slice_tells_the_same_story(build, speak, seed, slice_events, monkeypatch):
    hosts = toys(seed=seed, speak=speak)
    whole = digest(run_toys(InlineLayout(), hosts, build=build)[0])
    monkeypatch.setattr("cluster.slices.SLICE_EVENTS", slice_events)
    monkeypatch.setattr("cluster.together.CALL_S", 0.0)
    assert digest(run_toys(InlineLayout(), hosts, build=build)[0]) == whole


def test_more_mail_than_is_done_without_a_look_at_the_clock_is_not_answered_in_the_same_breath():
    bench = Bench()

    class DearTimetable(Timetable):
        def answer(self, message):
            bench.now_s += CALL_S
            self.done.append(message.time_ns)
            return NEVER, 1, ()

        def advance(self, horizon_ns, event_budget):
            advance = super().advance(horizon_ns, event_budget)
            bench.now_s += CALL_S * advance.events
            return advance

    entities = {str(number): DearTimetable(str(number)) for number in range(3 * SLICE_EVENTS)}
    mail = [letter(name, 600) for name in entities]
    hosts = Together(entities, LOOKAHEAD_NS, END_NS, bench)
    control, acts_ns, lasted_s = Acts(500, say=lambda now_ns: mail if now_ns == 500 else []), 500, []
    while (stretch := hosts.go_on(control, acts_ns)).next_ns < END_NS:
        acts_ns = stretch.acts_ns
        lasted_s.append(bench.now_s - sum(lasted_s))
    assert all(one.done == [600] for one in entities.values())
    assert max(lasted_s) == SLICE_EVENTS * CALL_S


def test_slices_shrink_where_events_are_dear():
    bench = Bench()
    Dear.bench = bench
    one = together(ticking("a"), kind=Dear, clock=bench, end_ns=100_000)
    bench.event_s = 2 * SLICE_S
    while bench.slices[-1:] != [1]:
        one.go_on(Acts(), NEVER)
    assert max(bench.slices) <= SLICE_EVENTS


@pytest.mark.parametrize(("kind", "wrong"), [(Runaway, "past its horizon"), (Idler, "did nothing")])
def test_an_entity_that_does_too_much_or_nothing_is_named(kind, wrong):
    with pytest.raises(ProtocolViolationError, match=rf"odd: .*{wrong}"):
        together(ticking("odd", 10), kind=kind, end_ns=100).go_on(Acts(), NEVER)


def test_mail_from_the_past_and_for_nobody_is_refused_by_name():
    hosts = together(ticking("a"), ticking("b"), end_ns=999)
    hosts.go_on(Acts(), NEVER)
    hosts._end_ns = END_NS
    with pytest.raises(ProtocolViolationError, match="a: got a message for 900 ns"):
        hosts.go_on(Acts(800, say=lambda _: [letter("a", 900)]), 800)
    with pytest.raises(ProtocolViolationError, match="to nobody, which is not here"):
        together(ticking("a")).go_on(Acts(800, say=lambda _: [letter("nobody", 1800)]), 800)


@pytest.mark.parametrize(("control", "wrong"), [
    (Acts(500, say=lambda _: [letter("a", 599)]), "sent at 500 ns for 599 ns, inside the lookahead"),
    (Acts(500, 500), "control plane: did not move on from 500 ns"),
])  # fmt: skip
def test_a_control_plane_that_is_too_quick_or_stands_still_is_named(control, wrong):
    with pytest.raises(ProtocolViolationError, match=wrong):
        together(ticking("a")).go_on(control, 500)


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
@pytest.mark.parametrize("kind", [Liar, Fickle])
def test_who_speaks_for_a_time_at_which_the_control_plane_has_acted_is_named(kind, sooner_ns):
    toy = Toy("a", ("a",), tick=10, speak=40)
    with pytest.raises(ProtocolViolationError, match=r"^a: sent at .*promised nothing before"):
        together(toy, kind=kind).go_on(Acts(), toy.speak_gap(0) + sooner_ns)


class Hasty(Timetable):
    """Promises nothing before its next event, and says of its last that it was at another time."""

    says_ns = NEVER

    def earliest_output_ns(self):
        return self.next_event_ns()

    def advance(self, horizon_ns, event_budget):
        advance = super().advance(horizon_ns, event_budget)
        last = () if self.left else (Message(self.says_ns, self.name, 1, "control", "relay"),)
        return advance._replace(outputs=last)


@pytest.mark.parametrize(("says_ns", "wrong"), [
    (9, "promised nothing before 10"), (10, "acted at 550"), (550, "acted at 550"), (551, None), (600, None),
])  # fmt: skip
@pytest.mark.parametrize("until_acted", [False, True])
def test_what_is_said_of_a_time_at_which_the_control_plane_has_acted_is_refused_also_in_a_later_call(
    until_acted, says_ns, wrong
):
    one = Hasty("a", 10, 600)
    one.says_ns = says_ns
    # Many hosts, so that nobody looks again: what was promised at first, 10 ns, would let all but one pass.
    hosts = {name: Timetable(name) for name in map(str, range(100))} | {"a": one}
    all_hosts, control, acts_ns = Together(hosts, LOOKAHEAD_NS, END_NS, time.monotonic), Acts(500, 550), 500

    def go_on():
        nonlocal acts_ns
        while (stretch := all_hosts.go_on(control, acts_ns, until_acted=until_acted)).acts_ns < END_NS:
            acts_ns = stretch.acts_ns
        all_hosts.go_on(control, stretch.acts_ns)

    if wrong is None:
        go_on()
        assert [message.time_ns for message in control.heard] == [says_ns]
    else:
        with pytest.raises(ProtocolViolationError, match=f"^a: sent at {says_ns} ns, but .*{wrong} ns"):
            go_on()
    assert control.at_ns[:2] == [500, 550]


class Tardy(Timetable):
    """Answers mail at once, and says that it did so at ``says_ns``."""

    says_ns = 0

    def answer(self, message):
        self.done.append(message.time_ns)
        return self.next_event_ns(), 1, (Message(self.says_ns, self.name, 1, "control", "relay"),)


@pytest.mark.parametrize("until_acted", [False, True])
@pytest.mark.parametrize("says_ns", [520, 599, 600])
def test_an_answer_in_the_same_breath_is_of_the_mail_s_time_or_later_and_refused_by_name_otherwise(
    says_ns, until_acted
):
    one, control = Tardy("a"), Acts(500, say=lambda now_ns: [letter("a", 600)] if now_ns == 500 else [])
    one.says_ns = says_ns
    hosts = Together({"a": one}, LOOKAHEAD_NS, END_NS, time.monotonic)
    if says_ns < 600:
        with pytest.raises(ProtocolViolationError, match=rf"^a: sent at {says_ns} ns, but .* before 600 ns"):
            hosts.go_on(control, 500, until_acted=until_acted)
        assert control.at_ns == [500]
    else:
        stretch = hosts.go_on(control, 500, until_acted=until_acted)
        assert stretch.acts_ns == (600 if until_acted else NEVER)
        assert control.at_ns == ([500] if until_acted else [500, 600])
    assert one.done == [600]


def test_whoever_stops_finds_all_at_the_same_time():
    one = together(*[Toy(name, ("a", "b"), tick=7, speak=40) for name in ("a", "b")])
    one.go_on(Acts(), NEVER, until_acted=True)
    reached = one.level(0)
    assert 0 < reached < END_NS
    for entity in [seat.entity for seat in one._seats.values()]:
        other = ToyHost(Toy(entity.name, ("a", "b"), tick=7, speak=40))
        while other.next_event_ns() < reached:
            other.advance(reached, 1)
        assert entity.collect(reached) == other.collect(reached)


def test_whoever_stops_finds_nobody_further_than_what_the_control_plane_would_have_said_next_reaches():
    one = together(ticking("a"), ticking("b"))  # They promise silence.
    assert one.go_on(Acts(500, 900), 500, until_acted=True).acts_ns == 900
    assert one.level(0) == 900 + LOOKAHEAD_NS
    assert all(seat.entity.env.now <= 900 + LOOKAHEAD_NS for seat in one._seats.values())


@pytest.mark.parametrize("mail_ns", [(0,), (0, 0), (30,), (30, 0)])
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_whoever_stops_when_a_host_that_rested_was_woken_finds_nobody_further_than_all_are_said_to_be(calls, mail_ns):
    mail = [letter("rest", 1000 + LOOKAHEAD_NS + ns)._replace(sequence=number) for number, ns in enumerate(mail_ns)]
    hosts = {
        "busy": ToyHost(ticking("busy")),
        "rest": RestingToy(Toy("rest", ("busy",), tick=10, speak=0)),
        "still": RestingToy(Toy("still", ("busy",), tick=10, speak=0)),
    }
    all_hosts, control = Together(hosts, LOOKAHEAD_NS, END_NS, time.monotonic), Acts(1000, 1010, 1020, say=(
        lambda now_ns: mail if now_ns == 1000 else []))  # fmt: skip
    acts_ns = 1000
    for _ in range(calls):
        stretch = all_hosts.go_on(control, acts_ns, until_acted=True)
        acts_ns = stretch.acts_ns
    reached_ns = all_hosts.level(0)
    assert reached_ns >= 1000 + LOOKAHEAD_NS
    assert all(host.env.now <= reached_ns for host in hosts.values())
    for name, host in hosts.items():
        other = ToyHost(host.toy)
        for message in mail if name == "rest" else ():
            other.deliver(message)
        while other.next_event_ns() < reached_ns:
            other.advance(reached_ns, 1000)
        assert host.collect(reached_ns) == other.collect(reached_ns)
