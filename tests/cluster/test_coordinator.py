"""The coordinator on toy hosts: however time is cut and hosts are packed, the same log comes out."""

import heapq
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import toy_hosts
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_hosts import CONTROL, END_NS, LOOKAHEAD_NS, Log, Toy, ToyControl, calls_of, digest, run_toys, toys

import cluster.coordinator as coordinator_module
from cluster.coordinator import Coordinator, CoordinatorResult
from cluster.entity import NEVER, Message
from cluster.inbox import ProtocolViolationError
from cluster.inline_layout import InlineLayout
from cluster.layout import Rows, merged_reports, merged_rows
from cluster.shard import EntityFactory, Shard, ShardReport


class ReferenceHost:
    """What a toy host does, told without SimPy, inboxes, promises or windows."""

    def __init__(self, toy: Toy) -> None:
        self.toy = toy
        self.log: list[tuple[int, str, str]] = []
        self.said: list[tuple[int, str, int, str, int]] = []
        self.letters: list[tuple[int, str, int, str, int]] = []
        self.local: list[tuple[int, int, str, int, int]] = []
        self._inserted = self._sequence = self._received = 0
        for what, mean in (("tick", toy.tick), ("speak", toy.speak)):
            if mean:
                self._plan(0, what, 0)

    def _plan(self, now: int, what: str, number: int, delay: int | None = None, hops: int = 0) -> None:
        gap = delay if delay is not None else getattr(self.toy, f"{what}_gap")(number)
        self._inserted += 1
        heapq.heappush(self.local, (now + gap, self._inserted, what, number, hops))

    def next_ns(self) -> int:
        return min([first[0] for first in (*self.local[:1], *self.letters[:1])], default=NEVER)

    def live(self, now: int) -> None:
        while self.letters and self.letters[0][0] == now:
            _, sender, sequence, origin, hops = heapq.heappop(self.letters)
            self.log.append((now, "got", f"{sender} {sequence} {origin} {hops}"))
            number, self._received = self._received, self._received + 1
            if hops:
                delay = self.toy.thinks(number)
                if delay:
                    self._plan(now, "answer", number, delay, hops - 1)
                else:
                    self._say(now, self.toy.peer("answer", number), hops - 1)
        while self.local and self.local[0][0] == now:
            _, _, what, number, hops = heapq.heappop(self.local)
            if what == "tick":
                self.log.append((now, "tick", str(number)))
                self._plan(now, what, number + 1)
            elif what == "speak":
                self._say(now, self.toy.peer(what, number), self.toy.hops)
                self._plan(now, what, number + 1)
            else:
                self._say(now, self.toy.peer(what, number), hops)

    def _say(self, now: int, to: str, hops: int) -> None:
        self._sequence += 1
        self.log.append((now, "said", f"{self._sequence} {to} {hops}"))
        self.said.append((now, self.toy.name, self._sequence, to, hops))


def reference(hosts: Sequence[Toy], calls: Sequence[int]) -> Log:
    """All hosts and the control plane in one loop, nanosecond after nanosecond."""
    names = tuple(toy.name for toy in hosts)
    plane = ToyControl(names)
    live = {toy.name: ReferenceHost(toy) for toy in hosts}
    log: list[tuple[int, str, str]] = []
    waiting = sorted(calls)
    sequence = 0
    while (now := min(*(host.next_ns() for host in live.values()), *waiting[:1], NEVER)) < END_NS:
        for host in live.values():
            host.live(now)
        wanted = [
            (to, sender, hops)
            for _, sender, _, to, hops in sorted(said for host in live.values() for said in host.said)
        ]
        for host in live.values():
            host.said.clear()
        while waiting and waiting[0] == now:
            waiting.pop(0)
            called = names[toy_hosts.draw("call", sequence + len(wanted)) % len(names)]
            wanted.append((called, CONTROL, 1))
        for to, origin, hops in wanted:
            sequence += 1
            log.append((now, "sent", f"{sequence} {to} {origin} {hops}"))
            heapq.heappush(live[to].letters, (now + plane.delay(sequence), CONTROL, sequence, origin, hops))
    return {**{name: host.log for name, host in live.items()}, CONTROL: log}


