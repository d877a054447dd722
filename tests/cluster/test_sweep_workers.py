"""Runs are given out one to a worker, lost ones again to a fresh one, and hopeless ones given up."""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import pytest
from mortal_worker import MortalWorker, attempts_at
from pretended_cluster import Fate, PretendedActor, PretendedCall, PretendedCluster

from cluster.machine import cores
from cluster.ray_cluster import ActorLostError, ClusterLostError, Missing
from cluster.scenario import Scenario
from cluster.sweeps.parameter_sweep import sweep
from cluster.sweeps.progress import described
from cluster.sweeps.run import RunOrder, RunOutcome
from cluster.sweeps.workers import MOST_LOSSES, WorkersError, on_workers, workers_for


def nobody() -> None:
    """Nobody asks for an end."""


@pytest.mark.ray
def test_a_killed_workers_run_is_made_again_and_one_that_kills_them_all_is_given_up(tmp_path: Path) -> None:
    deaths = {"a": 0, "b": 1, "c": MOST_LOSSES, "d": 0, "e": 0}
    orders = [RunOrder(label, f"{tmp_path} {count}", 1, pairs=False) for label, count in deaths.items()]
    under_way: list[int] = []
    finished = dict(on_workers(orders, 2, under_way.append, nobody, MortalWorker))
    reasons = {orders[index].label: outcome.reason for index, outcome in finished.items()}
    assert reasons == {
        "a": None, "b": None, "c": "its worker's process ended or stood still, 3 times", "d": None, "e": None,
    }  # fmt: skip
    attempts = {label: attempts_at(str(tmp_path), label) for label in deaths}
    assert attempts == {"a": 1, "b": 2, "c": 3, "d": 1, "e": 1}
    assert max(under_way) == 2
    # A worker that was not killed is used again: two, and one more for each loss.
    pids = Counter(pid for label in deaths for pid in (tmp_path / label).read_text().split())
    assert len(pids) <= 2 + 4


def test_nobody_starts_ray_for_a_single_run_or_more_workers_than_runs() -> None:
    assert workers_for(None, 0) == workers_for(None, 1) == 0
    assert workers_for(None, 100) == cores()
    assert workers_for(8, 3) == 3
    assert workers_for(0, 3) == 0


def test_a_cluster_that_is_joined_tells_how_many_cores_it_has() -> None:
    assert workers_for(None, 100, "head:6379") is None
    assert workers_for(7, 3, "head:6379") == 3
    with pytest.raises(WorkersError, match=r"^workers: expected at least 1 with an address, head:6379, got 0$"):
        workers_for(0, 3, "head:6379")


def test_more_workers_than_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.sweeps.workers.free_bytes", lambda: 1 << 30)
    with pytest.raises(WorkersError, match=r"^workers: expected at most 9, since each needs 110 MiB and more"):
        workers_for(10, 100)
    assert workers_for(9, 100) == 9


class DigestWorker:
    """Its outcomes have the order's label for a digest."""

    def run(self, order: RunOrder) -> RunOutcome:
        return RunOutcome(order.label)


class SweptCluster(PretendedCluster):
    """One that a sweep joins; it lets so many workers be killed before it finds that its head is gone."""

    def __init__(self, fate: Fate, kills: int) -> None:
        super().__init__(fate)
        self.kills = kills

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def outcomes(self, calls: Sequence[PretendedCall], timeout_s: float) -> list[Any]:
        return self.settled(calls, timeout_s)

    def check(self, actors: Sequence[PretendedActor]) -> None:
        if Missing.LOST in self.settled([actor.papers() for actor in actors], 0):
            raise ActorLostError(0)

    def kill(self, actor: PretendedActor) -> None:
        if len(self.killed) == self.kills:
            raise ClusterLostError("the cluster's head gives no answer any more")
        super().kill(actor)


def digests_on(cluster: SweptCluster, labels: str, monkeypatch: pytest.MonkeyPatch) -> set[str | None]:
    """What is kept of runs with these labels, two at a time, until the cluster is lost."""
    monkeypatch.setattr("cluster.sweeps.workers.RayCluster", lambda _: cluster)
    orders = [RunOrder(label, "", 1, pairs=False) for label in labels]
    found = set()

    def keep() -> None:
        for _, outcome in on_workers(orders, 2, lambda _: None, nobody, DigestWorker):
            found.add(outcome.digest)

    with pytest.raises(ClusterLostError):
        keep()
    return found


def is_run(call: PretendedCall, label: str) -> bool:
    return call.method == "run" and call.arguments[0].label == label


def test_a_run_that_is_over_is_kept_where_the_cluster_is_found_gone_when_a_worker_is_to_be_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = SweptCluster(lambda call: Missing.LOST if is_run(call, "a") else None, 0)
    assert digests_on(cluster, "ab", monkeypatch) == {"b"}


def test_a_run_that_is_over_is_kept_where_the_cluster_is_found_gone_by_a_look_for_signs_of_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: Counter[str] = Counter()

    def fate(call: PretendedCall) -> object:
        if call.method != "run":
            return None
        looks[label := call.arguments[0].label] += 1
        if label == "b":
            return Missing.WAITING if looks[label] == 1 else None
        cluster.lost = "the cluster closed the connection" if looks[label] == 2 else ""
        return Missing.WAITING

    cluster = SweptCluster(fate, 0)
    assert digests_on(cluster, "ab", monkeypatch) == {"b"}


def test_a_run_that_ends_while_new_workers_do_not_come_up_is_kept_though_the_cluster_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: Counter[str] = Counter()

    def fate(call: PretendedCall) -> object:
        if call.method != "run":
            return Missing.LOST if call.actor in cluster.actors[2:] else None
        looks[label := call.arguments[0].label] += 1
        if label == "a":
            return Missing.LOST
        return Missing.WAITING if looks[label] == 1 else None

    cluster = SweptCluster(fate, 1)
    assert digests_on(cluster, "ab", monkeypatch) == {"b"}


def test_a_sweep_says_that_ray_was_started_once_more(
    monkeypatch: pytest.MonkeyPatch, tiny_scenario: Scenario
) -> None:
    cluster = SweptCluster(lambda _: None, 0)
    cluster.lost_at_start = "Ray's process raylet ended unexpectedly"
    monkeypatch.setattr("cluster.sweeps.workers.RayCluster", lambda _: cluster)
    monkeypatch.setattr("cluster.sweeps.progress.EVERY_S", 0.0)
    told: list[str] = []
    sweep(tiny_scenario, seeds=2, workers=2, on_progress=lambda glance: told.append(described(glance)))
    assert told[:2] == [
        "0 of 2 runs done",
        "0 of 2 runs done, 2 under way; Ray's process raylet ended unexpectedly; another Ray was started",
    ]


@pytest.mark.parametrize("asked", [True, False])
def test_a_sweep_that_is_told_to_end_while_ray_starts_ends_as_it_was_asked(
    asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_off(_: int) -> None:
        raise ClusterLostError("Ray did not start: its process gcs_server ended unexpectedly")

    cluster = SweptCluster(lambda _: None, 0)
    monkeypatch.setattr(cluster, "start", broken_off)
    monkeypatch.setattr("cluster.sweeps.workers.RayCluster", lambda _: cluster)
    order = RunOrder("a", "", 1, pairs=False)
    runs = on_workers([order], 1, lambda _: None, lambda: "stopped by SIGTERM" if asked else None, DigestWorker)
    with nullcontext() if asked else pytest.raises(ClusterLostError, match="gcs_server"):
        assert list(runs) == []
