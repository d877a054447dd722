"""What happened to one host or VM: from a log and from a run made again, as lines and as a trace for Perfetto."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.bundled_scenarios import load_scenario
from cluster.cli import main
from cluster.entity_trace import EntityTrace, TraceError, entity_trace
from cluster.event_lines import event_lines, seconds
from cluster.inline_layout import InlineLayout
from cluster.layout import StoppedError
from cluster.results import Results, ResultsError
from cluster.scenario import Scenario, ScenarioError
from cluster.simulation import run
from cluster.tables import EVENTS, TABLES
from cluster.trace_events import write_trace_events
from node.host_events import EVENT_KINDS, HostEvent

S = 10**9


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """The quiet fleet, two buckets long, with something to do in the second."""
    quiet = load_scenario("quiet")
    database, batch = quiet.vms
    later = batch.model_copy(update={"arrival_spacing": 30 * S})
    return quiet.model_copy(update={"duration": 90 * S, "vms": (database, later)})


@pytest.fixture(scope="module")
def logged(scenario: Scenario) -> Results:
    return run(scenario, layout="inline", log=True)


@pytest.fixture(scope="module")
def bare(scenario: Scenario) -> Results:
    return run(scenario, layout="inline")


@pytest.fixture(scope="module")
def moved() -> Results:
    """A fleet in which a VM changes hosts three times."""
    return run(load_scenario("drain"), layout="inline", log=True)


def rows(table: pa.Table, event: str) -> list[dict[str, Any]]:
    return [row for row in table.to_pylist() if row["event"] == event]


# The log and the results.


def test_results_are_the_same_with_and_without_a_log(logged: Results, bare: Results) -> None:
    assert bare.events is None
    assert logged.summary == bare.summary


def test_a_log_has_as_many_records_of_each_bucket_as_the_digests_say(logged: Results) -> None:
    assert logged.events is not None
    in_digests = {kind.word for code, kind in EVENT_KINDS.items() if code < HostEvent.PSP_COMMAND}
    counted: dict[tuple[str, int], int] = defaultdict(int)
    for row in logged.events.to_pylist():
        if row["event"] in in_digests:
            counted[row["entity"], row["time_ns"] // (60 * S)] += 1
    assert counted == {(row["entity"], row["bucket"]): row["records"] for row in logged.digests.to_pylist()}


def test_a_log_agrees_with_the_tables(logged: Results) -> None:
    assert logged.events is not None
    phases = rows(logged.events, "phase")
    for row in logged.phases.to_pylist():
        own = [one for one in phases if (one["entity"], one["text"]) == (row["vm"], row["demand"])]
        assert len(own) == row["phases"]
    for host in logged.hosts.to_pylist():
        commands = [one for one in rows(logged.events, "psp command") if one["host"] == host["host"]]
        assert sum(one["took_ns"] for one in commands) == host["psp_busy_ns"]
        assert sum(one["second"] for one in commands) == host["psp_wait_ns"]
    for vm in logged.vms.to_pylist():
        ordered, entered = (
            next(one for one in rows(logged.events, event) if one["vm"] == vm["vm"]) for event in ("ordered", "entered")
        )
        assert entered["time_ns"] - ordered["time_ns"] == vm["launch_ns"]
        assert entered["text"] == (vm["launch_digest"] or "")


def test_a_log_of_one_vm_holds_its_records_and_no_other(logged: Results, scenario: Scenario) -> None:
    few = run(scenario, layout="inline", log="database").events
    assert few is not None
    assert {row["vm"] or row["entity"] for row in few.to_pylist()} == {"database"}
    assert logged.events is not None
    whole = [row for row in logged.events.to_pylist() if "database" in (row["vm"], row["entity"])]
    number = EVENTS.columns.index(next(column for column in EVENTS.columns if column.name == "number"))
    assert few.remove_column(number).to_pylist() == [
        {name: value for name, value in row.items() if name != "number"} for row in whole
    ]


def test_a_log_survives_a_folder_and_goes_with_it(logged: Results, bare: Results, tmp_path: Path) -> None:
    logged.save(tmp_path / "out")
    assert Results.load(tmp_path / "out").events == logged.events
    assert Results.load(tmp_path / "out", events=False).events is None
    bare.save(tmp_path / "out")
    assert Results.load(tmp_path / "out").events is None


def test_the_log_of_another_run_is_refused(logged: Results, tmp_path: Path) -> None:
    logged.save(tmp_path / "out")
    replace(logged, tables={**logged.tables, "hosts": TABLES["hosts"].build([])}).save(tmp_path / "other")
    (tmp_path / "other/events.parquet").replace(tmp_path / "out/events.parquet")
    with pytest.raises(ResultsError, match=r"events.parquet: digest: expected .*, that of the results, got"):
        Results.load(tmp_path / "out")


@pytest.mark.parametrize("layout", ["inline", "packed"])
def test_a_log_of_somebody_unknown_is_refused_before_anything_starts(scenario: Scenario, layout: str) -> None:
    with pytest.raises(ScenarioError, match="log: expected") as caught:
        run(scenario, layout=layout, log=["databse"])
    assert 'a host or VM of the run, such as database, got "databse"' in str(caught.value)


# The trace of one entity.


@pytest.fixture(scope="module")
def folders(logged: Results, bare: Results, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    here = tmp_path_factory.mktemp("runs")
    logged.save(here / "logged")
    bare.save(here / "bare")
    return {name: here / name for name in ("logged", "bare")}


@pytest.mark.parametrize("entity", ["host-1", "database"])
def test_a_run_made_again_shows_what_its_log_would_have_shown(folders: dict[str, Path], entity: str) -> None:
    from_log, again = (entity_trace(folders[name], entity) for name in ("logged", "bare"))
    assert (from_log.run_again, again.run_again) == (False, True)
    assert again.parted is None
    columns = [column.name for column in EVENTS.columns if column.name != "number"]
    assert again.events.select(columns).to_pylist() == from_log.events.select(columns).to_pylist()
    assert again.events.num_rows > 0


def test_a_trace_has_what_lies_between_its_ends(folders: dict[str, Path]) -> None:
    whole = entity_trace(folders["logged"], "database").events["time_ns"].to_pylist()
    for name in ("logged", "bare"):
        part = entity_trace(folders[name], "database", from_ns=S // 2, to_ns=30 * S).events["time_ns"].to_pylist()
        assert part == [time_ns for time_ns in whole if S // 2 <= time_ns < 30 * S]
        assert 0 < len(part) < len(whole)


def test_a_run_is_made_again_only_as_far_as_it_is_asked_for(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[object] = []
    from cluster import entity_trace as module

    class Watched(module.Session):
        def run(self, *arguments: Any) -> Results:
            ends.append(arguments[-1])
            return super().run(*arguments)

    monkeypatch.setattr(module, "Session", Watched)
    entity_trace(folders["bare"], "database", to_ns=5 * S)
    assert ends == [60 * S], "to the end of the bucket, whose digest is compared"


def test_another_run_in_the_place_of_the_saved_one_is_named(bare: Results, tmp_path: Path) -> None:
    rows = bare.digests.to_pylist()
    late = next(row["entity"] for row in rows if row["bucket"] == 1)
    changed = [{**row, "digest": "00"} if (row["entity"], row["bucket"]) == (late, 1) else row for row in rows]
    tables = {**bare.tables, "digests": TABLES["digests"].build(changed)}
    replace(bare, tables=tables, run={**bare.run, "numpy": "0.1"}).save(tmp_path / "a")
    trace = entity_trace(tmp_path / "a", "database")
    assert trace.parted is not None
    assert (trace.parted.bucket, trace.parted.entities, trace.other_versions) == (1, (late,), ("numpy",))
    # Only what is asked for is made again and compared.
    assert entity_trace(tmp_path / "a", "database", to_ns=60 * S).parted is None


def test_a_run_that_was_stopped_early_is_made_again_as_far_as_it_went(scenario: Scenario, tmp_path: Path) -> None:
    calls = iter([None] * 3)
    partial = run(scenario, layout="inline", should_stop=lambda: next(calls, "enough"))
    assert partial.partial == "enough"
    partial.save(tmp_path / "out")
    trace = entity_trace(tmp_path / "out", "host-1")
    reached = partial.figures["virtual_s"]
    assert isinstance(reached, float)
    assert (trace.to_ns, trace.parted) == (round(reached * 1e9), None)


def test_a_run_that_lost_a_host_is_the_same_run_as_far_as_there_is_anything_of_it(
    moved: Results, tmp_path: Path
) -> None:
    first, *_ = moved.hosts["host"].to_pylist()
    gone = {row["vm"] for row in moved.migrations.to_pylist()}  # What they did at first, on the host that was lost.
    chains = [row for row in moved.digests.to_pylist() if row["entity"] not in gone or row["bucket"]]
    kept = [row for row in chains if row["entity"] != first]
    hosts = [row for row in moved.hosts.to_pylist() if row["host"] != first]
    tables = {**moved.tables, "hosts": TABLES["hosts"].build(hosts), "digests": TABLES["digests"].build(kept)}
    run_as = {key: value for key, value in moved.run.items() if key != "log"}
    replace(moved, tables=tables, partial="lost", run=run_as, events=None).save(tmp_path / "a")
    assert entity_trace(tmp_path / "a", first, to_ns=60 * S).parted is None


def test_a_time_that_the_run_does_not_have_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(TraceError, match=r"from: expected a time up to the end of the run at 1.5 min, got 2 min"):
        entity_trace(folders["logged"], "database", from_ns=120 * S, to_ns=5 * S)


@pytest.mark.parametrize("to_ns", [None, 0, S])
@pytest.mark.parametrize("entity", ["host-1", "database"])
def test_of_a_run_that_was_ended_before_anything_began_there_is_nothing_to_tell(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    entity: str, to_ns: int | None,
) -> None:  # fmt: skip
    def start(*_: object) -> None:
        raise StoppedError("stopped with Ctrl-C")

    with monkeypatch.context() as patched:
        patched.setattr(InlineLayout, "start", start)
        nothing = run(scenario, layout="inline")
    assert (nothing.figures["virtual_s"], nothing.partial) == (0.0, "stopped with Ctrl-C")
    nothing.save(tmp_path / "out")
    trace = entity_trace(tmp_path / "out", entity, to_ns=to_ns)
    assert (trace.from_ns, trace.to_ns, trace.events.num_rows, trace.parted) == (0, 0, 0, None)
    file = tmp_path / "trace.json"
    assert main(["trace", str(tmp_path / "out"), "--entity", entity, "--perfetto", str(file)]) == 0
    assert f"{entity}, 0.000000000 s to 0.000000000 s, 0 records, run again\n" in capsys.readouterr().out
    assert not [event for event in json.loads(file.read_text())["traceEvents"] if event["ph"] != "M"]


def test_what_is_of_the_very_end_of_a_run_can_be_asked_for(folders: dict[str, Path]) -> None:
    whole = entity_trace(folders["logged"], "database").events.to_pylist()
    last = entity_trace(folders["logged"], "database", from_ns=90 * S).events.to_pylist()
    assert last == [row for row in whole if row["time_ns"] == 90 * S] != []


# Lines.


def test_a_line_names_time_place_and_figures() -> None:
    row = {"entity": "vm", "host": "h", "number": 0, "vm": None, "vcpu": None, "took_ns": None, "text": None}
    made = [
        {**row, "entity": "h", "vm": "vm", "event": "entered", "time_ns": 5, "first": 48, "second": 0, "text": "ab12"},
        {**row, "event": "phase", "time_ns": S, "first": 1, "second": 12_000, "vcpu": 3, "took_ns": 99, "text": "walk"},
        {**row, "event": "stopped", "time_ns": 61 * S, "first": 254, "second": 0},
    ]
    assert list(event_lines(EVENTS.build(made).sort_by("time_ns"), "vm")) == [
        "   0.000000005 s  h                entered                     launch digest ab12",
        "   1.000000000 s  vCPU 3           phase        took 99 ns     demand walk, instructions 12,000",
        "  61.000000000 s  h                stopped                     shutdown code 254",
    ]


def test_times_are_exact_to_the_nanosecond() -> None:
    assert seconds(3_600_000_000_001) == "3600.000000001 s"


# The Trace Event Format.


def document(trace: EntityTrace) -> list[dict[str, Any]]:
    stream = io.StringIO()
    count = write_trace_events(stream, trace)
    whole = json.loads(stream.getvalue())
    assert set(whole) == {"displayTimeUnit", "traceEvents"}
    assert whole["displayTimeUnit"] == "ns"
    assert len(whole["traceEvents"]) == count
    return list(whole["traceEvents"])


def check_format(events: list[dict[str, Any]]) -> None:
    """The rules of the format for the phases used, and Perfetto's: slices of one track nest."""
    slices: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    named = {(one["pid"], one["tid"]) for one in events if one["ph"] == "M" and one["name"] == "thread_name"}
    assert sum(one["ph"] == "M" and one["name"] == "process_name" for one in events) == 1
    for one in events:
        assert isinstance(one["name"], str)
        assert isinstance(one["pid"], int)
        assert isinstance(one["tid"], int)
        assert isinstance(one["args"], dict)
        if one["ph"] == "M":
            assert set(one["args"]) <= {"name", "sort_index"}
            continue
        assert isinstance(one["ts"], float)
        assert one["ts"] >= 0
        assert one["cat"]
        assert (one["pid"], one["tid"]) in named
        if one["ph"] == "i":
            assert one["s"] in {"g", "p", "t"}
        else:
            assert one["ph"] == "X"
            assert one["dur"] >= 0
            # Back to nanoseconds, as Perfetto has them, so that sums are exact.
            begin = round(one["ts"] * 1000)
            slices[one["pid"], one["tid"]].append((begin, -round(one["dur"] * 1000)))
    for of_track in slices.values():
        open_ends: list[float] = []
        for begin, negative in sorted(of_track):
            end = begin - negative
            while open_ends and open_ends[-1] <= begin:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1], f"a slice from {begin} to {end} ns crosses another's end"
            open_ends.append(end)