class SplitLayout:
    """Shards in this process, hosts dealt out at random."""

    startup_s = 0.0

    def __init__(self, workers: int, seed: int) -> None:
        self.workers = workers
        self._random = random.Random(seed)

    def start(self, factory: EntityFactory, specs: Sequence[tuple[str, bytes]]) -> None:
        shuffled = self._random.sample(list(specs), len(specs))
        self._home = {name: self._random.randrange(self.workers) for name, _ in shuffled}
        self._shards = [
            Shard(factory, [spec for spec in shuffled if self._home[spec[0]] == number])
            for number in range(self.workers)
        ]
        self._reports = [shard.report() for shard in self._shards]

    def together(self, lookahead_ns: int, end_ns: int) -> None:
        pass

    def report(self) -> ShardReport:
        return merged_reports(self._reports)

    def advance(self, horizon_ns: int, mail: Mapping[str, tuple[Message, ...]], event_budget: int) -> ShardReport:
        self._reports = [
            shard.advance(horizon_ns, {name: mail[name] for name in mail if self._home[name] == number}, event_budget)
            for number, shard in enumerate(self._shards)
        ]
        return merged_reports(self._reports)

    def collect(self, end_ns: int) -> Rows:
        return merged_rows({name: rows for shard in self._shards for name, rows in shard.collect(end_ns).items()})

    def gauges(self) -> dict[str, dict[str, float]]:
        return {}

    def close(self) -> None:
        self._shards = []


@pytest.fixture(scope="module")
def plain() -> str:
    return digest(run_toys(InlineLayout(), toys())[0])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_sequential_simulation_without_windows_tells_the_same_story(seed: int) -> None:
    log, _ = run_toys(InlineLayout(), toys(seed=seed))
    expected = reference(toys(seed=seed), calls_of(seed))
    assert sum(what == "got" for lines in expected.values() for _, what, _ in lines) > 500
    for name, lines in expected.items():
        assert log[name] == lines


def test_letters_and_local_events_of_one_nanosecond_do_meet_in_the_toys() -> None:
    log, _ = run_toys(InlineLayout(), toys())
    met = 0
    for lines in log.values():
        ticks = {time for time, what, _ in lines if what == "tick"}
        met += sum(what == "got" and time in ticks for time, what, _ in lines)
    assert met > 50


@settings(max_examples=20, deadline=None)
@given(
    hosts=st.integers(1, 8), seed=st.integers(0, 1000), tick=st.sampled_from((0, 20, 60)),
    speak=st.sampled_from((0, 100, 400)), hops=st.integers(0, 2), workers=st.integers(1, 4),
    budget=st.sampled_from((1, 3, 50, 10_000)),
)  # fmt: skip
def test_any_fleet_however_cut_packed_and_bounded_tells_the_sequential_story(
    hosts: int, seed: int, tick: int, speak: int, hops: int, workers: int, budget: int
) -> None:
    dice = random.Random(seed)
    fleet = toys(hosts, seed, tick=tick, speak=speak, hops=hops)
    log, _ = run_toys(
        SplitLayout(workers, seed), fleet, cut=lambda begin, end: dice.randint(begin + 1, end), event_budget=budget
    )
    assert log == reference(fleet, calls_of(seed))


@pytest.mark.parametrize("lookahead_ns", [0, -1])
def test_a_lookahead_in_which_nobody_could_go_anywhere_is_refused(lookahead_ns: int) -> None:
    with pytest.raises(ValueError, match="lookahead_ns: expected at least 1"):
        run_toys(InlineLayout(), toys(2), lookahead_ns=lookahead_ns)


@pytest.mark.parametrize("seed", range(5))
def test_extra_cuts_of_windows_change_nothing(seed: int, plain: str) -> None:
    dice = random.Random(seed)
    log, _ = run_toys(InlineLayout(), toys(), cut=lambda begin, end: dice.randint(begin + 1, end))
    assert digest(log) == plain


@pytest.mark.parametrize("seed", range(5))
def test_the_packing_of_hosts_changes_nothing(seed: int, plain: str) -> None:
    log, _ = run_toys(SplitLayout(1 + seed % 4, seed), toys())
    assert digest(log) == plain


@pytest.mark.parametrize("budget", [1, 2, 7])
def test_calls_bounded_in_events_change_nothing(budget: int, plain: str) -> None:
    log, result = run_toys(SplitLayout(2, budget), toys(), event_budget=budget)
    assert digest(log) == plain
    assert result.calls > 2 * result.round_trips


def test_the_order_of_hashes_changes_nothing(plain: str) -> None:
    paths = [str(Path(toy_hosts.__file__).parent), str(Path(coordinator_module.__file__).parents[1])]
    for hash_seed in ("0", "4711"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(paths)}
        told = subprocess.run(
            [sys.executable, toy_hosts.__file__, "1"], env=environment, capture_output=True, text=True, check=True
        )
        assert told.stdout.strip() == plain


