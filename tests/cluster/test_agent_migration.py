"""SEV-SNP machines move by migration agents in fleets: stopped while they go, once, and as they were."""

from pathlib import Path
from typing import Any

import pytest
from test_live_migration import FIRMWARE, group, move, outcomes, play, scenario, small_image  # noqa: F401 - the fixture

from cluster.bench.fault_verdict import judged
from cluster.bench.faults import schedule

QUICK = {"psp.send_update_ns_per_kib": 500.0, "psp.receive_update_ns_per_kib": 500.0}


def fleet(**changes: Any) -> dict[str, Any]:
    vm = group("vm", generation="SEV_SNP", migration_agent=True, memory="64 MiB", vcpus=1)
    hosts = [{"name": "host", "product": "Milan", "count": 3, "memory": "16 GiB", "migration_agent": True}]
    return scenario(**({"hosts": hosts, "vms": [vm], "costs": QUICK, "duration": "10 s"} | changes))


def test_a_machine_moves_stopped_at_the_pace_of_both_security_processors() -> None:
    _, rows = play(fleet(migrations=[move(times=2, pause="100 ms")]))
    row, back = rows["migrations"]
    assert back["outcome"] == "completed"
    assert (row["outcome"], row["reason"]) == ("completed", None)
    assert row["pages_checked"] > 0
    pages = (64 << 20) // 4096
    assert row["downtime_ns"] >= 0.9 * pages * 2000
    (vm,) = rows["vms"]
    assert (vm["host"], row["destination"], vm["faults"]) == (back["destination"], "host-2", 0)


def above_svsm(**changes: Any) -> dict[str, Any]:
    """The same with an SVSM below the machine."""
    vm = group("vm", generation="SEV_SNP", migration_agent=True, svsm=True, memory="64 MiB", vcpus=2)
    return fleet(vms=[vm | {"firmware": "auto"}], **changes)


def test_a_machine_takes_its_svsm_along() -> None:
    _, rows = play(above_svsm(migrations=[move(times=2, pause="100 ms")]))
    assert [row["outcome"] for row in rows["migrations"]] == ["completed"] * 2
    assert [row["carrier"] for row in rows["migrations"]] == ["agents"] * 2
    (vm,), (svsm,) = rows["vms"], rows["svsms"]
    assert (vm["host"], vm["state"], vm["faults"]) == (rows["migrations"][1]["destination"], "running", 0)
    assert svsm["calls"] > 0


@pytest.mark.parametrize("seed", [1, 4, 6])
def test_whatever_goes_wrong_a_machine_with_an_svsm_is_whole_and_in_one_place(seed: int) -> None:
    found, moves = judged(schedule(seed, "SEV_SNP above an SVSM", Path(FIRMWARE[0])) | {"duration": "5 s"})
    assert found is None
    assert moves


def test_a_machine_without_leave_and_one_whose_hosts_have_no_agent_stay_where_they_are() -> None:
    kept = group("kept", generation="SEV_SNP", memory="64 MiB", vcpus=1)
    bare = {"name": "no-agent", "product": "Milan", "memory": "16 GiB"}
    body = fleet()
    hosts = [{**body["hosts"][0], "count": 1}, bare]
    vms = [{**body["vms"][0], "host": "host"}, {**kept, "host": "host"}]
    _, rows = play({**body, "hosts": hosts, "vms": vms, "migrations": [move(), move("kept")]})
    assert sorted(outcomes(rows)) == [("refused", "NEEDS_MIGRATION_AGENT"), ("refused", "NO_AGENT_THERE")]


@pytest.mark.parametrize(
    ("machine", "target", "reason"),
    [
        ({"svsm": True, "migration_agent": True}, "bare", "NO_AGENT_THERE"),
        ({"svsm": True}, "host-2", "NEEDS_MIGRATION_AGENT"),
        ({"migration_agent": True}, "bare", "NO_AGENT_THERE"),
        ({"svsm": True, "migration_handler": True}, "rome", "OTHER_GENERATION"),
        ({"migration_agent": True}, "rome", "OTHER_GENERATION"),
        ({"svsm": True, "migration_handler": True}, "genoa", "OTHER_PRODUCT_LINE"),
    ],
)
def test_who_cannot_go_is_told_why_before_its_first_byte(machine: dict[str, Any], target: str, reason: str) -> None:
    vm = group("vm", generation="SEV_SNP", memory="64 MiB", vcpus=1, **machine) | {"firmware": "auto"}
    common = {"memory": "4 GiB"}
    hosts = [{"name": "host", "product": "Milan", "count": 2, "migration_agent": True} | common,
             {"name": "bare", "product": "Milan"} | common, {"name": "rome", "product": "Rome"} | common,
             {"name": "genoa", "product": "Genoa", "migration_agent": True} | common]  # fmt: skip
    _, rows = play(fleet(hosts=hosts, vms=[vm], migrations=[move(to=target)], duration="1500 ms"))
    assert outcomes(rows) == [("refused", reason)]
    assert [row["bytes"] for row in rows["migrations"]] == [0]
    assert [(row["host"], row["state"], row["faults"]) for row in rows["vms"]] == [("host-1", "running", 0)]


def test_what_was_changed_on_the_wire_is_refused_and_the_machine_goes_on_where_it_was() -> None:
    def spoilt(_: str, frames: tuple[bytes, ...]) -> tuple[bytes, ...]:
        return (*frames[:1], *[frame.replace(frame[-40:-32], bytes(8)) for frame in frames[1:2]], *frames[2:])

    _, rows = play(fleet(migrations=[move()]), wire=spoilt)
    ((outcome, _),) = outcomes(rows)
    assert outcome == "spoiled"
    (vm,) = rows["vms"]
    assert (vm["host"], vm["faults"]) == ("host-1", 0)


def test_a_cancelled_move_leaves_the_machine_where_it_was() -> None:
    _, rows = play(fleet(migrations=[move(cancel_after="20 ms")]))
    assert [outcome for outcome, _ in outcomes(rows)] == ["cancelled"]
    (vm,) = rows["vms"]
    assert (vm["host"], vm["faults"], vm["state"]) == ("host-1", 0, "running")


@pytest.mark.parametrize(
    ("migration", "outcome"),
    [
        ({"timeout_per_gib": "1 s"}, ("timed out", "the time for copying is over")),
        ({"timeout_per_gib": "1 s", "at_timeout": "stop-and-copy"}, ("completed", None)),
        (
            {"timeout_per_gib": "1 s", "at_timeout": "post-copy"},
            ("timed out", "the time for copying is over, and post-copy is not for memory that firmware carries"),
        ),
        ({"timeout_per_gib": "100 s"}, ("completed", None)),
    ],
)
def test_a_move_that_takes_too_long_is_called_off_while_the_machine_can_go_on_where_it_was(
    migration: dict[str, str], outcome: tuple[str, str | None]
) -> None:
    """64 MiB at 100 Mb/s take 5.4 s; a second for each GiB is 62.5 ms."""
    _, rows = play(fleet(migrations=[move(to="host-2")], migration=migration, fabric={"link": "100 Mb/s"}))
    assert outcomes(rows) == [outcome]
    (row,), (vm,) = rows["migrations"], rows["vms"]
    if outcome[0] == "completed":
        assert (vm["host"], vm["faults"], vm["state"]) == ("host-2", 0, "running")
        return
    assert (vm["host"], vm["faults"], vm["state"]) == ("host-1", 0, "running")
    assert 62.5e6 < row["ended_ns"] - row["started_ns"] < 150e6
