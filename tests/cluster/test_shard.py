"""A shard: entities in one process, each advanced only when it has something to do."""

import pytest
from toy_hosts import CONTROL, Toy, ToyHost, build_toy

from cluster.entity import NEVER, Advance, Message
from cluster.inbox import ProtocolViolationError
from cluster.shard import Shard
from cluster.slices import CALL_S, SLICE_EVENTS, SLICE_S


def shard_of(*toys: Toy) -> Shard:
    return Shard(build_toy, [(toy.name, toy.pack()) for toy in toys])


def ticking(name: str, tick: int = 60) -> Toy:
    return Toy(name, (name,), tick=tick, speak=0)


def letter(to: str, time_ns: int, hops: int = 0) -> Message:
    return Message(time_ns, CONTROL, 1, to, "letter", b"\x92\xa7control" + bytes([hops]))


def test_windows_are_half_open() -> None:
    one = Toy("a", ("a",), tick=0, speak=400, hops=0)
    first = one.speak_gap(0)
    shard = shard_of(one)
    assert shard.advance(first, {}, 1000).outputs == ()
    report = shard.report()
    assert (report.next_event_ns, report.earliest_output_ns) == (first, first)
    assert [message.time_ns for message in shard.advance(first + 1, {}, 1000).outputs] == [first]


def test_a_report_is_the_minimum_of_all() -> None:
    hosts = [Toy(name, (name,), tick=0, speak=400) for name in "abc"] + [ticking("d", 10)]
    shard = shard_of(*hosts)
    report = shard.advance(1, {}, 1000)
    assert report.next_event_ns == min(hosts[3].tick_gap(0), *(toy.speak_gap(0) for toy in hosts[:3]))
    assert report.earliest_output_ns == min(toy.speak_gap(0) for toy in hosts[:3])


def test_who_promises_silence_holds_nobody() -> None:
    assert shard_of(ticking("a"), ticking("b")).report().earliest_output_ns == NEVER


def test_unopened_mail_bounds_the_promise() -> None:
    shard = shard_of(ticking("a"))
    assert shard.advance(100, {"a": (letter("a", 500, hops=1),)}, 1000).earliest_output_ns == 500


class Watched(ToyHost):
    """Counts how often it is asked."""

    asked = 0

    def advance(self, horizon_ns: int, event_budget: int) -> Advance:
        Watched.asked += 1
        return super().advance(horizon_ns, event_budget)


def test_only_entities_with_mail_or_events_are_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watched, "asked", 0)
    idle = [Toy(f"idle-{number}", tick=0, speak=0) for number in range(50)]
    shard = Shard(lambda spec: Watched(build_toy(spec).toy), [(toy.name, toy.pack()) for toy in idle])
    assert shard.advance(1000, {}, 1000).reached
    assert Watched.asked == 0
    assert shard.advance(2000, {"idle-7": (letter("idle-7", 1500),)}, 1000).reached
    assert Watched.asked == 1


def test_a_call_does_no_more_events_than_its_budget_and_says_that_it_is_not_through() -> None:
    shard = shard_of(ticking("a"), ticking("b"))
    whole = shard_of(ticking("a"), ticking("b")).advance(2000, {}, 10_000)
    done = calls = 0
    while True:
        report = shard.advance(2000, {}, 7)
        assert report.events <= 7
        done += report.events
        calls += 1
        if report.reached:
            break
    assert calls > 1
    assert (done, report.next_event_ns) == (whole.events, whole.next_event_ns)


