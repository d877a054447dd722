"""Post-copy: a VM runs at its target at once, waits for what it touches, and lives by both hosts until all is over."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_live_migration import FIRMWARE, IDLE, QUICK, group, move, outcomes, play, scenario, vm_row

from cluster.bench.faults import small_firmware
from cluster.hand_over import Report
from cluster.migration import Migration, MigrationOrder
from cluster.post_copy import paced
from cluster.precopy import Precopy, PrecopySettings, RoundCap, Verdict
from node.dirty_rates import Pool, Reads
from workloads.trace_player import pack_runs

GIB, S = 1 << 30, 10**9
LINK = {"link": "1 Gb/s"}
POST = {"mode": "post-copy"}


@pytest.fixture(scope="module", autouse=True)
def small_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    FIRMWARE[0] = str(small_firmware(tmp_path_factory.mktemp("firmware")))
    yield
    FIRMWARE[0] = "auto"


def writer(rate: int, size: int) -> dict[str, Any]:
    """A guest that writes a set all over at a rate."""
    parameters = {"fragments": pack_runs([(60_000, 100)]), "step_ms": 60_000, "working_set_bytes": 4096,
                  "touches_per_step": 1, "written_set_bytes": size, "written_bytes_per_s": rate}  # fmt: skip
    return {"vcpus": 1, "workload": "trace-player", "parameters": parameters}


def moved(vm: dict[str, Any], migration: dict[str, Any], **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    _, rows = play(scenario(vms=[group("vm", **vm)], migrations=[move()], migration=migration, fabric=LINK, **changes))
    (row,) = rows["migrations"]
    return row, vm_row(rows)


def test_a_vm_stands_still_for_the_fixed_parts_alone_however_fast_it_writes() -> None:
    row, there = moved(writer(400_000_000, 256 << 20), POST)
    assert (row["outcome"], there["host"], there["state"], there["faults"]) == ("completed", "host-2", "running", 0)
    assert 22e6 < row["downtime_ns"] < 27e6
    assert (row["rounds"], row["post_copy_bytes"]) == (1, GIB + 4096)
    # All of its memory goes over once, and no byte twice.
    assert row["post_copy_ns"] == pytest.approx(GIB / 125e6 * S, rel=0.01)
    assert row["bytes"] - row["final_bytes"] == row["post_copy_bytes"]


def test_what_it_waits_for_follows_from_how_it_touches_its_memory_and_is_over_when_all_is_there() -> None:
    row, slow = moved(writer(400_000_000, 256 << 20), POST, duration="40 s")
    _, free = moved(writer(400_000_000, 256 << 20), {"max_rounds": 1}, duration="40 s")
    took_s, lost_s = row["post_copy_ns"] / S, row["post_copy_faults"] * 200e-6
    # In the time in which it does not wait it touches as many pages as it waits for in the other.
    x = 326e6 * (took_s - lost_s) / (256 << 20)
    touched = 1 - (1 - math.exp(-x)) / x
    assert row["post_copy_faults"] == pytest.approx((256 << 20) / 4096 * touched, rel=0.05)
    assert 0.5 < lost_s / took_s < 0.95
    assert slow["instructions"] == pytest.approx(free["instructions"] * (1 - lost_s / 40), rel=0.02)


def test_pages_that_nobody_touches_cost_nobody_anything() -> None:
    assert moved(IDLE, POST)[0]["post_copy_faults"] <= 2  # One each of its vCPUs.


def test_faults_by_the_formula_are_those_of_a_sum_over_small_steps() -> None:
    settings = PrecopySettings(300_000_000, 30, RoundCap.ABORT, 0.0, 0.0)
    one = Precopy(4 * GIB, [Pool(GIB, 0.3 * GIB), Pool(GIB // 4, 8 * GIB)], settings, 0)
    took_s, steps, expected = 7.0, 20_000, 0.0
    for pool in (Pool(GIB, 0.3 * GIB), Pool(GIB // 4, 8 * GIB)):
        density = pool.write_bytes_per_s / pool.working_set_bytes
        for step in range(steps):
            t = (step + 0.5) * took_s / steps
            first = density * math.exp(-density * t) * (pool.working_set_bytes / 4096) * took_s / steps
            expected += first * (1 - t / took_s) * 0.5
    assert one.faults_while(2 * GIB, int(took_s * S)) == pytest.approx(expected, rel=1e-3)


def reader(size: int, touches: int = 1) -> dict[str, Any]:
    """A guest that reads a set all over and writes one page alone."""
    return writer(4096, 4096) | {"parameters": writer(4096, 4096)["parameters"] | {
        "working_set_bytes": size, "touches_per_step": touches, "written_bytes_per_s": 1,
    }}  # fmt: skip


def test_pages_that_are_only_read_are_waited_for_too() -> None:
    """At its TLB misses it comes to pages all over its set: of those so many are missing still."""
    share, pages = 0.001, (16 << 20) // 4096
    row, _ = moved(reader(16 << 20), POST, duration="20 s", costs={"migration.fresh_miss_share": share})
    _, free = moved(reader(16 << 20), {"max_rounds": 1}, duration="20 s")
    took_s = row["post_copy_ns"] / S
    pace = 1 - row["post_copy_faults"] * 200e-6 / took_s
    # One TLB miss in a thousand instructions, and of these one in a thousand for any page.
    x = pace * free["instructions"] / 19 * 1e-3 * share * took_s / pages
    assert row["post_copy_faults"] == pytest.approx(pages * (1 - (1 - math.exp(-x)) / x), rel=0.05)


def test_who_reads_nothing_and_whose_tlb_misses_are_for_hot_pages_waits_for_none() -> None:
    assert moved(reader(16 << 20, touches=0), POST)[0]["post_copy_faults"] <= 1
    hot = moved(reader(16 << 20), POST, costs={"migration.fresh_miss_share": 0.0})[0]
    assert hot["post_copy_faults"] <= 1
    assert moved(reader(16 << 20), POST)[0]["post_copy_faults"] == pytest.approx((16 << 20) // 4096, rel=0.01)


def test_what_is_only_read_came_with_the_first_round_where_there_was_one() -> None:
    switch = {"timeout_per_gib": "9 s", "at_timeout": "post-copy", "max_rounds": 100, "downtime_limit": "1 ms"}
    busy = reader(16 << 20)
    busy["parameters"] |= {"written_set_bytes": 64 << 20, "written_bytes_per_s": 400_000_000}
    only_writes = busy | {"parameters": busy["parameters"] | {"touches_per_step": 0}}
    (both, _), (written, _) = moved(busy, switch), moved(only_writes, switch)
    assert both["post_copy_bytes"] > 0
    assert both["rounds"] > 1
    assert both["post_copy_faults"] == written["post_copy_faults"] > 0


def test_what_is_written_and_read_in_one_set_is_touched_as_often_as_both() -> None:
    settings = PrecopySettings(300_000_000, 30, RoundCap.ABORT, 0.0, 0.0, fresh_miss_share=0.5)
    reads, writes = (Precopy(4 * GIB, [Pool(GIB, rate)], settings, 0) for rate in (0.1 * GIB, 0.3 * GIB))
    reads.reads = Reads((0.4 * GIB,), ())
    assert reads.faults_while(2 * GIB, 7 * S) == pytest.approx(writes.faults_while(2 * GIB, 7 * S))
    assert reads.missed_pages(2 * GIB, 3e9) == pytest.approx(writes.missed_pages(2 * GIB, 3e9))
    # Beside it 1 GiB of the 3 that nobody writes is read as well: as much as another pool of that size.
    reads.reads = Reads((0.4 * GIB,), ((GIB, 0.6 * GIB),))
    assert reads.faults_while(2 * GIB, 7 * S) == pytest.approx(2 * writes.faults_while(2 * GIB, 7 * S))
    # Two sets of which the 3 GiB hold half are there once, and either is read as fast as before.
    reads.reads = Reads((), ((3 * GIB, 0.3 * GIB),) * 2)
    over_one_another = reads.faults_while(2 * GIB, 7 * S)
    reads.reads = Reads((), ((3 * GIB, 0.6 * GIB),))
    assert over_one_another == pytest.approx(reads.faults_while(2 * GIB, 7 * S))


_SIZES = st.integers(1, 1024).map(lambda mib: mib << 20)
_RATES = st.floats(1e6, 1e13)


@given(
    pools=st.lists(st.tuples(_SIZES, _RATES), max_size=4), beside=st.lists(st.tuples(_SIZES, _RATES), max_size=4),
    missing=st.integers(0, GIB), rounds=st.booleans(), took_ns=st.integers(S // 10, 100 * S),
    ran_ns=st.integers(0, S),
)  # fmt: skip
def test_no_guest_waits_for_more_pages_than_are_missing(
    pools: list[tuple[int, float]], beside: list[tuple[int, float]], missing: int, rounds: bool, took_ns: int,
    ran_ns: int,
) -> None:  # fmt: skip
    settings = PrecopySettings(300_000_000, 30, RoundCap.ABORT, 0.0, 0.0)
    one = Precopy(GIB, [Pool(*pool) for pool in pools], settings, 0)
    if rounds:
        one.begin(0)
        one.round_done(S)
        one.break_off(0, 2 * S)
    else:
        one.break_off(0, 0)
    one.reads = Reads(tuple(rate for _, rate in pools), tuple(beside))
    most = missing / 4096 * (1 + 1e-6) + 1e-3
    assert 0 <= one.faults_while(missing, took_ns, touched_ns=ran_ns) <= most
    assert one.missed_pages(missing, ran_ns) <= most


@pytest.mark.parametrize(
    "switch", [{"max_rounds": 3, "at_round_cap": "post-copy"}, {"timeout_per_gib": "11 s", "at_timeout": "post-copy"}]
)
def test_a_pre_copy_that_does_not_converge_goes_over_to_post_copy(switch: dict[str, Any]) -> None:
    row, there = moved(writer(400_000_000, 256 << 20), switch)
    assert (row["outcome"], there["host"], there["faults"]) == ("completed", "host-2", 0)
    assert row["rounds"] >= 2
    assert row["downtime_ns"] < 27e6
    assert 0 < row["post_copy_bytes"] < 520 << 20


def test_what_is_missing_after_some_rounds_lies_where_the_guest_writes() -> None:
    """Memory that was sent long ago makes nobody wait for less: a machine three times as large waits for as much."""
    switch = {"max_rounds": 3, "at_round_cap": "post-copy"}
    small, large = (
        moved(writer(100_000_000, 256 << 20) | {"memory": memory}, switch, duration="60 s")[0]
        for memory in ("1 GiB", "3 GiB")
    )  # fmt: skip
    assert small["post_copy_bytes"] == pytest.approx(large["post_copy_bytes"], rel=0.1)
    assert small["post_copy_faults"] == pytest.approx(large["post_copy_faults"], rel=0.15)
    # Of the pages that it touches meanwhile this share is missing, and half of those have come before it gets there.
    touched = 89e6 * small["post_copy_ns"] / S / 4096
    missing = small["post_copy_bytes"] / (256 << 20)
    lost = small["post_copy_faults"] * 200e-6 / (small["post_copy_ns"] / S)
    assert small["post_copy_faults"] == pytest.approx(touched * (1 - lost) * missing / 2, rel=0.15)


def test_so_does_what_a_round_that_is_broken_off_has_not_sent_unless_it_is_the_first() -> None:
    settings = PrecopySettings(1, 30, RoundCap.ABORT, 0.0, 0.0)
    pool = Pool(GIB, 10 * GIB)
    first, later = (Precopy(4 * GIB, [pool], settings, 0) for _ in range(2))
    for one in first, later:
        one.begin(0)
    first.break_off(2 * GIB, S)
    assert later.round_done(S) is Verdict.NEXT
    later.restate([Pool(GIB, 0.0)], S)
    later.begin(S)
    later.break_off(GIB // 2, 2 * S)
    later.restate([pool], 2 * S)
    # The first pool is dirty all over; of the other half was sent, and nothing was written since.
    assert first.missed_pages(first.dirty_bytes(S), 0.0) == pytest.approx(GIB / 4096, rel=0.01)
    assert later.missed_pages(GIB // 2, 0.0) == pytest.approx(GIB / 2 / 4096, rel=0.01)


def test_a_sev_guest_is_copied_before_for_its_pages_come_in_firmware_s_order() -> None:
    row, _ = moved({**IDLE, "generation": "SEV", "memory": "64 MiB"}, POST, costs=QUICK)
    assert (row["outcome"], row["post_copy_bytes"], row["rounds"]) == ("completed", 0, 1)


@pytest.mark.parametrize(
    ("crash", "host", "outcome", "state"),
    [
        ("5 s", "host-1", "lost", "ended"),
        ("5 s", "host-2", "lost", "ended"),
        ("12 s", "host-1", "completed", "running"),
    ],
)
def test_a_vm_without_all_of_its_memory_lives_by_both_hosts(crash: str, host: str, outcome: str, state: str) -> None:
    fault = {"kind": "host-crash", "host": host, "at": crash}
    row, there = moved(writer(100_000_000, 64 << 20), POST, faults=[fault])
    assert row["outcome"] == outcome
    assert (there["host"], there["state"]) == ("host-2", state)


def test_where_the_run_ends_before_all_is_there_the_vm_is_at_its_target_once() -> None:
    _, rows = play(
        scenario(vms=[group("vm", **writer(100_000_000, 64 << 20))], migrations=[move()], migration=POST, fabric=LINK,
                 duration="4 s")
    )  # fmt: skip
    assert outcomes(rows) == [("unfinished", None)]
    assert (vm_row(rows)["host"], vm_row(rows)["state"]) == ("host-2", "running")


def drained_beside(host: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A drain while a VM that runs at its target already has pages at its source: the drain's row, and the moves."""
    _, rows = play(
        scenario(
            vms=[group("vm", **writer(400_000_000, 256 << 20))], migrations=[move(to="host-2")], migration=POST,
            fabric=LINK, drains=[{"host": host, "at": "6 s"}], duration="60 s",
        )
    )  # fmt: skip
    (drain,) = rows["drains"]
    first = rows["migrations"][0]
    assert first["ended_ns"] - first["post_copy_ns"] < drain["asked_ns"] < first["ended_ns"]
    return drain, rows["migrations"]