def test_another_seed_is_another_story(plain: str) -> None:
    assert digest(run_toys(InlineLayout(), toys(seed=2))[0]) != plain


def quiet(count: int, **changes: int) -> list[Toy]:
    return toys(count, speak=0, **changes)


def test_a_fleet_that_promises_silence_reaches_the_end_at_once() -> None:
    hosts = quiet(100, tick=400)
    log, result = run_toys(InlineLayout(), hosts, control=ToyControl(()), windows=True)
    assert 1 <= result.round_trips <= 3
    assert result.reached_ns == END_NS
    assert all(log[toy.name] for toy in hosts)


def round_trips(hosts: list[Toy], calls: Sequence[int] = ()) -> int:
    plane = ToyControl(("toy-0",), calls=tuple(calls))
    return run_toys(InlineLayout(), hosts, control=plane, windows=True)[1].round_trips


def test_round_trips_do_not_grow_with_local_events() -> None:
    calls = range(0, END_NS, 2000)
    few = round_trips(quiet(10, hops=0, tick=500), calls)
    assert few == round_trips(quiet(10, hops=0, tick=20), calls)


def test_round_trips_grow_with_letters_between_hosts() -> None:
    few, many = (round_trips(quiet(10), range(0, END_NS, step)) for step in (5000, 1000))
    assert few < many <= 4 * END_NS // 1000


def test_hosts_of_one_process_wait_for_nobody_and_the_control_plane_acts_as_often_as_in_windows() -> None:
    log, result = run_toys(InlineLayout(), toys())
    waiting, in_windows = run_toys(InlineLayout(), toys(), windows=True)
    assert digest(log) == digest(waiting)
    assert result.round_trips == 0 < in_windows.round_trips
    assert result.control_plane_acts == in_windows.control_plane_acts == len({at for at, _, _ in log[CONTROL]})
    assert result.events == in_windows.events


@pytest.mark.parametrize("speak", [0, 100, 2000])
def test_how_many_windows_there_would_have_been_is_known_without_them(speak: int) -> None:
    layout, hosts = InlineLayout(), toys(6, speak=speak)
    run_toys(layout, hosts)
    assert layout._together is not None
    windows = run_toys(InlineLayout(), hosts, windows=True)[1].round_trips
    # Some go on as far as they need to in one go, and where all fall silent that is noticed after a while.
    assert 0.6 * windows <= layout._together.windows <= 1.5 * windows


def test_a_host_that_breaks_its_promise_is_named() -> None:
    hosts = toys(3)
    hosts[1] = Toy("toy-1", hosts[1].peers, lie=True)
    with pytest.raises(ProtocolViolationError, match=r"toy-1: .*promised"):
        run_toys(InlineLayout(), hosts)


def test_a_control_plane_that_undercuts_the_lookahead_is_named() -> None:
    names = tuple(toy.name for toy in toys())
    with pytest.raises(ProtocolViolationError, match=r"control: .*lookahead"):
        run_toys(InlineLayout(), toys(), control=ToyControl(names, calls=(500,), undercut=50))


class ShortLetter(ToyControl):
    """Writes to a host that is not there."""

    def step(self, now_ns: int, messages: Sequence[Message]) -> tuple[Sequence[Message], int]:
        mail, next_ns = super().step(now_ns, ())
        return [Message(now_ns + LOOKAHEAD_NS, CONTROL, 1, "nobody", "letter"), *mail], next_ns


def test_mail_for_nobody_is_named() -> None:
    with pytest.raises(ProtocolViolationError, match="nobody"):
        run_toys(InlineLayout(), quiet(2), control=ShortLetter(("toy-0",), calls=(500,)))


class Stuck(ToyControl):
    """Never gets its timeline done."""

    def step(self, now_ns: int, messages: Sequence[Message]) -> tuple[Sequence[Message], int]:
        return (), now_ns


def test_a_control_plane_that_does_not_move_on_is_stopped() -> None:
    with pytest.raises(ProtocolViolationError, match="control plane"):
        run_toys(InlineLayout(), quiet(2), control=Stuck(("toy-0",), calls=(500,)))


def test_the_last_nanosecond_before_the_end_is_simulated_and_the_end_is_not() -> None:
    plane = ToyControl(("toy-0",), calls=(END_NS - 1, END_NS))
    _, result = run_toys(InlineLayout(), quiet(2), control=plane)
    assert [time for time, _, _ in plane.log] == [END_NS - 1]
    assert result.reached_ns == END_NS


def answers(*reasons: str | None) -> Iterator[str | None]:
    yield from reasons
    while True:
        yield reasons[-1]


