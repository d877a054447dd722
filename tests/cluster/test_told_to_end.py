"""Workers that are lost as an end is asked for: they may have been told to end as well, and nobody replaces them."""

import subprocess
import sys

import pytest
from pretended_cluster import PretendedCall, PretendedCluster, on_pretended

from cluster.actor_layout import packed
from cluster.bundled_scenarios import load_scenario
from cluster.ray_cluster import Missing
from cluster.results import Results
from cluster.session import Session

TOLD = "stopped by SIGTERM"


class Ended:
    """A run over two workers that is told to end at a call, of which something else becomes as well."""

    def __init__(self, method: str, turn: int, worker: int, what: object) -> None:
        self.told = False
        self.spawned_before = self.turns = 0

        def fate(call: PretendedCall) -> object:
            if call.method != method or call.actor is not self.cluster.actors[worker] or self.told:
                return Missing.LOST if self.told and call.actor is self.cluster.actors[worker] else None
            self.turns += 1
            if self.turns != turn:
                return None
            self.told = True
            if what is Missing.WAITING:
                self.cluster.lost = "Ray's process raylet ended unexpectedly"
            return what

        self.cluster = PretendedCluster(fate)

    def results(self) -> Results:
        session = Session("packed", 2)
        session._layout = on_pretended(packed(2), self.cluster)
        with session:
            return session.run(load_scenario("quiet"), None, None, lambda: TOLD if self.told else None)


@pytest.mark.parametrize(("method", "turn", "worker"), [("advance", 2, 0), ("collect", 1, 0), ("collect", 1, 1)])
def test_a_worker_is_not_replaced_and_the_others_say_what_they_have(method: str, turn: int, worker: int) -> None:
    ended = Ended(method, turn, worker, Missing.LOST)
    results = ended.results()
    assert ended.told
    assert (len(ended.cluster.actors), ended.cluster.starts, results.partial) == (2, 1, TOLD)
    assert not ended.cluster.is_trusted  # Ray's own processes may have been told to end, too.
    assert results.hosts["host"].to_pylist() == [f"host-{2 - worker}"]
    assert {row["state"] for row in results.vms.to_pylist() if row["host"] is None} <= {"lost", "waiting"}


def test_what_a_worker_said_before_it_was_lost_is_kept() -> None:
    """Its books are closed, and the other's are not."""
    ended = Ended("collect", 1, 1, Missing.LOST)
    gone = ended.cluster.actors
    settled = ended.cluster.settled

    def all_gone_after(calls: list[PretendedCall], timeout_s: float) -> list[object]:  # type: ignore[misc]
        outcomes = settled(calls, timeout_s)
        for actor in gone if ended.told else ():
            actor.dead = True
        return outcomes

    ended.cluster.settled = all_gone_after  # type: ignore[method-assign, assignment]
    results = ended.results()
    assert (results.partial, results.hosts["host"].to_pylist()) == (TOLD, ["host-1"])


@pytest.mark.parametrize(("method", "turn"), [("start", 1), ("advance", 3), ("collect", 1)])
def test_no_other_ray_is_started(method: str, turn: int) -> None:
    ended = Ended(method, turn, 0, Missing.WAITING)
    results = ended.results()
    assert ended.told
    assert (len(ended.cluster.actors), ended.cluster.starts, results.partial) == (2, 1, TOLD)
    # At the start whoever is told to end does so before it is found that anybody is gone.
    assert ended.cluster.is_trusted == (method == "start")


def test_workers_that_are_lost_when_nobody_asked_for_an_end_say_nothing_of_a_start_and_ray_is_trusted() -> None:
    lost: list[PretendedCall] = []

    def fate(call: PretendedCall) -> object:
        windows = sum(one.method == "advance" for one in call.actor.calls)
        if call.method != "advance" or len(lost) == 2 or windows != 2 + len(lost):
            return None
        lost.append(call)
        return Missing.LOST

    cluster, shown, asked = PretendedCluster(fate), [], []
    session = Session("packed", 2)
    session._layout = on_pretended(packed(2), cluster)
    with session:
        results = session.run(load_scenario("quiet"), None, shown.append, lambda: asked.append(0))
    assert (len(lost), results.partial) == (2, None)
    # The second loss asked whether to stop while the first was news: that is nothing that is wrong at the start.
    assert [one.note for one in shown if one.note] == ["starting packed"]
    assert shown[0].troubles == ()
    assert cluster.is_trusted
    assert asked


BELOW = """
import os, signal, sys, time
import ray
from cluster.ray_cluster import RayCluster
from cluster.ray_start import our_handlers

cluster = RayCluster()
cluster._ray = ray
with our_handlers(ray), cluster._watched():
    daemon = ray._private.services.start_ray_process(["/bin/sleep", "60"], "gcs_server", False).process
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # a wait below Python hears nothing
    if "told" in sys.argv:
        os.kill(os.getpid(), signal.SIGTERM)
    daemon.kill()
    time.sleep(60)
"""
"""A process that waits below Python for one of Ray's that has ended."""


@pytest.mark.parametrize(
    ("told", "code", "line"),
    [
        ("told", 128 + 15, "stopped by SIGTERM (before anything began)"),
        ("", 1, "Ray did not start: its process gcs_server ended unexpectedly"),
    ],
)
def test_who_waits_below_python_for_a_process_that_is_gone_ends_as_it_was_told(told: str, code: int, line: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", BELOW, told], capture_output=True, text=True, timeout=50.0, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (code, "", f"sevfleet: {line}\n")