def test_a_source_is_empty_when_the_last_page_has_left_it() -> None:
    drain, (left,) = drained_beside("host-1")
    assert (drain["result"], drain["ended_ns"]) == ("complete", left["ended_ns"])


def test_a_drained_target_waits_for_the_last_page_and_moves_the_vm_on_once() -> None:
    drain, moves = drained_beside("host-2")
    assert [(one["destination"], one["outcome"]) for one in moves] == [("host-2", "completed"), ("host-1", "completed")]
    assert (drain["result"], drain["ended_ns"]) == ("complete", moves[1]["ended_ns"])


def late(lasts: str, at: str, **changes: Any) -> dict[str, Any]:
    return {"kind": "messages", "host": "host-2", "direction": "to", "at": at, "lasts": lasts} | changes


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([late("3 s", "9 s", lost=1.0)], id="that all is there is lost"),
        pytest.param([late("100 ms", "1026 ms", lost=1.0)], id="that it waits is lost"),
        pytest.param(
            [late("20 s", "8500 ms", late="6 s"), {"kind": "link", "host": "host-1", "at": "9 s", "lasts": "100 ms"}],
            id="that it waits overtakes that all is there",
        ),
    ],
)
def test_what_was_said_last_of_how_fast_a_vm_runs_holds_in_the_end(faults: list[dict[str, Any]]) -> None:
    post, busy = POST | {"recover_after": "0 s"}, writer(100_000_000, 64 << 20)
    _, free = moved(busy, {"max_rounds": 1}, duration="40 s")
    _, whole = moved(busy, post, duration="40 s")
    fleet, rows = play(
        scenario(vms=[group("vm", **busy)], migrations=[move(to="host-2")], migration=post, fabric=LINK,
                 faults=faults, duration="40 s", seed=2)
    )  # fmt: skip
    (row,) = rows["migrations"]
    assert row["outcome"] == "completed"
    assert not fleet.control.migrations.all[0].unanswered
    # It loses what it waits for and at the most some seconds besides, until it hears the last word.
    lost_s = 40 * (1 - vm_row(rows)["instructions"] / free["instructions"])
    expected_s = 40 * (1 - whole["instructions"] / free["instructions"])
    assert expected_s - 0.2 < lost_s < expected_s + 8


def test_only_the_answer_to_the_last_word_on_its_pace_is_one() -> None:
    one = Migration(0, MigrationOrder("vm", "host-2"), 0)
    one.pace, one.unanswered = (7, 0.5), frozenset({Report.PACED})
    live: Any = None  # Nothing is asked of it.
    for since in (6, 8):
        paced(live, one, 9, since)
        assert one.unanswered
    paced(live, one, 9, 7)
    assert not one.unanswered