@pytest.mark.parametrize("build", [toy_hosts.build_toy, toy_hosts.build_resting])
@pytest.mark.parametrize("stop", [0, 1, 5, 12, 30])
def test_a_run_that_stops_at_any_call_has_done_all_before_where_it_says_it_is_and_never_goes_back(
    build: EntityFactory, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.together.CALL_S", 1e-6)
    monkeypatch.setattr("cluster.slices.SLICE_EVENTS", 2)
    hosts = quiet(6, seed=3, tick=20)  # Who rests says nothing of its own.
    calls = (7000, *range(9000, END_NS, 300))
    whole, _ = run_toys(InlineLayout(), hosts, control=ToyControl(tuple(toy.name for toy in hosts), calls=calls))
    layout, plane = InlineLayout(), ToyControl(tuple(toy.name for toy in hosts), calls=calls)
    layout.start(build, [(toy.name, toy.pack()) for toy in hosts])
    reached: list[int] = []

    def should_stop() -> str | None:
        reached.append(coordinator._reached_ns)
        return "enough" if len(reached) > stop else None

    coordinator = Coordinator(layout, plane, LOOKAHEAD_NS, END_NS, should_stop=should_stop)
    reached.append((result := coordinator.run()).reached_ns)
    assert result.stopped == "enough"
    assert reached == sorted(reached)
    assert reached[-1] <= max(plane.next_event_ns(), *[at for at, _, _ in plane.log[-1:]], 0) + LOOKAHEAD_NS
    told: Log = {toy.name: [] for toy in hosts}
    for row in layout.collect(result.reached_ns)["log"]:
        told[str(row["host"])].append((int(str(row["time"])), str(row["what"]), str(row["text"])))
    for toy in hosts:
        before = [[line for line in log[toy.name] if line[0] < result.reached_ns] for log in (whole, told)]
        assert before[0] == before[1]
        assert before[0] or stop < 12


@pytest.mark.parametrize("budget", [3, 8000])
def test_a_run_that_is_asked_to_stop_keeps_what_it_has(budget: int) -> None:
    layout = InlineLayout()
    hosts = toys()
    layout.start(toy_hosts.build_toy, [(toy.name, toy.pack()) for toy in hosts])
    asked = answers(None, None, "enough")
    plane = ToyControl(tuple(toy.name for toy in hosts))
    coordinator = Coordinator(layout, plane, LOOKAHEAD_NS, END_NS, event_budget=budget, should_stop=lambda: next(asked))
    result = coordinator.run()
    assert (result.stopped, result.calls) == ("enough", 3)
    assert result.reached_ns < END_NS
    assert layout.collect(result.reached_ns)["log"]


@pytest.mark.parametrize("windows", [False, True])
def test_a_run_that_is_asked_to_stop_when_all_is_done_is_whole(windows: bool) -> None:
    def ran(stop_in: float) -> CoordinatorResult:
        layout, hosts, asked = InlineLayout(), toys(), itertools.count(1)
        layout.start(toy_hosts.build_toy, [(toy.name, toy.pack()) for toy in hosts])
        return Coordinator(
            layout, ToyControl(tuple(toy.name for toy in hosts)), LOOKAHEAD_NS, END_NS, windows=windows,
            should_stop=lambda: "enough" if next(asked) >= stop_in else None,
        ).run()  # fmt: skip

    whole = ran(stop_in=float("inf"))
    assert ran(stop_in=whole.calls) == whole
    before = ran(stop_in=whole.calls - 1)
    assert (before.stopped, before.calls) == ("enough", whole.calls - 1)


def test_a_run_that_somebody_watches_asks_after_each_of_the_first_acts_and_then_as_time_goes_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def watched(look_s: float) -> CoordinatorResult:
        """Its clock goes on by so much whenever somebody looks at it."""
        layout, hosts = InlineLayout(), toys()
        plane = ToyControl(tuple(toy.name for toy in hosts), calls=tuple(range(100, END_NS, 100)))
        layout.start(toy_hosts.build_toy, [(toy.name, toy.pack()) for toy in hosts])
        together = layout.together(LOOKAHEAD_NS, END_NS)
        looks = itertools.count()
        together._clock = lambda: look_s * next(looks)
        monkeypatch.setattr(layout, "together", lambda *_: together)
        return Coordinator(layout, plane, LOOKAHEAD_NS, END_NS, should_stop=lambda: None).run()

    quick = watched(look_s=1e-9)
    assert quick.control_plane_acts > 100
    assert 16 < quick.calls <= 18
    slow = watched(look_s=0.1)
    assert slow.control_plane_acts == quick.control_plane_acts
    assert slow.calls > 30
