"""Figures of a run, from rows whose answers one can work out by hand."""

import pytest

from cluster.commands import sweep
from cluster.results import Results
from cluster.scenario import Scenario
from cluster.sweeps.figures import FIGURES, UnknownFigureError, chosen_figures, values_of_run
from cluster.tables import TABLES, ColumnType, Row


def row(table: str, **values: object) -> Row:
    blank = {ColumnType.TEXT: "", ColumnType.INTEGER: 0, ColumnType.REAL: 0.0, ColumnType.BOOLEAN: False}
    return {column.name: blank[column.type] for column in TABLES[table].columns} | values


def vm(name: str, generation: str, **values: object) -> Row:
    optional = {"launch_ns": None, "reason": None}
    return row("vms", **{"vm": name, "workload": "stream", "generation": generation, **optional, **values})


@pytest.fixture
def results(quiet_scenario: Scenario) -> Results:
    migration = {"generation": "PLAIN", "outcome": "completed", "reason": None}
    return Results.of_rows(quiet_scenario, {
        "vms": [
            vm("a", "SEV_SNP", launch_ns=100, psp_service_ns=5, psp_wait_ns=10, units_of_work=3),
            vm("b", "SEV_SNP", launch_ns=300, psp_service_ns=5, psp_wait_ns=30, units_of_work=4),
            vm("c", "PLAIN", launch_ns=7, units_of_work=50),
            vm("d", "PLAIN", state="refused", reason="no room"),
        ],
        "vm_time": [
            {"vm": "a", "mechanism": "core", "time_ns": 60.0},
            {"vm": "a", "mechanism": "memory", "time_ns": 20.0},
            {"vm": "b", "mechanism": "core", "time_ns": 20.0},
            {"vm": "b", "mechanism": "encryption", "time_ns": 10.0},
            {"vm": "b", "mechanism": "core_wait", "time_ns": 15.0},
        ],
        "hosts": [
            row("hosts", host="h", psp_longest_wait_ns=20, core_mean_ratio=0.5, memory_peak_bytes=1 << 30),
            row("hosts", host="i", psp_longest_wait_ns=30, core_mean_ratio=0.1, memory_peak_bytes=2 << 30),
        ],
        "migrations": [
            row("migrations", migration=1, started_ns=10, ended_ns=30, downtime_ns=4, **migration),
            row("migrations", migration=2, started_ns=10, ended_ns=50, downtime_ns=6, **migration),
            row("migrations", migration=3, **{**migration, "outcome": "refused"}),
        ],
        "pairs": [
            {"vm": "a", "generation": "SEV_SNP", "workload": "stream", "host": "h", "slowdown": 1.1},
            {"vm": "b", "generation": "SEV_SNP", "workload": "stream", "host": "h", "slowdown": 1.3},
        ],
    })  # fmt: skip


def test_figures_are_what_the_rows_say(results: Results) -> None:
    found = {(figure, of): value for figure, of, value in values_of_run(results, pairs=True)}
    expected = {
        ("stretched", "stream SEV_SNP"): 125 / 100,
        ("encryption_share", "stream SEV_SNP"): 10 / 100,
        ("core_wait_share", "stream SEV_SNP"): 15 / 100,
        ("migration_share", "stream SEV_SNP"): 0,
        ("rmp_share", "stream SEV_SNP"): 0,
        ("numa_share", "stream SEV_SNP"): 0,
        ("vmgexit_share", "stream SEV_SNP"): 0,
        ("acceptance_share", "stream SEV_SNP"): 0,
        ("bounce_share", "stream SEV_SNP"): 0,
        ("ide_share", "stream SEV_SNP"): 0,
        ("svsm_share", "stream SEV_SNP"): 0,
        ("psp_share", "stream SEV_SNP"): 0,
        ("psp_wait_share", "stream SEV_SNP"): 0,
        ("loaded_latency_share", "stream SEV_SNP"): 0,
        ("disk_wait_share", "stream SEV_SNP"): 0,
        ("llc_share", "stream SEV_SNP"): 0,
        ("smt_share", "stream SEV_SNP"): 0,
        ("launch_ns", "stream SEV_SNP"): 200,
        ("launch_ns", "stream PLAIN"): 7,
        ("psp_wait_ns", "SEV_SNP"): 20,
        ("psp_longest_wait_ns", "fleet"): 30,
        ("migration_ns", "PLAIN"): 30,
        ("downtime_ns", "PLAIN"): 5,
        ("not_migrated", "fleet"): 1,
        ("not_as_asked", "fleet"): 1,
        ("work", "stream SEV_SNP"): 7,
        ("work", "stream PLAIN"): 50,
        ("slowdown", "stream SEV_SNP"): 1.2,
        ("core_ratio", "fleet"): 0.3,
        ("bandwidth_ratio", "fleet"): 0,
        ("memory_peak_bytes", "fleet"): 3 << 30,
    }
    assert found == pytest.approx(expected)


def test_figures_of_pairs_are_there_only_where_pairs_were_made(results: Results) -> None:
    assert {figure for figure, _, _ in values_of_run(results, pairs=False)} == FIGURES.keys() - {"slowdown"}


def test_figures_without_a_value_are_left_out(quiet_scenario: Scenario) -> None:
    nothing = values_of_run(Results.of_rows(quiet_scenario, {}), pairs=True)
    assert {value.figure for value in nothing} == {"psp_longest_wait_ns", "not_as_asked", "memory_peak_bytes"}


def test_figures_are_chosen_by_name_and_a_misspelt_one_is_told_the_nearest() -> None:
    assert [figure.name for figure in chosen_figures(["work", "stretched"])] == ["stretched", "work"]
    assert all(figure.default for figure in chosen_figures(None))
    with pytest.raises(UnknownFigureError, match=r'^expected "stretched", got "streched"$'):
        chosen_figures(["streched"])


def test_the_help_names_every_figure_and_marks_the_default_ones() -> None:
    words = sweep.DESCRIPTION.split("on request:")[1].split("Exit code")[0].split()
    assert words == [f"{figure.name}*" if figure.default else figure.name for figure in FIGURES.values()]