@pytest.mark.parametrize("entity", ["host-1", "host-2", "database-1", "vault-snp"])
def test_a_trace_keeps_the_rules_of_the_format(moved: Results, tmp_path: Path, entity: str) -> None:
    moved.save(tmp_path / "out")
    for from_ns in (0, 30 * S):
        check_format(document(entity_trace(tmp_path / "out", entity, from_ns=from_ns)))


@pytest.mark.parametrize("entity", ["host-1", "database"])
def test_launches_too(folders: dict[str, Path], entity: str) -> None:
    events = document(entity_trace(folders["logged"], entity))
    check_format(events)
    assert {one["name"] for one in events if one.get("cat") == "stay"} == {"launching", "running"}


def test_slices_last_as_long_as_the_tables_say(folders: dict[str, Path], logged: Results) -> None:
    events = document(entity_trace(folders["logged"], "database"))
    vm = next(row for row in logged.vms.to_pylist() if row["vm"] == "database")
    launching = next(one for one in events if one["name"] == "launching")
    assert round(launching["dur"] * 1000) == vm["launch_ns"]
    psp = [one for one in events if one.get("cat") == "psp"]
    waited = sum(round(one["dur"] * 1000) for one in psp if one["name"] == "waiting")
    served = sum(round(one["dur"] * 1000) for one in psp if one["name"] != "waiting")
    assert (waited, served) == (vm["psp_wait_ns"], vm["psp_service_ns"])
    busy = {"phase", "phase cut", "batch", "exits"}
    active = sum(round(one["dur"] * 1000) for one in events if one.get("cat") in busy)
    assert active == vm["active_ns"]


