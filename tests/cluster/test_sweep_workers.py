"""Runs are given out one to a worker, lost ones again to a fresh one, and hopeless ones given up."""

from collections import Counter
from pathlib import Path

import pytest
from mortal_worker import MortalWorker, attempts_at

from cluster.machine import cores
from cluster.sweeps.run import RunOrder
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
