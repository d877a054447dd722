"""Actors: spawned, called, waited for, found and ended, from the driver and from inside other actors."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.process_family import process_of
from cluster.ray_cluster import (
    Actor,
    ActorLostError,
    Actors,
    ClusterLostError,
    Missing,
    NoAnswerError,
    RayCluster,
    Whereabouts,
)
from cluster.ray_environment import LONGEST_FOLDER, FolderError, short_folder

LONG_S = 60.0
"""Only so that a test that would hang fails instead."""


class Counter:
    """Counts; naps when asked to."""

    def __init__(self, start: int) -> None:
        self._count = start

    def add(self, number: int) -> int:
        if number < 0:
            raise ArithmeticError(f"expected no less than 0, got {number}")
        self._count += number
        return self._count

    def nap(self, seconds: float) -> None:
        time.sleep(seconds)


class Parent:
    """Has a counter of its own."""

    def __init__(self) -> None:
        self._actors = Actors()
        self._child = self._actors.spawn(Counter, 10)

    def add_below(self, number: int) -> int:
        (answer,) = self._actors.answers([self._child.call("add", number)], LONG_S)
        return int(answer)

    def child(self) -> Actor:
        return self._child

    def lose_child(self) -> bool:
        call = self._child.call("nap", LONG_S)
        self._actors.kill(self._child)
        return self._actors.outcomes([call], LONG_S) == [Missing.LOST]


def twice(counter: Counter, number: int) -> int:
    counter.add(number)
    return counter.add(number)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster() as cluster:
        cluster.start(2)
        yield cluster


def whereabouts(actors: Actors, actor: Actor) -> Whereabouts:
    (found,) = actors.answers([actor.whereabouts()], LONG_S)
    assert isinstance(found, Whereabouts)
    return found


def program_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return b""


@pytest.mark.ray
def test_actors_live_in_processes_of_their_own_and_answer_in_order(cluster: RayCluster) -> None:
    one, two = (cluster.spawn(Counter, start) for start in (0, 100))
    calls = [actor.call("add", number) for number in (1, 2) for actor in (one, two)]
    assert cluster.answers(calls, LONG_S) == [1, 101, 3, 103]
    assert cluster.answers([one.apply(twice, 5)], LONG_S) == [13]
    pids = {whereabouts(cluster, actor).pid for actor in (one, two)}
    assert len(pids | {os.getpid()}) == 3


@pytest.mark.ray
def test_a_process_is_known_well_enough_to_be_killed_and_its_loss_is_told_from_lateness(cluster: RayCluster) -> None:
    lost, late, whole = (cluster.spawn(Counter, 0) for _ in range(3))
    found = whereabouts(cluster, lost)
    assert found.process == process_of(found.pid)
    naps = [lost.call("nap", LONG_S), late.call("nap", LONG_S), whole.call("add", 1)]
    os.kill(found.pid, signal.SIGKILL)
    with pytest.raises(ActorLostError) as caught:
        cluster.answers(naps, LONG_S)
    assert caught.value.index == 0
    assert cluster.outcomes(naps, 0.1) == [Missing.LOST, Missing.WAITING, 1]
    with pytest.raises(NoAnswerError) as expired:
        cluster.answers(naps[1:], 0.1)
    assert expired.value.index == 0
    cluster.kill(late)
    assert cluster.outcomes(naps[1:], LONG_S) == [Missing.LOST, 1]


@pytest.mark.ray
def test_an_actors_own_error_is_raised_as_it_was_there_and_the_actor_goes_on(cluster: RayCluster) -> None:
    actor = cluster.spawn(Counter, 3)
    with pytest.raises(ArithmeticError, match="expected no less than 0, got -1"):
        cluster.answers([actor.call("add", -1)], LONG_S)
    assert cluster.answers([actor.call("add", 1)], LONG_S) == [4]


@pytest.mark.ray
def test_an_actor_has_actors_that_end_with_it(cluster: RayCluster) -> None:
    parent = cluster.spawn(Parent)
    assert cluster.answers([parent.call("add_below", 5)], LONG_S) == [15]
    (child,) = cluster.answers([parent.call("child")], LONG_S)
    assert cluster.answers([child.call("add", 1)], LONG_S) == [16]
    cluster.kill(parent)
    with pytest.raises(ActorLostError):
        cluster.answers([child.call("nap", LONG_S)], LONG_S)


@pytest.mark.ray
def test_an_actor_ends_its_own_actors(cluster: RayCluster) -> None:
    parent = cluster.spawn(Parent)
    assert cluster.answers([parent.call("lose_child")], LONG_S) == [True]


HEADLESS = """
import os, signal, sys, time
from cluster import ray_daemons
from cluster.process_family import family
from cluster.ray_cluster import ClusterLostError, RayCluster
from test_ray_cluster import LONG_S, Counter, program_of

