"""What becomes of a VM's moves is in its event log and its trace, and costs no result anything."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from test_entity_trace import check_format, document
from test_live_migration import group, move, scenario, small_image  # noqa: F401

from cluster.cli import main
from cluster.entity_trace import entity_trace
from cluster.results import Results
from cluster.scenario import Scenario
from cluster.simulation import run
from cluster.tables import EVENTS
from workloads.trace_player import pack_runs

S = 10**9
WRITES = {"fragments": pack_runs([(60_000, 100)]), "step_ms": 60_000, "working_set_bytes": 4096,
          "touches_per_step": 1, "written_set_bytes": 128 << 20, "written_bytes_per_s": 400_000_000}  # fmt: skip


@pytest.fixture(scope="module")
def chosen() -> Scenario:
    """Moves that converge once slowed, wait in line, are refused, called off, and do not happen before the end."""
    busy = {"vcpus": 1, "memory": "512 MiB", "workload": "trace-player", "parameters": WRITES}
    return Scenario.parse(
        scenario(
            vms=[group("busy", **busy), group("next", memory="512 MiB"), group("late", memory="512 MiB"),
                 group("sealed", memory="512 MiB", generation="SEV_SNP")],
            duration="45 s", fabric={"link": "1 Gb/s"},
            migration={"per_host": 1, "max_rounds": 14, "downtime_limit": "150 ms", "auto_converge": True,
                       "throttle_increment": 0.3},
            migrations=[
                move("busy", to="host-2"), move("busy", "2 s"), move("next", "2 s"), move("sealed", "3 s"),
                move("late", "30 s", cancel_after="2 s", to="host-3"), move("late", "44 s"),
            ],
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def logged(chosen: Scenario) -> Results:
    return run(chosen, layout="inline", log=True)


def records(results: Results, vm: str) -> list[dict[str, Any]]:
    assert results.events is not None
    found = [row for row in results.events.to_pylist() if row["entity"] == vm and row["host"] == "control"]
    assert found == sorted(found, key=lambda row: (row["time_ns"], row["number"]))
    return found


def told(results: Results, vm: str, move: int, *words: str) -> list[tuple[Any, ...]]:
    return [
        (row["time_ns"], row["event"], row["text"])
        for row in records(results, vm) if row["event"] in words and row["first"] == move
    ]  # fmt: skip


def test_every_move_is_asked_for_begun_and_over_as_the_tables_say(logged: Results) -> None:
    for row in logged.migrations.to_pylist():
        number, vm = row["migration"], row["vm"]
        (asked,) = told(logged, vm, number, "move asked")
        assert asked[0] == row["ordered_ns"]
        begun = told(logged, vm, number, "move begun")
        between = f"{row['source']} to {row['destination']}"
        assert begun == ([] if row["started_ns"] is None else [(row["started_ns"], "move begun", between)])
        over = told(logged, vm, number, "move done", "move failed")
        if row["ended_ns"] is None:
            assert (row["outcome"], over) == ("unfinished", [])
            continue
        word = "move done" if row["outcome"] == "completed" else "move failed"
        why = f"{row['outcome']}: {row['reason']}" if row["reason"] else row["outcome"]
        assert over == [(row["ended_ns"], word, why)]
        last = next(one for one in records(logged, vm) if one["event"] == word and one["first"] == number)
        assert last["second"] == (row["downtime_ns"] or 0)
    outcomes = {(row["vm"], row["outcome"], row["reason"]) for row in logged.migrations.to_pylist()}
    assert outcomes >= {
        ("busy", "completed", None), ("busy", "refused", "UNDER_WAY"), ("sealed", "refused", "NEEDS_MIGRATION_AGENT"),
        ("late", "cancelled", "on request"), ("late", "unfinished", None), ("next", "completed", None),
    }  # fmt: skip
    waited = next(row for row in logged.migrations.to_pylist() if row["vm"] == "next")
    assert waited["started_ns"] > waited["ordered_ns"]


def test_phases_and_rounds_are_those_of_the_tables(logged: Results) -> None:
    phases = logged.migration_phases.to_pylist()
    rounds = logged.migration_rounds.to_pylist()
    for row in logged.migrations.to_pylist():
        number, vm = row["migration"], row["vm"]
        own = [(one["at_ns"], "move phase", one["phase"]) for one in phases if one["migration"] == number]
        assert told(logged, vm, number, "move phase") == own
    for vm in ("busy", "next", "late"):
        numbers = {row["migration"] for row in logged.migrations.to_pylist() if row["vm"] == vm}
        own = [
            (one["ended_ns"], one["ended_ns"] - one["began_ns"], one["bytes"], one["left_bytes"], str(one["round"]))
            for one in rounds if one["migration"] in numbers
        ]  # fmt: skip
        found = [row for row in records(logged, vm) if row["event"] == "move round"]
        assert [(row["time_ns"], row["took_ns"], row["first"], row["second"], row["text"]) for row in found] == own
        assert bool(own) is (vm != "late"), "called off in its first round"


def test_what_was_sent_is_told_by_kind_when_it_is_over(logged: Results) -> None:
    for row in logged.migrations.to_pylist():
        sent = {
            one["text"]: one["second"] for one in records(logged, row["vm"])
            if one["event"] == "move sent" and one["first"] == row["migration"]
        }  # fmt: skip
        if row["ended_ns"] is None or row["outcome"] == "refused":
            assert sent == {}
            continue
        kinds = ("in rounds", "standing still or in a round broken off", "after it ran", "frames", "on the wire")
        columns = ("final_bytes", "post_copy_bytes", "frame_bytes", "wire_bytes")
        own = dict(zip(kinds[1:], [row[column] for column in columns], strict=True))
        own[kinds[0]] = row["bytes"] - row["final_bytes"] - row["post_copy_bytes"]
        assert sent == {kind: count for kind, count in own.items() if count}
        assert sent


def test_each_step_of_the_throttle_is_told_where_the_vm_is_slowed(logged: Results) -> None:
    assert logged.events is not None
    slowed = [row for row in logged.events.to_pylist() if (row["entity"], row["event"]) == ("busy", "slowed")]
    assert {row["host"] for row in slowed} == {"host-1"}
    (ratio,) = {row["throttle_ratio"] for row in logged.migrations.to_pylist() if row["outcome"] == "completed"} - {0.0}
    assert ratio == pytest.approx(0.8)
    # From a fifth on by three tenths; what the dirty log takes besides is less than one.
    tenths = [row["first"] // 100_000 for row in slowed]
    assert [tenth for tenth, _ in groupby(tenths)] == [2, 5, 8]


def test_nothing_of_it_is_in_a_result(chosen: Scenario, logged: Results) -> None:
    bare = run(chosen, layout="inline")
    assert bare.summary == logged.summary
    assert bare.digests == logged.digests


def test_a_log_of_one_vm_and_a_run_made_again_have_its_moves(chosen: Scenario, logged: Results, tmp_path: Path) -> None:
    run(chosen, layout="inline", log="next").save(tmp_path / "one")
    run(chosen, layout="inline").save(tmp_path / "bare")
    logged.save(tmp_path / "all")
    columns = [column.name for column in EVENTS.columns if column.name != "number"]
    found = [entity_trace(tmp_path / name, "next") for name in ("all", "one", "bare")]
    assert [trace.run_again for trace in found] == [False, False, True]
    first, *others = [trace.events.select(columns).to_pylist() for trace in found]
    assert all(other == first for other in others)
    assert "move done" in {row["event"] for row in first}
    # As far as it was asked for, though the run goes on to the end of a bucket.
    part = entity_trace(tmp_path / "bare", "next", to_ns=8 * S).events.select(columns).to_pylist()
    assert part == [row for row in first if row["time_ns"] < 8 * S]


def test_a_trace_has_the_moves_on_tracks_of_their_own(logged: Results, tmp_path: Path) -> None:
    logged.save(tmp_path / "out")
    for vm in ("busy", "next", "late", "sealed"):
        for from_ns in (0, 3 * S):
            check_format(document(entity_trace(tmp_path / "out", vm, from_ns=from_ns)))
    events = document(entity_trace(tmp_path / "out", "next"))
    tracks = {one["tid"]: one["args"]["name"] for one in events if one["name"] == "thread_name"}
    parts = [one["name"] for one in events if one["ph"] == "X" and tracks[one["tid"]] == "migration"]
    phases = [one["phase"] for one in logged.migration_phases.to_pylist() if one["migration"] == 2]
    assert parts == ["in line", *phases[:-1]], "the last begins when the move is over"
    rounds = [one["name"] for one in events if one["ph"] == "X" and tracks[one["tid"]] == "rounds of migration"]
    assert rounds == [f"round {row['round']}" for row in logged.migration_rounds.to_pylist() if row["migration"] == 2]
    # The second order for the busy one, refused while the first is under way, ends no part of that.
    busy = document(entity_trace(tmp_path / "out", "busy"))
    (pre,) = (one for one in busy if one["name"] == "pre")
    assert pre["dur"] > 1e6


def test_the_command_shows_a_move_as_lines(
    logged: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logged.save(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert main(["trace", "out", "--entity", "sealed", "--limit", "0"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " move " in line]
    assert [line.split(None, 3)[3] for line in lines] == [
        "move asked                  to anywhere, migration 3",
        "move begun                  hosts host-1 to host-2, migration 3",
        "move phase                  phase pre, migration 3",
        "move phase                  phase aborted, migration 3",
        "move failed                 outcome refused: NEEDS_MIGRATION_AGENT, migration 3",
    ]
    assert json.loads((tmp_path / "sealed.trace.json").read_text())["traceEvents"]
