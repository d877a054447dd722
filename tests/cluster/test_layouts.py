"""One story in every layout over Ray: launches, logs, talk and moves come to what one process makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import talking_guests
from small_fleet import small_fleet

from cluster.actor_layout import ActorLayout, WorkerRule, one_each, packed
from cluster.bundled_scenarios import load_scenario
from cluster.results import Results
from cluster.scenario import Scenario
from cluster.session import Session
from cluster.simulation import run
from node.record_buffer import NO_LOG, LogWish

EVERYTHING = LogWish(everything=True)


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    """One Ray for all of them: to start it takes longer than these runs."""
    with Session("packed", 3) as session:
        yield session


def on_actors(session: Session, scenario: Scenario, rule: WorkerRule, log: LogWish = NO_LOG) -> Results:
    assert isinstance(session._layout, ActorLayout)
    session._layout.rule = rule
    return session.run(scenario, None, None, None, log)


@pytest.mark.ray
def test_results_do_not_depend_on_layout_or_workers(session: Session) -> None:
    expected = run(small_fleet(), layout="inline").digest
    for workers, rule in ((3, packed(3)), (1, packed(1)), (2, packed(2)), (3, one_each(None))):
        results = on_actors(session, small_fleet(), rule)
        assert results.digest == expected
        assert results.run["workers"] == workers


@pytest.mark.ray
def test_guests_that_talk_across_workers_come_to_the_results_of_one_process(session: Session) -> None:
    talk = Scenario.parse(talking_guests.scenario())
    inline = run(talk, layout="inline")
    assert on_actors(session, talk, packed(2)).digest == inline.digest
    assert inline.tables["traffic"].num_rows == 4


@pytest.mark.ray
def test_a_log_does_not_depend_on_the_layout(session: Session) -> None:
    quiet = load_scenario("quiet").model_copy(update={"duration": 30 * 10**9})
    logged = run(quiet, layout="inline", log=True).events
    assert logged is not None
    assert on_actors(session, quiet, packed(2), EVERYTHING).events == logged


@pytest.mark.ray
def test_a_store_that_moves_between_processes_is_the_one_that_moved_within_one(session: Session) -> None:
    vm: dict[str, Any] = {"name": "vm", "generation": "PLAIN", "vcpus": 2, "memory": "1 GiB", "host": "host-1",
                          "workload": "key-value-store", "start": "running"}  # fmt: skip
    scenario = Scenario.parse({
        "schema": 1, "name": "moves", "duration": "30 s",
        "hosts": [{"name": "host", "product": "Milan", "count": 3, "memory": "16 GiB"}],
        "vms": [vm, {**vm, "name": "build", "workload": "compile-job", "vcpus": 1}],
        "migrations": [{"vm": "vm", "at": "1 s", "times": 3, "pause": "100 ms"},
                       {"vm": "build", "at": "1 s", "to": "host-2"}],
    })  # fmt: skip
    results = on_actors(session, scenario, packed(3), EVERYTHING)
    assert {row["outcome"] for row in results.migrations.to_pylist()} == {"completed"}
    assert {row["state"] for row in results.vms.to_pylist()} == {"running"}
    inline = run(scenario, layout="inline", log=True)
    assert (results.digest, results.events) == (inline.digest, inline.events)