ray_daemons.STILL_S = 1.0
victim, number = sys.argv[1].encode(), int(sys.argv[2])
cluster = RayCluster()
cluster.start(2)
cluster.answers([cluster.spawn(Counter, 0).call("add", 1)], LONG_S)
(daemon,) = (pid for pid, _ in family([os.getpid()]) if victim in program_of(pid))
os.kill(daemon, number)
pending = cluster.spawn(Counter, 0)
try:
    cluster.answers([pending.call("add", 1)], LONG_S)
except ClusterLostError as error:
    print(error)
began = time.monotonic()
cluster.kill(pending)
cluster.close()
print("left" if time.monotonic() - began < LONG_S / 2 else "waited")
"""


@pytest.mark.ray
@pytest.mark.parametrize(
    ("daemon", "struck", "why"),
    [("gcs_server", signal.SIGKILL, "ended unexpectedly"), ("raylet", signal.SIGSTOP, "has stood still for ")],
)
def test_a_daemon_that_is_gone_or_stands_still_is_not_asked_to_end_actors(
    daemon: str, struck: int, why: str
) -> None:
    """It would be waited for a minute, and then Ray would end the process, which therefore is one of its own.

    For one that stands still Ray would wait for ever.
    """
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (here.parents[1], here)))}
    ran = subprocess.run(
        [sys.executable, "-c", HEADLESS, daemon, str(int(struck))], env=environment, stdout=subprocess.PIPE, text=True,
        timeout=4 * LONG_S, check=False,
    )  # fmt: skip
    *lost, end = ran.stdout.splitlines()
    assert f"Ray's process {daemon} {why}" in "".join(lost)
    assert end == "left"


@pytest.mark.parametrize(
    ("temporary", "expected"), [("/" + "t" * (LONGEST_FOLDER - 1), True), ("/" + "t" * LONGEST_FOLDER, False)]
)
def test_a_folder_whose_sockets_would_have_too_long_paths_is_not_used(
    temporary: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", temporary)
    monkeypatch.setattr("os.access", lambda *_: True)
    assert (short_folder() == temporary) is expected


def test_no_folder_for_sockets_at_all_is_an_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/" + "t" * 60)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(FolderError, match=f"TMPDIR: expected a folder of at most {LONGEST_FOLDER} bytes"):
        short_folder()


def test_a_cluster_without_a_machine_or_without_ours_is_lost_and_else_gives_the_emptiest() -> None:
    cluster = RayCluster("10.0.0.1:6379")
    nodes = [
        {"NodeID": "gone", "Alive": False, "Resources": {"CPU": 8.0}},
        {"NodeID": "head", "Alive": True, "Resources": {}},
    ]
    here = SimpleNamespace(get_node_id=lambda: "head")
    cluster._ray = SimpleNamespace(nodes=lambda: nodes, get_runtime_context=lambda: here)
    with pytest.raises(ClusterLostError, match=r"^10.0.0.1:6379: no machine of the cluster with cores is there$"):
        cluster._emptiest_node()
    nodes += [{"NodeID": name, "Alive": True, "Resources": {"CPU": 2.0}} for name in ("lossy", "calm")]
    cluster._losses["lossy"] += 1
    assert cluster._emptiest_node() == "calm"
    nodes[1]["Alive"] = False
    with pytest.raises(ClusterLostError, match=r"^10.0.0.1:6379: the cluster's Ray on this machine is gone, and"):
        cluster._emptiest_node()