def test_a_vm_that_moved_has_a_track_for_each_host_it_was_on(moved: Results, tmp_path: Path) -> None:
    moved.save(tmp_path / "out")
    events = document(entity_trace(tmp_path / "out", "database-1"))
    tracks = {one["tid"]: one["args"]["name"] for one in events if one["name"] == "thread_name"}
    stays = [tracks[one["tid"]] for one in events if one["name"] == "running"]
    assert stays == ["on host-1", "on host-2", "on host-1", "on host-2"]
    moves = {"migration", "rounds of migration"}
    assert set(tracks.values()) == {"on host-1", "on host-2", "vCPU 0", "vCPU 1", *moves}


# The command.


def test_the_command_prints_the_log_and_writes_a_trace(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = str(folders["logged"])
    assert main(["trace", folder, "--entity", "database", "--to", "2 s", "--limit", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("database, 0.000000000 s to 2.000000000 s, ")
    assert "ordered" in lines[1]
    assert lines[2].startswith("... and ")
    assert [entry.name for entry in tmp_path.iterdir()] == ["database.trace.json"]
    check_format(json.loads((tmp_path / "database.trace.json").read_text())["traceEvents"])
    assert Results.load(folder).partial is None, "the results are as they were"


def test_the_command_says_where_a_run_made_again_is_another_one(
    bare: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    changed = [{**row, "records": 0} for row in bare.digests.to_pylist()]
    replace(bare, tables={**bare.tables, "digests": TABLES["digests"].build(changed)}).save(tmp_path / "a")
    assert main(["trace", "a", "--entity", "database", "--quiet", "--to", "1 s"]) == 1
    assert capsys.readouterr() == ("", "sevfleet: a: run again, this is another run from 0 ns on, first in batch-1\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--entity", "host-3"], 'entity: expected a host or VM of the run, such as host-2, host-1, got "host-3"'),
        (["--entity", "host-1", "--from", "soon"], "--from: expected a time such as"),
        (["--entity", "host-1", "--from", "5 s", "--to", "5 s"], "the trace's beginning at 5 s, got 5 s"),
        (["--entity", "host-1", "--to", "0 s"], "to: expected a time after the trace's beginning at 0 ns, got 0 ns"),
        (["--entity", "host-1", "--limit", "-1"], "--limit: expected a whole number from 0"),
        (["--entity", "host-1", "--perfetto", "no/where.json"], "--perfetto: expected a file in a folder that exists"),
        ([], "the following arguments are required: --entity"),
    ],
)  # fmt: skip
def test_what_cannot_be_traced_is_the_users_error(
    folders: dict[str, Path],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["trace", str(folders["logged"]), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_trace_is_not_written_among_results(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folders["logged"])
    assert main(["trace", ".", "--entity", "host-1"]) == 2
    assert "--perfetto: expected a file outside of the results folder ." in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--log"], ["--log-entity", "database"]])
def test_a_log_needs_a_folder_to_be_kept_in(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "quiet", *option]) == 2
    assert capsys.readouterr().err == "sevfleet: --log: expected --out DIR beside it, where the log is kept\n"