class Bench:
    """A clock that stands still but for what events are said to cost."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.event_s = 0.0
        self.slices: list[int] = []

    def __call__(self) -> float:
        return self.now_s


class Dear(ToyHost):
    """A host whose events take wall time."""

    bench: Bench

    def advance(self, horizon_ns: int, event_budget: int) -> Advance:
        advance = super().advance(horizon_ns, event_budget)
        self.bench.now_s += advance.events * self.bench.event_s
        self.bench.slices.append(advance.events)
        return advance


def dear(bench: Bench, *toys: Toy) -> Shard:
    def build(spec: bytes) -> Dear:
        host = Dear(build_toy(spec).toy)
        host.bench = bench
        return host

    return Shard(build, [(toy.name, toy.pack()) for toy in toys], bench)


def test_a_call_ends_in_time_also_where_events_grow_dear_all_of_a_sudden() -> None:
    bench = Bench()
    shard = dear(bench, ticking("a"), ticking("b"))
    assert shard.advance(50_000, {}, 1 << 62).reached
    bench.event_s = 0.005
    before_s = bench.now_s
    report = shard.advance(100_000, {}, 1 << 62)
    assert not report.reached
    assert CALL_S <= bench.now_s - before_s <= CALL_S + SLICE_EVENTS * bench.event_s
    assert 50_000 <= report.next_event_ns < 100_000


def test_slices_shrink_to_single_events_where_these_are_dear_and_grow_again() -> None:
    bench = Bench()
    shard = dear(bench, ticking("a"))
    bench.event_s = 2 * SLICE_S
    while bench.slices[-1:] != [1]:
        assert not shard.advance(100_000, {}, 1 << 62).reached
    bench.event_s = 0.0
    assert shard.advance(100_000, {}, 1 << 62).reached
    assert max(bench.slices[-3:]) <= SLICE_EVENTS == max(bench.slices)
    assert bench.slices[bench.slices.index(1) :].count(SLICE_EVENTS) > 1


def test_where_calls_end_changes_nothing() -> None:
    bench = Bench()
    bench.event_s = CALL_S / 3
    slow, quick = dear(bench, ticking("a"), ticking("b")), shard_of(ticking("a"), ticking("b"))
    calls = 1
    while not slow.advance(2000, {}, 1 << 62).reached:
        calls += 1
    quick.advance(2000, {}, 1 << 62)
    assert calls > 5
    assert slow.collect(2000) == quick.collect(2000)


class Runaway(ToyHost):
    """Does not stop at its horizon."""

    def advance(self, horizon_ns: int, event_budget: int) -> Advance:
        return super().advance(horizon_ns + 500, event_budget)


def test_an_entity_that_goes_past_its_horizon_is_named() -> None:
    with pytest.raises(ProtocolViolationError, match=r"hasty: went to .* past its horizon 100 ns"):
        Shard(lambda spec: Runaway(build_toy(spec).toy), [("hasty", ticking("hasty", 10).pack())]).advance(
            100, {}, 1 << 62
        )


def test_mail_from_before_the_last_horizon_is_refused_by_name() -> None:
    shard = shard_of(Toy("a", tick=0, speak=0))
    shard.advance(1000, {}, 1000)
    with pytest.raises(ProtocolViolationError, match="a: got a message for 999 ns"):
        shard.advance(2000, {"a": (letter("a", 999),)}, 1000)


class Idler(ToyHost):
    """Has something to do and does not do it."""

    def advance(self, horizon_ns: int, event_budget: int) -> Advance:
        return Advance(0, self.next_event_ns(), 0)


def test_an_entity_that_leaves_its_events_undone_is_named() -> None:
    with pytest.raises(ProtocolViolationError, match="lazy: did nothing"):
        Shard(lambda spec: Idler(build_toy(spec).toy), [("lazy", ticking("lazy").pack())]).advance(1000, {}, 100)


class Nervous(ToyHost):
    """Could speak at any time, it says."""

    def earliest_output_ns(self) -> int:
        return 0


def test_a_promise_is_never_before_the_next_event() -> None:
    shard = Shard(lambda spec: Nervous(build_toy(spec).toy), [("a", ticking("a").pack())])
    report = shard.advance(1000, {}, 1000)
    assert report.earliest_output_ns == report.next_event_ns >= 1000


def test_gauges_and_rows_come_by_entity() -> None:
    shard = shard_of(ticking("a"), ticking("b"))
    shard.advance(500, {}, 1000)
    rows = shard.collect(500)
    assert shard.gauges() == {name: {"lines": float(len(rows[name]["log"]))} for name in "ab"}
