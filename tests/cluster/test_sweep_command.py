"""``sevfleet sweep`` as it is typed: what it shows, keeps and answers."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import main
from cluster.scenario import Scenario
from cluster.sweeps.run import RunOrder, RunOutcome, outcome_of


@pytest.fixture
def tiny(tiny_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(tiny_scenario.to_toml())
    return "tiny.toml"


def test_a_sweep_shows_means_with_intervals_and_how_far_it_is(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "--seeds", "1..3", tiny, "--set", "vms.batch.vcpus=1,2", "--out", "out", "--workers", "0"]
    assert main(words) == 0
    captured = capsys.readouterr()
    heading = next(line for line in captured.out.splitlines() if line.startswith("figure"))
    assert heading.split() == ["figure", "of", "vms.batch.vcpus", "mean", "±", "least", "most", "n"]
    rows = [line for line in captured.out.splitlines() if line.startswith("stretched")]
    assert [row.split()[1:4] for row in rows] == [["key-value-store", "SEV_SNP", "1"], ["random-access", "PLAIN", "1"]]
    assert captured.out.endswith("tables in out\n")
    assert "sweep tiny: 0 of 6 runs done, 1 under way\n" in captured.err


def test_json_has_a_row_a_line_and_quiet_is_quiet(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", tiny, "--seeds", "1", "--json", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["sweep", tiny, "--seeds", "1", "--json", "--figure", "work"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["figure"], row["n"], row["half_width"]) for row in rows] == [("work", 1, None)] * 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "the following arguments are required: SCENARIO"),
        (["rack"], 'scenario "rack": expected a .toml file or one of demo'),
        (["quiet", "--set", "a"], '--set expected PATH=VALUES, such as vms.database.vcpus=1,2,4, got "a"'),
        (["quiet", "--set", "vms.bach.vcpus=1"], '--set vms.bach.vcpus: expected "batch", got "bach"'),
        (["quiet", "--set", "vms.batch.vcpu=1"], '--set vms.batch.vcpu: expected "vcpus", got "vcpu"'),
        (
            ["quiet", "--set", "vms.batch.vcpus=1,x"],
            '--set vms.batch.vcpus=x: vms[1].vcpus of "batch": expected a whole number, got "x"',
        ),
        (
            ["quiet", "--set", "vms.batch.memory=1"],
            '--set vms.batch.memory=1: vms[1].memory of "batch": expected a size such as "4 GiB"',
        ),
        (["quiet", "--set", "costs.core.exit=1"], '--set costs.core.exit: expected "core.exit_ns", got "core.exit"'),
        (["quiet", "--set", "vms.0.vcpus=1", "--set", "vms.0.vcpus=2"], "--set vms.0.vcpus: expected once, with all"),
        (["quiet", "--set", "seed=1,2"], "--set seed: expected among the seeds of the sweep, got a setting"),
        (["quiet", "--set", "costs.core.exit_ns=1..20000"], "--set costs.core.exit_ns: expected a range of at most"),
        (
            ["quiet", "--set", "costs.core.exit_ns=1..200", "--set", "costs.core.vmgexit_ns=1..200"],
            "--set the grid: expected at most 10,000 combinations of values, got 40,000",
        ),
        (["quiet", "--seeds", "none"], "--seeds: expected how many seeds, or which: 8, or 1..20, or 3,5,8, got"),
        (["quiet", "--seeds", "0"], "--seeds: expected from 1 to 100,000 of them, got 0"),
        (["quiet", "--seeds", "1,1"], "--seeds: expected each once, got 1 twice"),
        (["quiet", "--workers", "-1"], "--workers: expected a whole number from 0 to 4096"),
        (["quiet", "--figure", "lanch_ns"], '--figure: expected "launch_ns", got "lanch_ns"'),
    ],
)
def test_what_cannot_be_is_one_line_exit_code_2_and_nothing_is_written(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *words, "--out", "out"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (error,) = captured.err.splitlines()
    assert error.startswith(f"sevfleet: {line}")
    assert not list(tmp_path.iterdir())


def test_runs_without_a_result_are_shown_and_end_in_exit_code_1(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(order: RunOrder, *rest: Any) -> RunOutcome | None:
        return RunOutcome(reason="out of luck") if order.seed == 2 else outcome_of(order, *rest)

    monkeypatch.setattr("cluster.sweeps.workers.outcome_of", failing)
    assert main(["sweep", tiny, "--seeds", "3", "--workers", "0"]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "sevfleet: 1 of 3 runs have no result, first seed=2: out of luck"
    assert "Runs without a result: 1\n" in captured.out
    assert "seed=2  out of luck" in captured.out


def test_a_sweep_without_a_folder_says_that_nothing_was_kept(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(order: RunOrder, *rest: Any) -> RunOutcome | None:
        if order.seed == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return outcome_of(order, *rest)

    monkeypatch.setattr("cluster.sweeps.workers.outcome_of", interrupted)
    assert main(["sweep", tiny, "--seeds", "3", "--workers", "0"]) == 130
    captured = capsys.readouterr()
    assert captured.out.startswith("Partial results: stopped with Ctrl-C")
    # The second may have come to its end all the same, where nothing was left to do.
    assert re.fullmatch(
        r"sevfleet: stopped with Ctrl-C, [12] of 3 runs are done \(nothing was kept: there is no --out\)",
        captured.err.splitlines()[-1],
    )


def test_a_killed_sweep_loses_no_more_than_the_run_it_was_at(tiny: str, tmp_path: Path) -> None:
    project = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "cluster.cli", "sweep", tiny, "--seeds", "6", "--workers", "0", "--out"]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    with subprocess.Popen([*command, "out"], env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and len(list(tmp_path.glob("out/runs/*.json"))) < 2:
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("out/runs/*.json")}
    for out in ("out", "whole"):
        assert main([*command[3:], out, "--quiet"]) == 0
    assert kept.items() <= {file: file.stat().st_mtime_ns for file in tmp_path.glob("out/runs/*.json")}.items()
    for table in ("sweep", "runs", "points"):
        assert (tmp_path / f"out/{table}.parquet").read_bytes() == (tmp_path / f"whole/{table}.parquet").read_bytes()
