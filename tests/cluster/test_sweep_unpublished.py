"""Rows that nobody has published, each at both ends by runs of its own: launches and waits have their ranges too."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster import Scenario, run
from cluster.cli import main
from cluster.sweeps import unpublished
from cluster.sweeps.figures import Value, chosen_figures
from cluster.sweeps.plan import Run, SweepPlan
from cluster.sweeps.progress import SweepProgress
from cluster.sweeps.run import RunOutcome
from cluster.sweeps.unpublished import UnpublishedSweep, sweep_unpublished, tables_of
from cluster.tornado import swept_rows

LAUNCH, OTHER = "psp.command_ns", "psp.tio_exchange_ns"
"""A row that the launch of a SEV-SNP guest follows from, and one of cards, that this host has none of."""


@pytest.fixture
def launching(tiny_scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    """The tiny scenario with its machines ordered within the run; two rows are swept."""
    body = tomllib.loads(tiny_scenario.to_toml())
    for vm in body["vms"]:
        del vm["start"]
    scenario = Scenario.parse(body)
    rows = {row.name: row for row in swept_rows(scenario)}
    chosen = [rows[LAUNCH], rows[OTHER]]
    monkeypatch.setattr(unpublished, "swept_rows", lambda _: chosen)
    return scenario


def by_kind(swept: UnpublishedSweep) -> Mapping[tuple[str, str], dict[str, Any]]:
    return {(row["figure"], row["of"]): row for row in swept.ranges.to_pylist()}


def test_the_scenario_as_it_is_comes_first_then_each_row_at_its_ends_alone(quiet_scenario: Scenario) -> None:
    rows = swept_rows(quiet_scenario)
    plan = SweepPlan.one_at_a_time(quiet_scenario, 1, rows)
    assert len(rows) > 50
    assert len(plan.points) == 1 + 2 * len(rows)
    costs = [Scenario.parse(tomllib.loads(point.text)).costs for point in plan.points]
    assert costs == [quiet_scenario.costs, *({row.name: end} for row in rows for end in row.sweep or ())]
    assert plan.runs[1].described(plan.axes) == f"costs.{rows[0].name}={rows[0].sweep[0]} seed=1"  # type: ignore[index]


def test_a_launch_has_the_range_that_runs_with_the_row_at_its_ends_find(launching: Scenario, tmp_path: Path) -> None:
    swept = sweep_unpublished(launching, out=tmp_path, workers=0)
    (row,) = [row for row in swept_rows(launching) if row.name == LAUNCH]
    launches = []
    for costs in ({}, *({LAUNCH: end} for end in row.sweep or ())):
        vms = run(launching.model_copy(update={"costs": costs}), layout="inline").vms.to_pylist()
        launches.append(next(float(vm["launch_ns"]) for vm in vms if vm["generation"] == "SEV_SNP"))
    as_is, low, high = launches
    assert low < as_is < high
    found = by_kind(swept)["launch_ns", "key-value-store SEV_SNP"]
    assert (found["as_is"], found["low"], found["high"], found["rows"]) == (as_is, low, high, 1)
    swings = [one for one in swept.swings.to_pylist() if one["figure"] == "launch_ns" and "SEV_SNP" in one["of"]]
    assert [(one["row"], one["at_low"], one["at_high"]) for one in swings] == [(LAUNCH, low, high)]

    glances: list[SweepProgress] = []
    again = sweep_unpublished(launching, out=tmp_path, workers=0, on_progress=glances.append)
    assert (again.ranges, again.swings, again.runs) == (swept.ranges, swept.swings, swept.runs)
    assert not glances, "runs that were kept were made again"


def test_ranges_and_swings_are_means_over_seeds(launching: Scenario) -> None:
    plan = SweepPlan.one_at_a_time(launching, (1, 2), unpublished.swept_rows(launching))
    found = {0: (10.0, 20.0), 1: (8.0, 10.0), 2: (30.0, None), 3: (10.0, 20.0), 4: (10.0, 20.0)}

    def outcome(one: Run) -> RunOutcome:
        value = found[one.point.number][one.seed - 1]
        return RunOutcome("0", () if value is None else (Value("launch_ns", "X", value),))

    tables = tables_of(plan, {one: outcome(one) for one in plan.runs}, chosen_figures(["launch_ns"]))
    (whole,) = tables["ranges"].to_pylist()
    expected = {"figure": "launch_ns", "of": "X", "unit": "ns", "as_is": 15.0, "low": 9.0, "high": 30.0, "rows": 1}
    assert whole == {**expected, "none_at": 0}
    (swing,) = tables["swings"].to_pylist()
    assert (swing["row"], swing["at_low"], swing["at_high"]) == (LAUNCH, 9.0, 30.0)

    broken = {one: outcome(one) if one.point.number != 2 else RunOutcome(reason="full") for one in plan.runs}
    tables = tables_of(plan, broken, chosen_figures(["launch_ns"]))
    assert tables["swings"].num_rows == 0, "half a swing is none"
    assert tables["ranges"].to_pylist()[0]["high"] == 15.0
    assert [row["reason"] for row in tables["runs"].to_pylist() if row["row_value"] is not None][2:4] == ["full"] * 2


def test_a_point_of_which_one_seed_is_missing_counts_for_nothing(launching: Scenario) -> None:
    plan = SweepPlan.one_at_a_time(launching, (1, 2), unpublished.swept_rows(launching))
    outcomes = {one: RunOutcome("0", (Value("work", "X", float(one.seed)),)) for one in plan.runs}
    tables = tables_of(plan, {one: outcomes[one] for one in plan.runs[:5]}, chosen_figures(["work"]))
    assert tables["swings"].num_rows == 0
    assert [(row["as_is"], row["low"], row["high"]) for row in tables["ranges"].to_pylist()] == [(1.5, 1.5, 1.5)]
    outcomes[plan.runs[0]] = RunOutcome(reason="full")
    tables = tables_of(plan, outcomes, chosen_figures(["work"]))
    assert tables["swings"].num_rows == 0, "there is nothing to compare with"
    assert tables["ranges"].to_pylist()[0]["as_is"] is None


def test_ends_at_which_a_figure_has_no_value_are_counted(launching: Scenario) -> None:
    plan = SweepPlan.one_at_a_time(launching, (1,), unpublished.swept_rows(launching))
    some = (Value("downtime_ns", "PLAIN", 5.0),)
    outcomes = {one: RunOutcome("0", () if one.point.number == 3 else some) for one in plan.runs}
    (whole,) = tables_of(plan, outcomes, chosen_figures(None))["ranges"].to_pylist()
    assert (whole["none_at"], whole["rows"], whole["low"], whole["high"]) == (1, 1, 5.0, 5.0)


def test_the_command_prints_ranges_and_which_rows_matter(
    launching: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("launching.toml").write_text(launching.to_toml())
    assert main(["sweep", "launching.toml", "--unpublished", "--workers", "0", "--figure", "launch_ns"]) == 0
    out = capsys.readouterr().out
    heading = next(line for line in out.splitlines() if line.startswith("figure"))
    assert heading.split() == ["figure", "of", "as", "it", "is", "least", "most", "rows", "without"]
    assert any(line.startswith(f"{LAUNCH} ") for line in out.splitlines())
    assert "rows swept 2, seeds 1, runs 5" in out
    assert main(["sweep", "launching.toml", "--unpublished", "--set", "costs.core.exit_ns=900"]) == 2
    assert capsys.readouterr().err.startswith("sevfleet: --set: expected without --unpublished")
    assert main(["sweep", "launching.toml", "--unpublished", "--seeds", "50000"]) == 2
    assert capsys.readouterr().err.startswith("sevfleet: --unpublished: the grid: expected at most 100,000 runs")
