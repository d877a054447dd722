"""A machine may write more than its programs hold, anywhere in its memory: as large guests do that hardly move."""

import pytest
from test_live_migration import group, move, play, scenario, small_image  # noqa: F401 - the fixture

from cluster.scenario import Scenario, ScenarioError
from workloads.trace_player import pack_runs

MIB = 1 << 20


def writer(memory: str, written_mib: int, rate: int, vcpus: int = 1) -> dict[str, object]:
    parameters = {
        "fragments": pack_runs([(600_000, 100)]), "step_ms": 60_000, "touches_per_step": 0,
        "written_set_bytes": written_mib * MIB, "written_bytes_per_s": rate,
    }  # fmt: skip
    return group("vm", vcpus=vcpus, memory=memory, workload="trace-player", parameters=parameters)


def test_the_measured_migration_of_a_guest_that_writes_two_gib_comes_out_in_a_fleet_too() -> None:
    """KubeVirt's idle node (kubevirt/enhancements pull request 249): 7.1 GiB, 105.3 MiB/s: 112.4 s, 11862 MiB.

    The working set alone is fitted; ``sevfleet validate`` has the same case without a fleet.
    """
    _, rows = play(scenario(
        vms=[writer("7270 MiB", 2048, 81_250_000)], migrations=[move(to="host-2")], duration="150 s",
        fabric={"link": "107827 KiB/s"}, migration={"max_rounds": 100},
    ))  # fmt: skip
    (row,) = rows["migrations"]
    assert row["outcome"] == "completed"
    assert (row["ended_ns"] - row["started_ns"]) / 1e9 == pytest.approx(112.4, rel=0.10)
    assert row["bytes"] / MIB == pytest.approx(11862, rel=0.10)


def test_a_guest_that_rewrites_most_of_its_memory_faster_than_the_link_never_converges() -> None:
    """Cloud Hypervisor, pull request 7799: of 6 GiB 5418 MiB are rewritten, and every later round sends them."""
    fleet, rows = play(scenario(
        vms=[writer("6 GiB", 5418, 10**11)], migrations=[move(to="host-2")], duration="60 s",
        fabric={"link": "1987051 KiB/s"}, migration={"max_rounds": 6, "connections": 2},
    ))  # fmt: skip
    (row,) = rows["migrations"]
    assert (row["outcome"], row["rounds"]) == ("round cap", 6)
    (one,) = fleet.control.migrations.all
    assert one.precopy is not None
    assert {round(each.size_bytes / MIB) for each in one.precopy.rounds[1:]} == {5418}
    later_s = [(each.ended_ns - each.began_ns) / 1e9 for each in one.precopy.rounds[1:]]
    assert later_s == pytest.approx([2.85] * 5, rel=0.03)


def test_no_machine_writes_more_than_it_has() -> None:
    body = scenario(vms=[writer("2 GiB", 1024, 1000, vcpus=3)])
    with pytest.raises(ScenarioError) as refused:
        Scenario.parse(body)
    line = 'vms[0].memory of "vm": expected at least 3 GiB, which its vCPUs write all over, got 2 GiB'
    assert str(refused.value).endswith(line)
