"""A guest that writes faster than the network takes is slowed down while it moves, and its books say so."""

from types import SimpleNamespace
from typing import Any

import pytest
from test_live_migration import group, move, moved, outcomes, play, scenario, small_image, vm_row  # noqa: F401

from cluster.auto_converge import slow_down
from cluster.precopy import PrecopySettings, Round, RoundCap
from workloads.trace_player import pack_runs


def test_a_guest_that_is_slowed_down_converges_and_has_its_pace_back_afterwards() -> None:
    fabric, cap = {"link": "1 Gb/s"}, {"max_rounds": 14, "downtime_limit": "150 ms"}
    written = {"fragments": pack_runs([(60_000, 100)]), "step_ms": 60_000, "working_set_bytes": 4096,
               "touches_per_step": 1, "written_set_bytes": 256 << 20, "written_bytes_per_s": 400_000_000}  # fmt: skip
    busy = {"vcpus": 1, "workload": "trace-player", "parameters": written}
    alone, free = moved(busy, cap, fabric=fabric, duration="45 s")
    assert alone["outcome"] == "round cap"
    for slow in ({"auto_converge": True, "throttle_increment": 0.3}, {"dirty_limit": "200 Mb/s"}):
        row, there = moved(busy, {**cap, **slow}, fabric=fabric, duration="45 s")
        assert (row["outcome"], there["faults"]) == ("completed", 0)
        assert row["downtime_ns"] < 150e6
        assert there["instructions"] < free["instructions"]


def test_what_a_step_of_auto_converge_does_shows_in_the_next_round() -> None:
    """Also after a first round so long that the host looks only now and then how fast the guest writes."""
    written = {"fragments": pack_runs([(600_000, 100)]), "step_ms": 60_000, "touches_per_step": 0, "mhz": 3400,
               "written_set_bytes": 64 << 20, "written_bytes_per_s": 300_000_000}  # fmt: skip
    vm = group("vm", vcpus=1, memory="2 GiB", workload="trace-player", parameters=written)
    fleet, rows = play(scenario(
        vms=[vm], migrations=[move()], fabric={"link": "1 Gb/s"}, duration="40 s",
        migration={"auto_converge": True, "throttle_initial": 0.9, "max_rounds": 30, "downtime_limit": "100 ms"},
    ))  # fmt: skip
    assert outcomes(rows) == [("completed", None)]
    (one,) = fleet.control.migrations.all
    assert one.precopy is not None
    rates = [each.left_bytes * 1e9 / (each.ended_ns - each.began_ns) for each in one.precopy.rounds]
    assert min(rates[1:3]) > 90e6, "two rounds that dirty too much of what they send"
    assert max(rates[3:]) < 0.6 * min(rates[1:3])
    assert one.precopy.throttle == 0.9, "no further step was needed"


@pytest.mark.parametrize("slow", [{"dirty_limit": "200 Mb/s"}, {"mode": "post-copy"}])
def test_time_for_which_a_guest_stands_still_while_it_moves_is_in_its_books(slow: dict[str, Any]) -> None:
    table = group("vm", workload="random-access", memory="512 MiB")
    _, rows = play(
        scenario(vms=[table], migrations=[move()], migration=slow, fabric={"link": "1 Gb/s"}, duration="20 s")
    )
    assert outcomes(rows) == [("completed", None)]
    times = {one["mechanism"]: one["time_ns"] for one in rows["vm_time"]}
    assert sum(times.values()) == pytest.approx(vm_row(rows)["active_ns"], rel=1e-6)
    assert times["migration"] > 10e6
    _, alone = play(scenario(vms=[table], duration="20 s"))
    assert {one["mechanism"]: one["time_ns"] for one in alone["vm_time"]}["migration"] == 0


def test_a_guest_pays_for_pages_that_it_dirties_anew_in_each_round() -> None:
    table = group("vm", workload="random-access", vcpus=1, memory="512 MiB", parameters={"table_bytes": 64 << 20})
    stood_still = []
    for fault_ns in (0, 260, 2600):
        _, rows = play(
            scenario(vms=[table], migrations=[move()], migration={"max_rounds": 20, "downtime_limit": "30 ms"},
                     fabric={"link": "2 Gb/s"}, duration="8 s", costs={"migration.dirty_fault_ns": fault_ns})
        )  # fmt: skip
        times = {one["mechanism"]: one["time_ns"] for one in rows["vm_time"]}
        assert sum(times.values()) == pytest.approx(vm_row(rows)["active_ns"], rel=1e-6)
        stood_still.append(times["migration"])
    nothing, usual, dear = stood_still
    # 64 MiB anew in each round of 0.27 s: 60,000 faults a second of 260 ns are 1.5 % of a vCPU, in whole hundredths.
    assert nothing == 0 < usual < dear


def test_a_guest_that_is_slowed_already_is_slowed_no_less_for_what_it_dirtied_so() -> None:
    """At half of its pace it faults half as often as it would: its other half pays for as many again."""
    sent: list[tuple[Any, ...]] = []
    settings = PrecopySettings(0, 9, RoundCap.STOP, 0.0, 0.0, dirty_fault_ns=260.0)
    live = SimpleNamespace(settings=settings, send=lambda *told: sent.append(told))
    round_ = Round(1 << 30, 0, 1_000_000_000, 5 << 30, 4 << 30, 0)
    for slowed in (0.0, 0.5):
        one = SimpleNamespace(
            precopy=SimpleNamespace(throttle=0.0, rounds=[round_]), slowed=(slowed, 0.0), number=1, source="a",
            guest=SimpleNamespace(migration_handler=False, vcpus=1), order=SimpleNamespace(vm="vm"), flows=False,
        )  # fmt: skip
        slow_down(live, one)  # type: ignore[arg-type]
    assert [told[2][2] for told in sent] == [pytest.approx(0.21), pytest.approx(0.35)]
