"""Workers go away, stand still or are slow: the run ends as if nothing had been, or says what is wrong."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from toy_hosts import build_mortal, build_sleepy, digest, draw, run_toys, toys

from cluster import process_family
from cluster import seat as seat_module
from cluster.actor_layout import ActorLayout, packed
from cluster.entity import Message
from cluster.inline_layout import InlineLayout
from cluster.layout import WorkerLostError
from cluster.ray_cluster import ActorLostError
from cluster.scenario import Scenario
from cluster.seat import MOST_LOSSES, Step
from cluster.session import Session
from cluster.shard import ShardReport
from cluster.simulation import run

KILLS = 20
PATIENCE_S = 2.0
END_NS = 20_000


@pytest.fixture(scope="module")
def layout() -> Iterator[ActorLayout]:
    layout = ActorLayout(packed(2), patience_s=PATIENCE_S)
    try:
        yield layout
    finally:
        layout.close()


def pid_of(layout: ActorLayout, number: int) -> int:
    """The process that sits at a seat now."""
    layout._catch_up([layout._seats[number]])
    (pid,) = layout._cluster.answers([layout._seats[number].actor.ping()], 60)
    return int(pid)


def kill(pid: int) -> None:
    process = process_family.process_of(pid)
    os.kill(pid, signal.SIGKILL)
    process_family.end_of([process], 60)


def replaced(layout: ActorLayout) -> int:
    return int(str(layout.facts().get("workers_replaced", 0)))


def at_windows(due: dict[int, Callable[[], object]]) -> Callable[[int, int], int]:
    """A cut that cuts nothing and does something in windows of these numbers."""
    windows = iter(range(1 << 30))

    def cut(_: int, horizon_ns: int) -> int:
        due.get(next(windows), lambda: None)()
        return horizon_ns

    return cut


@pytest.mark.ray
def test_workers_killed_at_twenty_random_windows_change_nothing(layout: ActorLayout) -> None:
    hosts = toys(6, seed=3)
    expected, inline = run_toys(InlineLayout(), hosts, end_ns=END_NS, windows=True)
    struck: list[int] = []

    def strike() -> None:
        struck.append(pid_of(layout, draw("whom", len(struck)) % 2))
        kill(struck[-1])

    windows = random.Random(7).sample(range(inline.round_trips - 1), KILLS)
    log, result = run_toys(layout, hosts, end_ns=END_NS, cut=at_windows(dict.fromkeys(windows, strike)))
    assert digest(log) == digest(expected)
    assert (result.round_trips, result.events) == (inline.round_trips, inline.events)
    assert replaced(layout) == len(struck) == KILLS


def watched(layout: ActorLayout, patch: pytest.MonkeyPatch) -> set[str]:
    """What the layout notes from now on, and everything that takes a while is named sooner."""
    notes: set[str] = set()
    advance = layout.advance

    def noting(horizon_ns: int, mail: Mapping[str, tuple[Message, ...]], event_budget: int) -> ShardReport:
        report = advance(horizon_ns, mail, event_budget)
        notes.update(layout.notes)
        return report

    patch.setattr(layout, "advance", noting)
    patch.setattr(seat_module, "SLOW_S", 0.5)
    return notes


@pytest.mark.ray
def test_a_worker_that_is_stopped_is_replaced_and_does_not_stay(
    layout: ActorLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = watched(layout, monkeypatch)
    before = replaced(layout)
    stopped: list[int] = []

    def stop() -> None:
        stopped.append(pid_of(layout, 1))
        os.kill(stopped[0], signal.SIGSTOP)

    log, _ = run_toys(layout, toys(4), end_ns=4000, cut=at_windows({9: stop}))
    assert digest(log) == digest(run_toys(InlineLayout(), toys(4), end_ns=4000)[0])
    assert replaced(layout) == before + 1
    assert any(note.startswith("worker 2 gives no sign of life, for ") for note in notes)
    process_family.end_of([process_family.process_of(stopped[0])], 60)


@pytest.mark.ray
def test_a_worker_that_is_slow_is_named_and_waited_for(layout: ActorLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = watched(layout, monkeypatch)
    before = replaced(layout)
    log, _ = run_toys(layout, toys(2), end_ns=4000, build=build_sleepy)
    assert digest(log) == digest(run_toys(InlineLayout(), toys(2), end_ns=4000)[0])
    assert replaced(layout) == before
    assert any(note.startswith("toy-0 works, for ") for note in notes)


@pytest.mark.ray
def test_a_worker_that_is_lost_at_the_same_place_again_and_again_is_given_up_and_the_others_keep_their_rows(
    layout: ActorLayout,
) -> None:
    before = replaced(layout)
    with pytest.raises(WorkerLostError, match=r"^toy-0 was lost 4 times in a row, about .*: its process ended"):
        run_toys(layout, toys(2), build=build_mortal)
    assert replaced(layout) == before + MOST_LOSSES + 1
    rows = layout.salvage(END_NS)["log"]
    assert {row["host"] for row in rows} == {"toy-1"}


def command_of(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def ours(is_wanted: Callable[[bytes], bool]) -> list[process_family.Process]:
    return [one for one in process_family.family([os.getpid()]) if is_wanted(command_of(one[0]))]


def is_raylet(command: bytes) -> bool:
    return b"raylet/raylet" in command


def is_agent(command: bytes) -> bool:
    """What stands in for one."""
    return command.endswith(b"/cat\0")


@pytest.mark.ray
@pytest.mark.parametrize("is_victim", [is_raylet, is_agent])
def test_a_ray_that_dies_is_replaced_whole(layout: ActorLayout, is_victim: Callable[[bytes], bool]) -> None:
    def strike() -> None:
        node = ours(is_raylet)
        # The raylet has only just been asked to start its agent; where that fails, which happens, both are gone.
        while not (victims := ours(is_victim)) and ours(is_raylet):
            time.sleep(0.05)
        for victim, _ in victims:
            with suppress(ProcessLookupError):
                kill(victim)
        process_family.end_of(node, 60)  # It does not outlive its agent.
        layout._cluster._looked_s = 0.0
        assert set(layout.gauges()) == {toy.name for toy in toys(4)}, "what was known last"

    log, _ = run_toys(layout, toys(4), end_ns=4000, cut=at_windows({8: layout.gauges, 9: strike}))
    assert digest(log) == digest(run_toys(InlineLayout(), toys(4), end_ns=4000)[0])


MOVES = {
    "schema": 1, "name": "moves", "duration": "30 s",
    "hosts": [{"name": "host", "product": "Milan", "count": 2, "memory": "16 GiB"}],
    "vms": [
        {"name": "store", "generation": "PLAIN", "vcpus": 1, "memory": "256 MiB", "workload": "key-value-store",
         "start": "running", "host": "host-1"},
        {"name": "secret", "generation": "SEV_SNP", "vcpus": 1, "memory": "256 MiB", "workload": "key-value-store",
         "arrival": "2 s", "host": "host-2"},
    ],
    "migrations": [{"vm": "store", "at": "1 s", "times": 6, "pause": "1 s"}],
}  # fmt: skip


@pytest.mark.ray
def test_hosts_lost_in_the_middle_of_migrations_and_launches_end_with_the_same_digest(layout: ActorLayout) -> None:
    scenario = Scenario.parse(MOVES)
    expected = run(scenario, layout="inline")
    session = Session("host", None)
    session._layout, before = layout, replaced(layout)
    calls = iter(range(1 << 30))

    def strike_now_and_then() -> None:
        if any(seat.step is not Step.READY for seat in layout._seats):
            return  # On a slow machine one is asked often while a worker is replaced: losses in a row end a run.
        call = next(calls)
        if call % 12 == 4:
            # Or its turn comes again before anybody has noticed that it is dead.
            with suppress(ActorLostError):
                kill(pid_of(layout, call // 12 % 2))

    results = session.run(scenario, None, None, strike_now_and_then)
    assert results.partial is None
    assert replaced(layout) - before >= 3
    assert {row["outcome"] for row in results.migrations.to_pylist()} == {"completed"}
    assert results.digest == expected.digest
