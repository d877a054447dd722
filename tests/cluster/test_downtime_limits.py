"""The limit of a downtime: its steps, what it is held against, and one that no machine that writes can meet."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_live_migration import FIRMWARE, IDLE, group, move, play, scenario, vm_row
from test_post_copy import LINK, writer

from cluster.bench.faults import small_firmware
from cluster.cli import main
from cluster.scenario import Scenario
from cluster.scenario_notes import notes

MIB, S = 1 << 20, 10**9


@pytest.fixture(scope="module", autouse=True)
def small_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    FIRMWARE[0] = str(small_firmware(tmp_path_factory.mktemp("firmware")))
    yield
    FIRMWARE[0] = "auto"


def moved(vm: dict[str, Any], migration: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    body = scenario(vms=[group("vm", **vm)], migrations=[move()], migration=migration, fabric=LINK, duration="60 s")
    _, rows = play(body)
    (row,) = rows["migrations"]
    return row, vm_row(rows)


def test_a_machine_moves_as_soon_as_a_step_lets_it() -> None:
    """16 MiB that are written all the time take 134 ms over 1 Gb/s, and 22 ms are fixed: 148 ms are too few, 184 do.

    A step of a GiB takes as long as one of two, 4 s; the fifth begins at 16 s.
    """
    steps = {"downtime_limit": "400 ms", "downtime_steps": 10, "downtime_step_per_gib": "2 s", "max_rounds": 1000}
    row, _ = moved(writer(4_000_000_000, 16 * MIB), steps)
    assert row["outcome"] == "completed"
    assert row["downtime_ns"] == pytest.approx(16 * MIB / 125e6 * S + 22e6, abs=4e6)
    assert row["ended_ns"] - row["started_ns"] == pytest.approx(16 * S, abs=0.5 * S)


@pytest.mark.parametrize("limit", ["0 s", "10 ms", "22 ms"])
@pytest.mark.parametrize(
    "vm", [{"workload": "key-value-store", "parameters": {"records": 20}}, IDLE, writer(100_000_000, 49 * 4096)],
    ids=["nothing", "a page of each vCPU", "49 pages"],
)  # fmt: skip
def test_a_machine_of_which_hardly_anything_is_left_stops_whatever_the_limit(limit: str, vm: dict[str, Any]) -> None:
    row, there = moved(vm, {"downtime_limit": limit})
    assert (row["outcome"], row["rounds"], there["host"]) == ("completed", 1, "host-2")
    assert 22e6 < row["downtime_ns"] < 30e6


def test_more_than_fifty_pages_are_not_hardly_anything_nor_is_one_where_a_step_to_come_can_be_met() -> None:
    row, _ = moved(writer(4_000_000_000, 51 * 4096), {"downtime_limit": "22 ms", "max_rounds": 4})
    assert row["outcome"] == "round cap"
    steps = {"downtime_limit": "60 ms", "downtime_steps": 3, "downtime_step_per_gib": "10 s", "max_rounds": 9999}
    row, _ = moved(writer(100_000_000, 4096), steps)
    assert (row["outcome"], row["ended_ns"] - row["started_ns"] > 20 * S) == ("completed", True), "20 ms come first"


@pytest.mark.parametrize(
    ("changes", "outcome"), [({"max_rounds": 3}, "round cap"), ({"progress_timeout": "2 s"}, "timed out")]
)
def test_the_reason_says_that_the_limit_can_never_be_met(changes: dict[str, Any], outcome: str) -> None:
    row, there = moved(writer(4_000_000_000, MIB), {"downtime_limit": "20 ms", "max_rounds": 9999} | changes)
    assert (row["outcome"], there["host"]) == (outcome, "host-1")
    rounds = f"after {row['rounds']} rounds"
    assert row["reason"].endswith(f"{rounds}: 22 ms of each downtime are fixed, and 20 ms the limit")
    row, _ = moved(writer(4_000_000_000, 64 * MIB), {"downtime_limit": "23 ms", "max_rounds": 9999} | changes)
    assert row["reason"].endswith(f"after {row['rounds']} rounds")


def test_a_check_says_so_beforehand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = """schema = 1
name = "moves"
duration = "10 s"
hosts = [{ name = "host", product = "Milan", count = 2, memory = "16 GiB" }]
vms = [{ name = "vm", generation = "PLAIN", vcpus = 1, memory = "1 GiB", workload = "random-access" }]
migrations = [{ vm = "vm", at = "1 s" }]
migration.downtime_limit = "%s"
"""
    file = tmp_path / "moves.toml"
    file.write_text(body % "20 ms")
    assert main(["check", str(file)]) == 0
    valid, note = capsys.readouterr().out.splitlines()
    assert valid == f"{file}: valid: 2 hosts, 1 VMs, 10 s"
    assert note.startswith(f"{file}: note: migration.downtime_limit: expected more than 22 ms, ")
    assert note.endswith(", got 20 ms")
    file.write_text(body % "23 ms")
    assert main(["check", str(file)]) == 0
    assert "note" not in capsys.readouterr().out


def test_the_fixed_parts_are_the_scenario_s_own_and_who_moves_nobody_is_told_nothing() -> None:
    limit, low = {"downtime_limit": "20 ms"}, {"migration.stop_ns": 1e6}
    assert len(notes(Scenario.parse(scenario(migration=limit, migrations=[move()])))) == 1
    assert len(notes(Scenario.parse(scenario(migration=limit, drains=[{"host": "host-1", "at": "1 s"}])))) == 1
    assert not notes(Scenario.parse(scenario(migration=limit, migrations=[move()], costs=low)))
    assert not notes(Scenario.parse(scenario(migration=limit)))


@pytest.mark.parametrize(
    ("idle", "switch", "line"),
    [
        ({"at_timeout": "stop-and-copy"}, {"timeout_per_gib": "1 s"}, "at_timeout: expected timeout_per_gib beside it"),
        ({"throttle_initial": 0.5}, {"auto_converge": True}, "throttle_initial: expected auto_converge beside it"),
        ({"throttle_increment": 0.2}, {"auto_converge": True}, "throttle_increment: expected auto_converge beside it"),
        ({"throttle_max": 0.5}, {"auto_converge": True}, "throttle_max: expected auto_converge beside it"),
        (
            {"downtime_step_per_gib": "1 s"}, {"downtime_steps": 4},
            "downtime_step_per_gib: expected downtime_steps beside it",
        ),
    ],
)  # fmt: skip
def test_a_setting_without_the_one_that_gives_it_a_meaning_is_told(
    idle: dict[str, Any], switch: dict[str, Any], line: str
) -> None:
    (note,) = notes(Scenario.parse(scenario(migration=idle, migrations=[move()])))
    assert note == f"migration.{line}, without which it means nothing, got none"
    assert not notes(Scenario.parse(scenario(migration=idle | switch, migrations=[move()])))
