"""A link that breaks while a machine moves: it goes on at its source, or in post-copy waits and has the rest later."""

import math
from typing import Any

import pytest
from test_live_migration import IDLE, group, move, outcomes, play, scenario, small_image, vm_row  # noqa: F401
from test_post_copy import LINK, POST, S, writer

from cluster.precopy import Precopy, PrecopySettings, RoundCap
from node.dirty_rates import Pool

GIB = 1 << 30


def cut(at: str, lasts: str, host: str = "host-1") -> dict[str, Any]:
    return {"kind": "link", "host": host, "at": at, "lasts": lasts}


def moved(
    vm: dict[str, Any], migration: dict[str, Any], *faults: dict[str, Any], **changes: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    body = scenario(
        vms=[group("vm", **vm)], migration=migration, fabric=LINK, faults=list(faults),
        **({"migrations": [move(to="host-2")], "duration": "25 s"} | changes),
    )  # fmt: skip
    _, rows = play(body)
    return rows["migrations"][0], vm_row(rows)


BUSY = writer(100_000_000, 64 << 20)


@pytest.mark.parametrize("host", ["host-1", "host-2"])
def test_a_post_copy_whose_link_breaks_waits_and_has_the_rest_when_it_is_back(host: str) -> None:
    whole, _ = moved(BUSY, POST)
    row, there = moved(BUSY, POST | {"recover_after": "2 s"}, cut("4 s", "3 s", host))
    assert (row["outcome"], there["host"], there["state"], there["faults"]) == ("completed", "host-2", "running", 0)
    assert (row["post_copy_pauses"], row["post_copy_paused_ns"]) == (1, 5 * S)
    assert (whole["post_copy_pauses"], whole["post_copy_paused_ns"]) == (0, 0)
    # No byte goes over twice, and nothing is lost: the pause and what the target has of it come on top.
    assert row["post_copy_bytes"] == whole["post_copy_bytes"]
    assert row["post_copy_ns"] == pytest.approx(whole["post_copy_ns"] + 5 * S, abs=2e6)
    assert row["downtime_ns"] == whole["downtime_ns"]
    # A bit for each page of the machine and of its firmware.
    assert 0 < row["wire_bytes"] - whole["wire_bytes"] - GIB // 4096 // 8 < 64


def test_whoever_touches_what_is_missing_stands_still_meanwhile_and_who_touches_nothing_does_not() -> None:
    (_, free), (_, held) = (moved(BUSY, POST, *faults) for faults in ((), (cut("4 s", "5 s"),)))
    # It stood still for the six seconds until somebody had it go on, but for a hundredth, of the time that it had.
    whole, _ = moved(BUSY, POST)
    had_s = 24 - whole["post_copy_faults"] * 200e-6
    lost = 1 - held["instructions"] / free["instructions"]
    assert lost == pytest.approx(6 * 0.99 / had_s, rel=0.05)
    still = {**IDLE, "vcpus": 1}
    (_, free), (row, held) = (moved(still, POST, *faults) for faults in ((), (cut("4 s", "5 s"),)))
    assert (row["post_copy_pauses"], held["instructions"]) == (1, free["instructions"])


def test_pages_that_it_waited_for_are_those_before_the_break_and_those_after_it() -> None:
    """What it touched before is there; what it has not touched yet came in the same time as without a break."""
    slow = writer(100_000_000, 256 << 20)
    whole, _ = moved(slow, POST)
    for at in ("2 s", "4 s", "8 s"):
        row, _ = moved(slow, POST, cut(at, "1 s"))
        # Each part has a pace of its own.
        assert row["post_copy_faults"] == pytest.approx(whole["post_copy_faults"], rel=0.15)


def test_what_it_waited_for_before_a_break_it_does_not_wait_for_again() -> None:
    """Breaks that take no time cost it no more than what it waits for anyway."""
    slow = writer(100_000_000, 256 << 20)
    never, whole, broken = (
        moved(slow, settings | {"recover_after": "0 s"}, *faults)[1]["instructions"]
        for settings, faults in (
            ({}, ()), (POST, ()), (POST, [cut(f"{at} ms", "0 s") for at in (1500, 2000, 2500, 3000, 3500)])
        )
    )  # fmt: skip
    # Each part is at the pace of its own touches, of which there are fewer later.
    assert 0.8 * (never - whole) < never - broken <= never - whole


def test_touches_up_to_a_time_are_those_of_a_sum_over_small_steps() -> None:
    settings = PrecopySettings(300_000_000, 30, RoundCap.ABORT, 0.0, 0.0)
    pool, took_s, steps = Pool(GIB, 0.3 * GIB), 7.0, 20_000
    one = Precopy(4 * GIB, [pool], settings, 0)
    for until_s in (0.0, 0.5, 3.0, 7.0):
        expected = 0.0
        for step in range(steps):
            t = (step + 0.5) * until_s / steps
            first = 0.3 * math.exp(-0.3 * t) * (GIB / 4096) * until_s / steps
            expected += first * (1 - t / took_s) * 0.5
        found = one.faults_while(2 * GIB, int(took_s * S), until_ns=int(until_s * S))
        assert found == pytest.approx(expected, rel=1e-3)
    assert one.faults_while(2 * GIB, 7 * S) == one.faults_while(2 * GIB, 7 * S, until_ns=9 * S)


def test_links_that_break_again_and_again_are_waited_for_each_time() -> None:
    faults = cut("3 s", "1 s"), cut("6 s", "1 s", "host-2"), cut("6500 ms", "2 s")
    row, there = moved(BUSY, POST | {"recover_after": "100 ms"}, *faults)
    assert (row["outcome"], there["host"], there["faults"]) == ("completed", "host-2", 0)
    # The last two overlap: there is no way before both are back.
    assert (row["post_copy_pauses"], row["post_copy_paused_ns"]) == (2, int(1.1 * S) + int(2.6 * S))


def test_it_goes_on_when_the_last_link_has_been_back_for_long_enough() -> None:
    row, _ = moved(BUSY, POST | {"recover_after": "2 s"}, cut("3 s", "2 s"), cut("3500 ms", "2 s", "host-2"))
    assert (row["outcome"], row["post_copy_pauses"], row["post_copy_paused_ns"]) == ("completed", 1, int(4.5 * S))


def test_at_every_instant_of_the_switch_over_it_goes_on_here_or_waits_there() -> None:
    found = []
    small = {**writer(50_000_000, 16 << 20), "memory": "64 MiB"}
    for at_ms in range(1002, 1038, 4):
        fault = cut(f"{at_ms} ms", "1 s")
        row, there = moved(small, POST | {"recover_after": "0 s"}, fault, duration="5 s")
        assert (there["state"], there["faults"]) == ("running", 0)
        assert there["host"] == ("host-2" if row["outcome"] == "completed" else "host-1")
        found.append((row["outcome"], row["post_copy_pauses"]))
    turn = found.index(("completed", 1))
    assert set(found[:turn]) == {("link down", 0)}
    assert set(found[turn:]) == {("completed", 1)}
    assert 0 < turn < len(found) - 1


@pytest.mark.parametrize(("crash", "outcome", "state"), [
    ({"kind": "host-crash", "host": "host-1", "at": "6 s"}, "lost", "ended"),
    ({"kind": "host-crash", "host": "host-2", "at": "6 s"}, "lost", "ended"),
    ({"kind": "control-plane-crash", "at": "6 s"}, "control plane restarted", "running"),
])  # fmt: skip
def test_what_crashes_while_it_waits_does_what_it_would_do_otherwise(
    crash: dict[str, Any], outcome: str, state: str
) -> None:
    row, there = moved(BUSY, POST, cut("4 s", "5 s"), crash)
    assert (row["outcome"] in (outcome, "completed"), there["host"], there["state"]) == (True, "host-2", state)


PRE = {"max_rounds": 1, "at_round_cap": "stop-and-copy"}


@pytest.mark.parametrize(
    ("vm", "settings", "at"),
    [
        (BUSY, {}, "5 s"),  # a round
        (BUSY, {}, "500 ms"),  # before the first
        (writer(400_000_000, 256 << 20), PRE, "11 s"),  # it stands still, and what is left goes over
        ({**IDLE, "generation": "SEV", "memory": "64 MiB"}, {}, "1200 ms"),
    ],
)
def test_before_the_commit_point_the_machine_goes_on_at_its_source(
    vm: dict[str, Any], settings: dict[str, Any], at: str
) -> None:
    again = [move(to="host-2"), move(at="14 s", to="host-2")]
    faults, changes = (cut(at, "2 s"),), {"migrations": again, "duration": "60 s"}
    body = scenario(vms=[group("vm", **vm)], migration=settings, fabric=LINK, faults=list(faults), **changes)
    _, rows = play(body)
    assert outcomes(rows) == [("link down", "between host-1 and host-2"), ("completed", None)]
    broken = rows["migrations"][0]
    assert broken["ended_ns"] - broken["started_ns"] < 11 * S
    there = vm_row(rows)
    assert (there["host"], there["state"], there["faults"]) == ("host-2", "running", 0)


def test_the_link_of_a_host_that_takes_no_part_breaks_nothing() -> None:
    row, there = moved(BUSY, {}, cut("2 s", "10 s", "host-3"))
    same, _ = moved(BUSY, {}, cut("24 s", "0 s", "host-3"))
    assert (row, there["faults"]) == (same, 0)
