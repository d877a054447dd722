import io
from itertools import pairwise

import pytest
from rich.console import Console

from cluster.report import ADDED, OWN, print_summary
from cluster.results import Results
from cluster.scenario import Scenario
from cluster.simulation import run
from cluster.tables import TABLES, ColumnType, Row
from node.mechanism import Mechanism


def printed(results: Results) -> str:
    stream = io.StringIO()
    print_summary(results, Console(file=stream, width=160))
    return stream.getvalue()


def row(table: str, **values: object) -> Row:
    blank = {ColumnType.TEXT: "", ColumnType.INTEGER: 0, ColumnType.REAL: 0.0, ColumnType.BOOLEAN: False}
    return {column.name: blank[column.type] for column in TABLES[table].columns} | values


@pytest.fixture
def results(quiet_scenario: Scenario) -> Results:
    rows = {
        "vms": [
            row("vms", vm="a", workload="stream", generation="SEV_SNP", launch_ns=10**9, units_of_work=1234),
            row(
                "vms", vm="b", workload="stream", generation="PLAIN", launch_ns=None, state="refused", reason="no room"
            ),
        ],
        "vm_time": [
            {"vm": "a", "mechanism": "core", "time_ns": 60.0},
            {"vm": "a", "mechanism": "memory", "time_ns": 40.0},
            {"vm": "a", "mechanism": "encryption", "time_ns": 8.0},
            {"vm": "a", "mechanism": "rmp", "time_ns": 2.0},
        ],
        "hosts": [
            row(
                "hosts", host="h", product="Milan", asids_es_snp=99, asids_es_snp_peak=3, limit="security processor 80%"
            )
        ],
        "psp": [
            {"host": "h", "command": "SNP_LAUNCH_UPDATE", "commands": 1500, "service_ns": 9 * 10**9},
            {"host": "h", "command": "SNP_ACTIVATE", "commands": 3, "service_ns": 10**6},
        ],
    }
    return Results.of_rows(quiet_scenario, rows, run={"layout": "packed", "workers": 2, "ray_start_s": 4.25})


def test_a_slowdown_is_split_into_its_mechanisms(results: Results) -> None:
    (line,) = [line for line in printed(results).splitlines() if line.startswith("stream") and "SEV_SNP" in line]
    assert line.split() == ["stream", "SEV_SNP", "1", "1", "s", "1,234", "1.100", "x", "+8.00", "%", "+2.00", "%"]


def test_no_figure_is_cut_short_whatever_columns_are_left_out(quiet_scenario: Scenario) -> None:
    machine = row("vms", vm="a", workload="stream", generation="SEV_SNP", launch_ns=10**9, units_of_work=1234)
    for pair in pairwise(ADDED):
        times = [{"vm": "a", "mechanism": mechanism.value, "time_ns": 4943.21} for mechanism in pair]
        times.append({"vm": "a", "mechanism": "core", "time_ns": 100.0})
        text = printed(Results.of_rows(quiet_scenario, {"vms": [machine], "vm_time": times}))
        assert text.count("+4943.21 %") == 2, pair


def test_waits_resources_limits_and_refusals_are_shown(results: Results) -> None:
    text = printed(results)
    for part in ("1,503", "SNP_LAUNCH_UPDATE", "3 of 99", "security processor 80%", "no room", "ray start 4.2 s"):
        assert part in text


def test_moves_that_nobody_has_measured_say_model_only_with_the_range_of_the_rate(quiet_scenario: Scenario) -> None:
    kinds = [("PLAIN", "completed"), ("SEV", "completed"), ("SEV_SNP", "completed"), ("SEV", "refused")]
    moves = [
        row("migrations", migration=number, vm=f"vm{number}", generation=generation, outcome=outcome)
        for number, (generation, outcome) in enumerate(kinds)
    ]
    lines = printed(Results.of_rows(quiet_scenario, {"migrations": moves}, run={})).splitlines()
    said = [line.partition("model only")[1:] for line in lines if "completed" in line or "refused" in line]
    assert said == [("", ""), ("model only", ": firmware sends 1 to 100 MB/s"), ("", ""), ("model only", "")]


@pytest.mark.parametrize("move", [{"at": "1 s"}, {"at": "9 s"}])
def test_a_move_of_a_vm_that_is_not_there_yet_or_any_more_says_of_which_generation_it_is(move: dict[str, str]) -> None:
    group = {"name": "vm", "generation": "SEV", "memory": "256 MiB", "workload": "idle"}
    scenario = Scenario.parse(
        {
            "schema": 1, "name": "no-such-vm", "duration": "10 s", "migrations": [{"vm": "vm"} | move],
            "hosts": [{"name": "host", "product": "Milan", "memory": "4 GiB", "count": 2}],
            "vms": [group | {"arrival": "2 s", "lifetime": "5 s"}],
        }
    )  # fmt: skip
    (line,) = (line for line in printed(run(scenario, layout="inline")).splitlines() if "NO_SUCH_VM" in line)
    assert line.split()[:3] == ["SEV", "refused", "1"]


def test_moves_say_what_became_of_devices_and_who_carried_them(quiet_scenario: Scenario) -> None:
    told = [("SEV_TIO", "agents", "trusted"), ("SEV_TIO", "agents", "bounce buffers"), ("SEV_SNP", "handler", None)]
    moves = [
        row(
            "migrations", migration=number, vm=f"vm{number}", generation=generation, outcome="completed",
            carrier=carrier, devices=devices,
        )
        for number, (generation, carrier, devices) in enumerate(told)
    ]  # fmt: skip
    text = printed(Results.of_rows(quiet_scenario, {"migrations": moves}, run={}))
    for part in ("devices: trusted", "devices: bounce buffers", "by its handler"):
        assert text.count(part) == 1, part


def test_empty_results_print_too(quiet_scenario: Scenario) -> None:
    assert "0 guest operations" in printed(Results.of_rows(quiet_scenario, {}))


def test_every_mechanism_is_a_programs_own_or_comes_on_top() -> None:
    assert {*OWN, *ADDED} == set(Mechanism)


def test_devices_are_shown_by_workload_with_latencies_and_copies(quiet_scenario: Scenario) -> None:
    rows = {
        "vms": [
            row("vms", vm=vm, workload="job", generation="SEV", copies=3, bytes_bounced=1 << 20) for vm in ("a", "b")
        ],
        "disks": [
            row("disks", vm="a", reads=2, writes=1, bytes_read=2 << 20, time_ns=300e3, latency_longest_ns=150e3),
            row("disks", vm="b", reads=1, errors=4, time_ns=100e3, latency_longest_ns=100e3),
        ],
        "networks": [
            row("networks", vm="a", bytes_sent=1 << 20, frames_received=3, delay_mean_ns=100e3, delay_longest_ns=10**6),
            row("networks", vm="b", frames_received=1, delay_mean_ns=300e3, delay_longest_ns=300_000, frames_missed=7),
        ],
    }
    disk, network = (
        line.split() for line in printed(Results.of_rows(quiet_scenario, rows)).splitlines() if " 2 MiB" in line
    )
    assert disk == ["job", "SEV", "2", "4", "2", "MiB", "0", "B", "4", "100", "us", "150", "us", "6", "2", "MiB"]
    assert network == ["job", "SEV", "2", "1", "MiB", "0", "B", "4", "7", "150", "us", "1", "ms", "6", "2", "MiB"]
