"""Sweeps: the table follows from the runs alone, however they were made, interrupted and gone on with."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster import Scenario, run, sweep
from cluster.errors import ToolError, UserError
from cluster.scenario import TraceMix
from cluster.sweeps.figures import chosen_figures
from cluster.sweeps.folder import SweepFolder
from cluster.sweeps.parameter_sweep import SweepResults
from cluster.sweeps.plan import Axis, SweepPlan
from cluster.sweeps.progress import Pace, SweepProgress, described
from cluster.sweeps.run import RunOrder, RunOutcome, outcome_of
from cluster.sweeps.tables import runs_schema, shown_value, sweep_tables

TABLES = ("sweep", "runs", "points")
GRID = {"costs.core.vmgexit_ns": [2000, 4000]}
SEEDS = (1, 2, 3)


@pytest.fixture(scope="session")
def swept(tiny_scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole sweep, made in this process; two points with three seeds each."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    sweep(tiny_scenario, seeds=SEEDS, grid=GRID, out=out, workers=0)
    return out


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / f"{name}.parquet").read_bytes() for name in TABLES}


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = pq.read_table(folder / f"{name}.parquet").to_pylist()
    return table


def test_each_run_is_the_run_that_sevfleet_run_makes(swept: Path, tiny_scenario: Scenario) -> None:
    second = next(row for row in rows(swept, "runs") if row["point"] == 1 and row["seed"] == 2)
    assert (second["costs.core.vmgexit_ns"], second["state"], second["reason"]) == (4000, "done", None)
    alone = tiny_scenario.model_copy(update={"costs": {"core.vmgexit_ns": 4000.0}})
    assert second["digest"] == run(alone, layout="inline", seed=2).digest


def test_the_table_is_the_statistics_of_the_points(swept: Path) -> None:
    points = rows(swept, "points")
    for row in rows(swept, "sweep"):
        key = {name: row[name] for name in ("point", "figure", "of")}
        values = [point["value"] for point in points if key.items() <= point.items()]
        assert (row["runs"], row["n"], row["min"], row["max"]) == (3, len(values), min(values), max(values))
        assert row["mean"] == pytest.approx(fmean(values))
        assert row["half_width"] == pytest.approx(4.303 * stdev(values) / math.sqrt(3), rel=2e-4)
    spread = {row["figure"] for row in rows(swept, "sweep") if row["half_width"]}
    assert "stretched" in spread, "the seeds tell in no figure, so nothing was shown"


def test_a_dearer_exit_stretches_the_protected_guest_and_not_its_plain_neighbour(swept: Path) -> None:
    means = {(row["point"], row["of"]): row["mean"] for row in rows(swept, "sweep") if row["figure"] == "stretched"}
    assert means[1, "key-value-store SEV_SNP"] > means[0, "key-value-store SEV_SNP"] * 1.001
    assert means[1, "random-access PLAIN"] == pytest.approx(means[0, "random-access PLAIN"], rel=1e-4)


@pytest.mark.ray
def test_the_tables_are_the_same_bytes_on_workers(swept: Path, tiny_scenario: Scenario, tmp_path: Path) -> None:
    sweep(tiny_scenario, seeds=SEEDS, grid=GRID, out=tmp_path / "out", workers=2)
    assert bytes_of(tmp_path / "out") == bytes_of(swept)


def stopped_after(count: int, out: Path, scenario: Scenario) -> SweepResults:
    """A sweep that somebody ends when so many runs are kept."""

    def stop() -> str | None:
        return "stopped" if len(list(out.glob("runs/*.json"))) >= count else None

    return sweep(scenario, seeds=SEEDS, grid=GRID, out=out, workers=0, should_stop=stop)


def test_an_interrupted_sweep_goes_on_where_it_was_and_ends_in_the_same_bytes(
    swept: Path, tiny_scenario: Scenario, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    partial = stopped_after(2, out, tiny_scenario)
    assert (partial.partial, partial.runs.num_rows) == ("stopped", 2)
    assert not list(out.glob("*.parquet"))
    first = {file: file.stat().st_mtime_ns for file in out.glob("runs/*.json")}
    glances: list[SweepProgress] = []
    whole = sweep(tiny_scenario, seeds=SEEDS, grid=GRID, out=out, workers=0, on_progress=glances.append)
    assert whole.partial is None
    assert (glances[0].runs, glances[0].done, glances[0].kept) == (6, 2, 2)
    assert first.items() <= {file: file.stat().st_mtime_ns for file in out.glob("runs/*.json")}.items()
    assert bytes_of(out) == bytes_of(swept)


def forbidden(*_: object) -> RunOutcome:
    raise AssertionError("everything is there already")


def test_a_finished_sweep_is_read_and_not_run(
    swept: Path, tiny_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bytes_of(swept)
    monkeypatch.setattr("cluster.sweeps.workers.outcome_of", forbidden)
    monkeypatch.setattr("cluster.sweeps.workers.RayCluster", forbidden)
    sweep(tiny_scenario, seeds=SEEDS, grid=GRID, out=swept)
    assert bytes_of(swept) == before
    # Other figures of the same runs are there too.
    work = sweep(tiny_scenario, seeds=SEEDS, grid=GRID, out=swept, figures=["work"])
    assert set(work.table["figure"].to_pylist()) == {"work"}
    sweep(tiny_scenario, seeds=SEEDS, grid=GRID, out=swept)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda _: "",
        lambda _: "[]",
        lambda text: text.replace('"digest": "', '"digest": "f'),
        lambda text: text.replace("stretched", "shrunken", 1),
    ],
)
def test_a_damaged_file_of_a_run_is_made_again(
    swept: Path, tiny_scenario: Scenario, damage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bytes_of(swept)
    file = min(swept.glob("runs/*.json"))
    text = file.read_text()
    file.write_text(damage(text))
    made: list[str] = []

    def counted(order: RunOrder, *rest: Any) -> RunOutcome | None:
        made.append(order.label)
        return outcome_of(order, *rest)

    monkeypatch.setattr("cluster.sweeps.workers.outcome_of", counted)
    sweep(tiny_scenario, seeds=SEEDS, grid=GRID, out=swept, workers=0)
    assert len(made) == 1
    assert file.read_text() == text
    assert bytes_of(swept) == before


def test_more_seeds_and_values_run_only_what_is_new(
    swept: Path, tiny_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    sweep(tiny_scenario, seeds=[1], grid={"costs.core.vmgexit_ns": [4000]}, out=out)
    sweep(tiny_scenario, seeds=SEEDS, grid=GRID, out=out, workers=0)
    assert len(list(out.glob("runs/*.json"))) == 6
    assert bytes_of(out) == bytes_of(swept)


@pytest.mark.parametrize(
    ("changes", "grid", "got"),
    [
        ({"name": "other"}, GRID, "one of a sweep of another scenario: tiny, now other"),
        ({"duration": 3 * 10**9}, GRID, "one of a sweep of another state of the scenario: "),
        (
            {}, {"vms.batch.vcpus": [1]},
            "one of a sweep over other settings: costs.core.vmgexit_ns, now vms.batch.vcpus",
        ),
    ],
)  # fmt: skip
def test_a_folder_of_another_sweep_is_refused_and_left_alone(
    swept: Path, tiny_scenario: Scenario, changes: dict[str, object], grid: Any, got: str
) -> None:
    before = {file: file.stat().st_mtime_ns for file in swept.rglob("*")}
    with pytest.raises(UserError) as caught:
        sweep(tiny_scenario.model_copy(update=changes), seeds=1, grid=grid, out=swept, workers=0)
    assert str(caught.value).startswith(f"{swept}: expected a new or empty folder, or one of this sweep, got {got}")
    assert {file: file.stat().st_mtime_ns for file in swept.rglob("*")} == before


def test_a_sweep_made_with_other_versions_is_another_one(
    swept: Path, tiny_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.sweeps.folder.versions", lambda: {"sevfleet": "99"})
    with pytest.raises(UserError, match="one of a sweep made with other versions: "):
        sweep(tiny_scenario, seeds=SEEDS, grid=GRID, out=swept, workers=0)


def test_a_sweep_made_with_other_code_of_the_same_version_is_another_one(
    swept: Path, tiny_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.sweeps.folder.code_hash", lambda: "0" * 64)
    with pytest.raises(UserError, match=r"one of a sweep made with other versions: code [0-9a-f]{16}, now 0{16}$"):
        sweep(tiny_scenario, seeds=SEEDS, grid=GRID, out=swept, workers=0)


def test_a_folder_of_somebody_else_is_refused(tiny_scenario: Scenario, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r'got one that holds "thesis.tex"$'):
        sweep(tiny_scenario, seeds=1, out=tmp_path)
    with pytest.raises(UserError, match=r"expected a folder for a sweep, got a file$"):
        sweep(tiny_scenario, seeds=1, out=tmp_path / "thesis.tex")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_sweeps_at_once_do_not_share_a_folder(swept: Path, tiny_scenario: Scenario) -> None:
    plan = SweepPlan.of(tiny_scenario, SEEDS, GRID)
    with (
        SweepFolder.opened(swept, plan, pairs=False),
        pytest.raises(UserError, match=r"got one in use by a sweep$"),
        SweepFolder.opened(swept, plan, pairs=False),
    ):
        pass


def test_what_a_killed_sweep_left_behind_is_taken_away(swept: Path, tiny_scenario: Scenario) -> None:
    stray = swept / "runs" / "0123.json.partial"
    stray.write_text("{")
    with SweepFolder.opened(swept, SweepPlan.of(tiny_scenario, SEEDS, GRID), pairs=False):
        assert not stray.exists()


def test_a_full_disk_is_one_line_and_the_runs_before_it_are_kept(
    tiny_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def full(file: Path, text: str, *rest: Any) -> int:
        if file.parent.name == "runs" and list(file.parent.glob("*.json")):
            raise OSError(28, "No space left on device")
        return write(file, text, *rest)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ToolError, match=r"\.json: could not be written: No space left on device$"):
        sweep(tiny_scenario, seeds=3, out=tmp_path / "out", workers=0)
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 1


def test_a_run_that_fails_is_a_row_with_its_reason_and_is_tried_again(
    tiny_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(order: RunOrder, *rest: Any) -> RunOutcome | None:
        return outcome_of(RunOrder(order.label, "schema = 2" if order.seed == 2 else order.text, order.seed, False))

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("cluster.sweeps.workers.outcome_of", failing)
        results = sweep(tiny_scenario, seeds=SEEDS, out=out, workers=0)
    (reason,) = results.failures.values()
    assert reason.startswith("scenario: schema: expected schema version 1")
    states = [(row["seed"], row["state"], row["reason"], row["digest"] is None) for row in rows(out, "runs")]
    assert states == [(1, "done", None, False), (2, "failed", reason, True), (3, "done", None, False)]
    assert {(row["runs"], row["n"]) for row in rows(out, "sweep")} == {(3, 2)}
    (why,) = out.glob("runs/*.failed.txt")
    assert why.read_text().startswith(f"seed=2\n{reason}\n")
    assert not sweep(tiny_scenario, seeds=SEEDS, out=out, workers=0).failures
    assert not list(out.glob("runs/*.failed.txt"))


def test_a_fault_of_our_own_in_a_run_is_a_reason_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("somebody\ndivided")

    monkeypatch.setattr("cluster.sweeps.run.Scenario.parse", broken)
    outcome = outcome_of(RunOrder("x", "", 1, pairs=False))
    assert outcome is not None
    assert outcome.reason == "internal error: ZeroDivisionError: somebody divided"
    assert "in broken" in outcome.trace


def test_a_point_without_any_result_has_no_mean_in_the_table(tiny_scenario: Scenario) -> None:
    plan = SweepPlan.of(tiny_scenario, 2, {"vms.batch.vcpus": [1, 2], "vms.batch.generation": ["PLAIN"]})
    good, bad = RunOutcome("d", (("work", "fleet", 7.0),)), RunOutcome(reason="no")  # type: ignore[arg-type]
    tables = sweep_tables(plan, {run: bad if run.point.number else good for run in plan.runs}, chosen_figures(["work"]))
    kept = [tuple(row.values()) for row in tables["sweep"].to_pylist()]
    assert kept == [
        (0, 1, "PLAIN", "work", "fleet", "1", 2, 2, 7.0, 0.0, 7.0, 7.0),
        (1, 2, "PLAIN", "work", "fleet", "1", 2, 0, None, None, None, None),
    ]


@pytest.mark.parametrize(
    ("values", "kind", "column"),
    [
        ([1, 2], "int64", [1, 2]),
        ([1, 2.5], "double", [1.0, 2.5]),
        (["1 GiB", "2 GiB"], "string", ["1 GiB", "2 GiB"]),
        ([1, True], "string", ["1", "true"]),
        ([1, 1 << 70], "string", ["1", "1180591620717411303424"]),
    ],
)
def test_a_settings_column_has_the_type_of_its_values(values: list[Any], kind: str, column: list[Any]) -> None:
    axis = Axis("x.y", tuple(values), ())
    schema = runs_schema([axis])
    assert str(schema.arrow.field("x.y").type) == kind
    assert [shown_value(axis, value) for value in values] == column


def test_a_run_is_known_by_the_files_its_scenario_reads_too(tiny_scenario: Scenario, tmp_path: Path) -> None:
    rows, image, card = (tmp_path / name for name in ("mine.csv", "vm.img", "card.img"))
    read = {
        tmp_path / "tasks.csv": "tasks", tmp_path / "fragments.csv": "fragments",
        rows: "name,value,unit,products,source,sweep_low,sweep_high\ncore.exit_ns,1500,ns,Turin,mine,,\n",
        image: "a" * (2 << 20), card: "b" * (2 << 20),
    }  # fmt: skip
    for file, text in read.items():
        file.write_text(text)
    values = tiny_scenario.model_dump(mode="json", by_alias=True, exclude_none=True)
    values["hosts"][0] |= {"product": "Turin", "cards": [{"kind": "nvme", "disk": str(card)}]}
    values["vms"][0]["disk"] = str(image)
    values["cost_rows"] = str(rows)
    trace = TraceMix.model_validate({"source": str(tmp_path), "vms": 1, "generations": {"PLAIN": 1}})
    plan = SweepPlan.of(Scenario.parse(values).model_copy(update={"trace": trace}), 1)

    def key() -> str:
        return SweepFolder(tmp_path, plan, pairs=False).key(plan.runs[0])

    whole = key()
    assert key() == whole
    for file, text in read.items():
        file.write_text(text.replace("1500", "2500") if file == rows else text[:-1] + "c")
        assert key() != whole, file.name
        file.write_text(text)
        assert key() == whole


def test_slowdown_is_paired_for_whoever_asks_for_it(tiny_scenario: Scenario) -> None:
    results = sweep(tiny_scenario, seeds=1, figures=["slowdown"], workers=0)
    (row,) = results.table.to_pylist()
    assert row["of"] == "key-value-store SEV_SNP"
    assert row["mean"] > 1


def test_progress_is_said_in_words() -> None:
    assert described(SweepProgress(16, 4, kept=2, failed=1, under_way=2, left_s=75.0)) == (
        "4 of 16 runs done, 2 of them before, 1 failed, 2 under way, about 1.25 min left"
    )


@pytest.mark.ray
def test_ctrl_c_keeps_what_is_done_and_the_same_command_ends_in_the_same_bytes(
    swept: Path, tiny_scenario: Scenario, tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text(tiny_scenario.to_toml())
    command = [
        sys.executable, "-m", "cluster.cli", "sweep", "tiny.toml", "--seeds", "1..3", "--set",
        "costs.core.vmgexit_ns=2000,4000", "--out", "out",
    ]  # fmt: skip
    project = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    process = subprocess.Popen(
        [*command, "--workers", "1"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    with process:
        while process.poll() is None and not list(tmp_path.glob("out/runs/*.json")):
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everybody
        _, errors = process.communicate()
    done = len(list(tmp_path.glob("out/runs/*.json")))
    assert process.returncode == 130
    assert errors.splitlines()[-1] == (
        f"sevfleet: stopped with Ctrl-C, {done} of 6 runs are done (kept in out; the same command goes on from there)"
    )
    again = subprocess.run(
        [*command, "--workers", "0", "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert bytes_of(tmp_path / "out") == bytes_of(swept)
    assert [json.loads(line) for line in again.stdout.splitlines()] == rows(swept, "sweep")


def test_what_is_left_is_guessed_from_the_runs_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("cluster.sweeps.progress.time.monotonic", lambda: now[0])
    glances: list[SweepProgress] = []
    pace = Pace(runs=8, kept=2, tell=glances.append)
    pace.under_way(2)
    now[0] = 104.0
    pace.finished(failed=False)
    pace.finished(failed=True)
    pace.under_way(2)
    now[0] = 104.5
    pace.under_way(2)  # told half a second ago
    now[0] = 107.0
    pace.under_way(2)
    # Two of six took 4 s: the other four will take 8.
    assert [(one.done, one.failed, one.left_s) for one in glances] == [(2, 0, None), (4, 1, 8.0), (4, 1, 5.0)]


def test_what_happened_is_told_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("cluster.sweeps.progress.time.monotonic", lambda: now[0])
    told: list[str] = []
    pace = Pace(runs=8, kept=0, tell=lambda glance: told.append(described(glance)))
    pace.under_way(0)
    pace.happened("Ray's process raylet ended unexpectedly; another Ray was started")
    for now[0] in (101.0, 103.0, 104.0):
        pace.under_way(1)
    news = "; Ray's process raylet ended unexpectedly; another Ray was started"
    assert told == ["0 of 8 runs done", *(f"0 of 8 runs done, 1 under way{text}" for text in (news, news, ""))]
