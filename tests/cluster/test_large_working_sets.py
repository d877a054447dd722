"""A machine may write more than its programs hold, anywhere in its memory: as large guests do that hardly move."""

from itertools import pairwise
from typing import Any

import pytest
from test_live_migration import group, move, play, scenario, small_image  # noqa: F401 - the fixture

from cluster.fleet import Fleet
from cluster.migration import Migration
from cluster.migration_rows import round_rows
from cluster.scenario import Scenario, ScenarioError
from workloads.trace_player import pack_runs

MIB = 1 << 20


def writer(memory: str, written_mib: int, rate: int, vcpus: int = 1, mhz: int = 2600) -> dict[str, Any]:
    parameters = {
        "fragments": pack_runs([(600_000, 100)]), "step_ms": 60_000, "touches_per_step": 0,
        "written_set_bytes": written_mib * MIB, "written_bytes_per_s": rate,
        "mhz": mhz,
    }  # fmt: skip
    return group("vm", vcpus=vcpus, memory=memory, workload="trace-player", parameters=parameters)


def _only(fleet: Fleet) -> Migration:
    (one,) = fleet.control.migrations.all
    return one


def test_the_measured_migration_of_a_guest_that_writes_two_gib_comes_out_in_a_fleet_too() -> None:
    """KubeVirt's idle node (kubevirt/enhancements pull request 249): 7.1 GiB, 105.3 MiB/s: 112.4 s, 11862 MiB.

    The working set alone is fitted; ``sevfleet validate`` has the same case without a fleet. Played by a clock that the
    host keeps up with, it writes at the 650 Mb/s that were measured.
    """
    fleet, rows = play(scenario(
        vms=[writer("7270 MiB", 2048, 81_250_000, mhz=1500)], migrations=[move(to="host-2")], duration="150 s",
        fabric={"link": "107827 KiB/s"}, migration={"max_rounds": 100},
    ))  # fmt: skip
    (row,) = rows["migrations"]
    assert row["outcome"] == "completed"
    assert (row["ended_ns"] - row["started_ns"]) / 1e9 == pytest.approx(112.4, rel=0.10)
    assert row["bytes"] / MIB == pytest.approx(11862, rel=0.10)
    ready = _only(fleet).ready
    assert ready is not None
    assert [pool.write_bytes_per_s for pool in ready[1]] == pytest.approx([81_250_000])


def test_a_guest_that_rewrites_most_of_its_memory_faster_than_the_link_never_converges() -> None:
    """Cloud Hypervisor, pull request 7799: of 6 GiB 5418 MiB are rewritten, and every later round sends them."""
    fleet, rows = play(scenario(
        vms=[writer("6 GiB", 5418, 10**11)], migrations=[move(to="host-2")], duration="60 s",
        fabric={"link": "1987051 KiB/s"}, migration={"max_rounds": 6, "connections": 2},
    ))  # fmt: skip
    (row,) = rows["migrations"]
    assert (row["outcome"], row["rounds"]) == ("round cap", 6)
    first, *later = round_rows(_only(fleet))
    # Published: 3.09 s, then 2.92 to 3.02 s from round to round, 5418 to 5428 MiB, 2726 to 2969 ms if it stopped; 3 %.
    assert (first["ended_ns"] - first["began_ns"]) / 1e9 == pytest.approx(3.09, rel=0.03)
    for before, after in pairwise(later):
        assert 2.92 * 0.97 < (after["ended_ns"] - before["ended_ns"]) / 1e9 < 3.02 * 1.03
    assert all(5418 * 0.97 < each["bytes"] / MIB < 5428 * 1.03 for each in later)
    assert 2726 * 0.97 < row["expected_downtime_ns"] / 1e6 < 2969 * 1.03


def test_a_small_guest_whose_move_takes_as_long_as_a_measured_one_stands_still_as_long() -> None:
    """Cloud Hypervisor, pull request 7979: 2.2 s, of them 298 ms stopped, 269 for the last copy; 300 meant.

    Its size and what it wrote are not published. ``sevfleet validate`` has the same case, and what is fitted, without a
    fleet.
    """
    _, rows = play(scenario(
        vms=[writer("1 GiB", 1024, 2_665_000_000, mhz=1500)], migrations=[move(to="host-2")], duration="60 s",
        fabric={"link": "1987051 KiB/s"}, migration={"max_rounds": 100, "connections": 2},
    ))  # fmt: skip
    (row,) = rows["migrations"]
    assert row["outcome"] == "completed"
    assert (row["ended_ns"] - row["started_ns"]) / 1e9 == pytest.approx(2.2, abs=0.05)
    assert row["downtime_ns"] / 1e6 == pytest.approx(298, rel=0.15)
    assert row["final_bytes"] / (1_987_051 * 1024) * 1e3 == pytest.approx(269, rel=0.15)


def test_all_vcpus_together_write_most_of_a_large_guest() -> None:
    _, rows = play(scenario(
        vms=[writer("64 GiB", 1920, 10**9, vcpus=32)], migrations=[move(to="host-2")], duration="100 s",
        hosts=[{"name": "host", "product": "Milan", "count": 2, "memory": "128 GiB"}],
        migration={"max_rounds": 2, "at_round_cap": "stop-and-copy", "connections": 4},
    ))  # fmt: skip
    (row,) = rows["migrations"]
    assert row["remaining_bytes"] == pytest.approx(60 << 30, rel=0.01)  # In the minute or so that 64 GiB take.


def test_no_machine_writes_more_than_it_has() -> None:
    body = scenario(vms=[writer("2 GiB", 1024, 1000, vcpus=3)])
    with pytest.raises(ScenarioError) as refused:
        Scenario.parse(body)
    line = 'vms[0].memory of "vm": expected at least 3 GiB, which its vCPUs write all over, got 2 GiB'
    assert str(refused.value).endswith(line)
