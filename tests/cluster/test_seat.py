"""Workers lost at any call, one after another: who takes a seat says nothing twice and counts nothing twice."""

from collections import Counter
from functools import partialmethod
from types import SimpleNamespace

import pytest
from pretended_cluster import PretendedCall, PretendedCluster, on_pretended
from toy_hosts import build_toy, digest, draw, run_toys, toys

from cluster import life_sign
from cluster import seat as seat_module
from cluster.actor_layout import packed
from cluster.coordinator import UNBOUNDED
from cluster.inline_layout import InlineLayout
from cluster.journal import Journal
from cluster.layout import Layout, WorkerLostError
from cluster.ray_cluster import ARRIVE_S, Missing
from cluster.seat import CALM_CALLS, MOST_LOSSES
from cluster.shard_worker import parsed_call

END_NS = 4000


@pytest.mark.parametrize(("seed", "budget"), [(1, 1 << 62), (3, 5)])
def test_workers_lost_at_any_call_change_no_message_and_no_count(seed: int, budget: int) -> None:
    lost = []

    def fate(call: PretendedCall) -> object:
        done = sum(one.method == "advance" for one in call.actor.calls)
        # Each comes a few windows further than the one before it, and is lost before or after it has done a call.
        if done < 4 + 3 * len(lost) // 2 + draw(seed, len(lost)) % 3 or len(lost) == 8:
            return None
        lost.append(call)
        if draw(seed, "after", len(lost)) % 2:
            cluster._answer(call)
        return Missing.LOST

    cluster = PretendedCluster(fate)
    layout = on_pretended(packed(2), cluster)
    log, result = run_toys(layout, toys(4), end_ns=END_NS, event_budget=budget)
    expected, inline = run_toys(InlineLayout(), toys(4), end_ns=END_NS, event_budget=budget)
    assert digest(log) == digest(expected)
    assert (result.round_trips, result.events) == (inline.round_trips, inline.events)
    assert layout.facts()["workers_replaced"] == len(lost)
    assert len(lost) >= 6
    assert cluster.killed == [call.actor for call in lost]


def test_what_is_saved_of_a_run_is_nothing_that_the_seats_said_in_the_one_before() -> None:
    layout, others = on_pretended(packed(2), PretendedCluster()), toys(4, seed=3)
    before, _ = run_toys(layout, toys(4), end_ns=END_NS)
    assert any(before[toy.name] for toy in others)
    layout.start(build_toy, [(toy.name, toy.pack()) for toy in others])
    inline = InlineLayout()
    inline.start(build_toy, [(toy.name, toy.pack()) for toy in others])
    assert layout.salvage(0) == inline.collect(0)


@pytest.mark.parametrize("looks", [0, 1, 5])
def test_a_worker_whose_figures_are_wanted_is_waited_for_though_they_are_not_there_at_once(looks: int) -> None:
    late: list[PretendedCall] = []

    def fate(call: PretendedCall) -> object:
        if call.method != "gauges":
            return None
        late.append(call)
        return Missing.WAITING if len(late) <= looks else None

    layout = on_pretended(packed(1), PretendedCluster(fate))
    layout.start(build_toy, [(toy.name, toy.pack()) for toy in toys(4)])
    assert set(layout.gauges()) == {toy.name for toy in toys(4)}
    assert len(late) == looks + 1


def test_one_that_is_lost_in_the_same_window_again_and_again_is_given_up_by_name() -> None:
    losses: Counter[str] = Counter()

    def fate(call: PretendedCall) -> object:
        if call.method != "advance" or parsed_call(call.arguments[0])[0] < END_NS // 2:
            return None
        losses[call.method] += 1
        return Missing.LOST

    with pytest.raises(WorkerLostError, match=r"^worker 1 was lost 4 times in a row, about .* of virtual time: its"):
        run_toys(on_pretended(packed(1), PretendedCluster(fate)), toys(2), end_ns=END_NS)
    assert losses["advance"] == MOST_LOSSES + 1


