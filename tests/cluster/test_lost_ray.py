"""Whoever finds out that Ray is gone: another is started and the run goes on, or ends with what there is."""

import itertools
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from pretended_cluster import PretendedCall, PretendedCluster, on_pretended
from toy_hosts import build_toy, digest, run_toys, toys

from cluster.actor_layout import packed
from cluster.bundled_scenarios import load_scenario
from cluster.errors import RunFailedError
from cluster.inline_layout import InlineLayout
from cluster.layout import StoppedError, WorkerLostError
from cluster.progress_line import described
from cluster.ray_cluster import ClusterLostError, Missing
from cluster.session import Session

END_NS = 4000


@pytest.fixture(scope="module")
def expected() -> str:
    return digest(run_toys(InlineLayout(), toys(4), end_ns=END_NS)[0])


@pytest.mark.parametrize(("method", "turns"), [("start", {1}), ("advance", {3, 12, 20}), ("collect", {1})])
def test_a_ray_found_gone_by_whoever_asks_a_worker_for_a_sign_of_life_is_replaced_whole(
    method: str, turns: set[int], expected: str
) -> None:
    """A worker that works longer than a look is asked for a sign of life: Ray may be gone by then, not before."""
    looks: Counter[PretendedCall] = Counter()
    began: list[PretendedCall] = []

    def fate(call: PretendedCall) -> object:
        if call.method != method:
            return None
        looks[call] += 1
        if cluster.actors.index(call.actor) % 2:
            # It answers in the very turn in which the loss is found out: what it says then is said.
            return Missing.WAITING if len(began) in turns and looks[call] == 1 else None
        began.extend([call] if looks[call] == 1 else [])
        if len(began) not in turns:
            return None
        cluster.lost = "Ray's process raylet ended unexpectedly" if looks[call] == 2 else ""
        return Missing.WAITING

    cluster = PretendedCluster(fate)
    log, _ = run_toys(on_pretended(packed(2), cluster), toys(4), end_ns=END_NS)
    assert digest(log) == expected
    assert cluster.starts == 1 + len(turns)


def test_a_ray_that_is_lost_again_and_again_is_given_up_with_one_line() -> None:
    def fate(call: PretendedCall) -> object:
        cluster.lost = "Ray's process raylet ended unexpectedly" if call.method == "advance" else ""
        return Missing.WAITING if call.method == "advance" else None

    cluster = PretendedCluster(fate)
    with pytest.raises(WorkerLostError, match=r"^all 2 workers were lost: Ray's process raylet ended unexpectedly$"):
        run_toys(on_pretended(packed(2), cluster), toys(4), end_ns=END_NS)


def test_a_ray_that_is_not_started_again_since_an_end_was_asked_for_leaves_what_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fate(call: PretendedCall) -> object:
        if call.method != "advance":
            return None
        cluster.lost = "Ray's process raylet ended unexpectedly"
        monkeypatch.setattr(cluster, "start", broken_off)
        return Missing.WAITING

    def broken_off(_: int) -> None:
        raise ClusterLostError("Ray did not start: its process gcs_server ended unexpectedly")

    cluster = PretendedCluster(fate)
    session = Session("packed", 2)
    session._layout = on_pretended(packed(2), cluster)
    with pytest.raises(RunFailedError) as caught:
        session.run(load_scenario("quiet"), None, None, None)
    assert str(caught.value) == (
        "all 2 workers were lost: Ray's process raylet ended unexpectedly; "
        "Ray did not start: its process gcs_server ended unexpectedly"
    )
    assert caught.value.partial is not None


def test_what_is_lost_while_workers_start_is_shown_as_long_as_it_is_news(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(0, 0.625)  # by which whoever asks for the time finds that a while has passed
    clock = SimpleNamespace(monotonic=lambda: float(next(seconds)), perf_counter=time.perf_counter)
    monkeypatch.setattr("cluster.actor_layout.time", clock)
    looks: Counter[PretendedCall] = Counter()

    def fate(call: PretendedCall) -> object:
        looks[call] += 1
        if call.actor is cluster.actors[0]:
            return Missing.LOST
        if call.actor in cluster.actors[2:3] and looks[call] == 2:
            cluster.lost = "Ray's process raylet ended unexpectedly"
        return Missing.WAITING if call.method == "papers" and looks[call] < 9 else None

    cluster = PretendedCluster(fate)
    session = Session("packed", 2)
    session._layout = on_pretended(packed(2), cluster)
    shown: list[str] = []
    assert session.run(load_scenario("quiet"), None, lambda one: shown.append(described(one)), None).partial is None
    starts = [what for what, _ in itertools.groupby(shown) if what.startswith("starting")]
    assert starts == [
        "starting packed",
        "starting packed; host-1 was lost and is replaced",
        "starting packed; Ray's process raylet ended unexpectedly; another Ray was started",
        "starting packed",
    ]


def test_of_many_that_are_late_or_lost_a_line_names_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.seat.SLOW_S", 0.0)
    monkeypatch.setattr("cluster.actor_layout.free_bytes", lambda: None)
    cluster = PretendedCluster(
        lambda call: Missing.LOST if cluster.actors.index(call.actor) in range(20, 25) else Missing.WAITING
    )
    layout = on_pretended(packed(40), cluster)
    seen: list[list[str]] = []

    def look() -> str | None:
        seen.append(layout.notes)
        return "seen" if len(seen) == 2 else None

    with pytest.raises(StoppedError):
        layout.start(build_toy, [(toy.name, toy.pack()) for toy in toys(80)], look)
    assert [note.removesuffix(", for 0 s now") for note in seen[1]] == [
        *(f"worker {number} was lost and is replaced" for number in (21, 22, 23)), "and 2 more such",
        *(f"worker {number} gives no sign of life" for number in (1, 2, 3)), "and 32 more such",
    ]
