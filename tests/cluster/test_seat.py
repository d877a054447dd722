"""Workers lost at any call, one after another: who takes a seat says nothing twice and counts nothing twice."""

from collections import Counter
from types import SimpleNamespace

import pytest
from pretended_cluster import PretendedCall, PretendedCluster, on_pretended
from toy_hosts import digest, draw, run_toys, toys

from cluster import life_sign
from cluster import seat as seat_module
from cluster.actor_layout import packed
from cluster.inline_layout import InlineLayout
from cluster.layout import WorkerLostError
from cluster.ray_cluster import ARRIVE_S, Missing
from cluster.seat import MOST_LOSSES
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