@pytest.mark.parametrize(("early", "budget"), [(None, UNBOUNDED), (1, UNBOUNDED), (None, 1)])
def test_the_way_that_was_gone_before_is_no_calm_however_long_it_is(
    early: int | None, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker is told window for window what was told; every second one may be lost at one of these."""
    monkeypatch.setattr(Journal, "windows", partialmethod(Journal.windows, together_bytes=1))
    done: list[int] = []

    def fate(call: PretendedCall) -> object:
        windows = [one for one in call.actor.calls if one.method == "advance"]
        horizon_ns = parsed_call(call.arguments[0])[0] if call.method == "advance" else 0
        if (horizon_ns < 2 * END_NS and (len(windows) != early or not len(done) % 2)) or len(done) > MOST_LOSSES:
            return None
        done.append(len(windows))
        return Missing.LOST

    with pytest.raises(WorkerLostError, match=r"^worker 1 was lost 4 times in a row, about 7\.\d+ us of virtual time"):
        run_toys(on_pretended(packed(1), PretendedCluster(fate)), toys(2), end_ns=3 * END_NS, event_budget=budget)
    assert max(done) > CALM_CALLS


@pytest.mark.parametrize(("further", "lost"), [(2 * CALM_CALLS, False), (CALM_CALLS // 2, True)])
def test_who_comes_much_further_within_a_window_each_time_is_not_lost_in_a_row(further: int, lost: bool) -> None:
    """A window may hold the whole run, where nobody can reach anybody: then it is calls that tell."""
    ends: list[int] = []

    def fate(call: PretendedCall) -> object:
        done = sum(one.method == "advance" for one in call.actor.calls)
        if done < further * (1 + len(ends)) or len(ends) > MOST_LOSSES:
            return None
        ends.append(parsed_call(call.arguments[0])[0])
        return Missing.LOST

    def run_of(layout: Layout) -> str:
        return digest(run_toys(layout, toys(8), end_ns=END_NS, lookahead_ns=END_NS, event_budget=1)[0])

    layout = on_pretended(packed(1), PretendedCluster(fate))
    if lost:
        with pytest.raises(WorkerLostError, match=r"^worker 1 was lost 4 times in a row"):
            run_of(layout)
    else:
        assert run_of(layout) == run_of(InlineLayout())
    assert len(ends) == MOST_LOSSES + 1
    assert len(set(ends)) == 1


def test_one_that_gives_no_sign_of_life_is_named_then_ended_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    for module in (seat_module, life_sign):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    stands: list[PretendedCall] = []
    notes: set[str] = set()

    def fate(call: PretendedCall) -> object:
        now_s[0] += 0.5
        notes.update(layout.notes)
        if call.method == "advance" and not stands:
            stands.append(call)
        return Missing.WAITING if stands and call.actor is stands[0].actor else None

    cluster = PretendedCluster(fate)
    layout = on_pretended(packed(1), cluster)
    log, _ = run_toys(layout, toys(2), end_ns=END_NS)
    assert digest(log) == digest(run_toys(InlineLayout(), toys(2), end_ns=END_NS)[0])
    assert cluster.killed == [stands[0].actor]
    assert {"worker 1 gives no sign of life, for 6 s now", "worker 1 was lost and is replaced"} <= notes


@pytest.mark.parametrize(("apart_s", "lost"), [(ARRIVE_S - 10, False), (ARRIVE_S + 10, True)])
def test_one_that_is_in_line_behind_others_is_waited_for_as_long_as_some_arrive(
    apart_s: float, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray starts a few processes at a time, and on a busy machine each takes a while."""
    now_s = [0.0]
    for module in (seat_module, life_sign):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now_s[0]))

    def fate(call: PretendedCall) -> object:
        if call.method != "papers":
            return None
        now_s[0] += 1.0
        return Missing.WAITING if now_s[0] < apart_s * (1 + cluster.actors.index(call.actor)) else None

    cluster = PretendedCluster(fate)
    layout = on_pretended(packed(4), cluster)
    if lost:
        with pytest.raises(WorkerLostError, match=r"^toy-0 was lost 4 times in a row, .* gave no sign of life for"):
            run_toys(layout, toys(4), end_ns=END_NS)
        return
    log, _ = run_toys(layout, toys(4), end_ns=END_NS)
    assert now_s[0] > 3 * ARRIVE_S
    assert cluster.killed == []
    assert digest(log) == digest(run_toys(InlineLayout(), toys(4), end_ns=END_NS)[0])
