"""Whenever the time for copying is over, what was not copied by then still goes over: nothing is left out."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_live_migration import GIB, IDLE, group, move, play, scenario, small_image, vm_row  # noqa: F401 - the fixture
from test_post_copy import writer

from workloads.trace_player import pack_runs

MIB = 1 << 20
LINK = 125e6
_PSP_BYTES_PER_S = 20e6
_COSTS = {f"psp.{way}_update_ns_per_kib": 1024 / _PSP_BYTES_PER_S * 1e9 for way in ("send", "receive")}
_BUSY = {
    "fragments": pack_runs([(600_000, 100)]), "touches_per_step": 0, "step_ms": 1000,
    "written_set_bytes": 64 * MIB, "written_bytes_per_s": 200_000_000,
}  # fmt: skip


def moved(after: str, then: str, generation: str = "PLAIN", link: str = "1 Gb/s") -> tuple[dict[str, Any], list[Any]]:
    """A machine of 512 MiB whose copying may take so long: the row of its move, and the rounds."""
    vm = group("vm", generation=generation, vcpus=1, memory="512 MiB", workload="trace-player", parameters=_BUSY)
    fleet, rows = play(scenario(
        vms=[vm], migrations=[move(to="host-2")], duration="60 s", fabric={"link": link}, costs=_COSTS,
        migration={"timeout_per_gib": after, "at_timeout": then, "downtime_limit": "30 ms", "max_rounds": 100},
    ))  # fmt: skip
    assert (vm_row(rows)["host"], vm_row(rows)["faults"]) == ("host-2", 0)
    (one,) = fleet.control.migrations.all
    assert one.precopy is not None
    return rows["migrations"][0], list(one.precopy.rounds)


@pytest.mark.parametrize("then", ["stop-and-copy", "post-copy"])
def test_before_the_first_byte_all_memory_is_left(then: str) -> None:
    row, rounds = moved("1 ms", then)
    assert [one.size_bytes for one in rounds] == [0]
    assert rounds[0].began_ns == rounds[0].ended_ns
    left = row["post_copy_bytes"] if then == "post-copy" else row["final_bytes"]
    assert left == pytest.approx(512 * MIB, rel=0.001)
    stands_still = 0 if then == "post-copy" else 512 * MIB / LINK * 1e9
    assert row["downtime_ns"] == pytest.approx(stands_still, rel=0.01, abs=30e6)


@pytest.mark.parametrize("then", ["stop-and-copy", "post-copy"])
def test_between_two_rounds_what_the_next_was_to_send_is_left(then: str) -> None:
    _, rounds = moved("40 s", "stop-and-copy")
    first, second = rounds[:2]
    assert second.began_ns - first.ended_ns > 4_000_000, "the dirty log is read"
    asked_ns = 1_001_000_000
    between_ns = (first.ended_ns + second.began_ns) // 2 - asked_ns
    row, rounds = moved(f"{between_ns * GIB // (512 * MIB + 4096)} ns", then)
    assert [one.size_bytes for one in rounds] == [first.size_bytes, 0]
    left = row["post_copy_bytes"] if then == "post-copy" else row["final_bytes"]
    # Writing goes on over pages most of which are dirty already.
    assert first.left_bytes <= left < first.left_bytes + 4 * MIB
    if then == "stop-and-copy":
        assert row["downtime_ns"] == pytest.approx(left / LINK * 1e9, abs=40e6)


@pytest.mark.parametrize("link", ["10 Gb/s", "240 Mb/s"])
def test_what_firmware_has_not_sent_is_sent_while_the_guest_stands_still(link: str) -> None:
    """Firmware sends 20 MB/s: in 10 s two fifths of its first round, whether the network has brought all of it or half.

    Of the pages that are written all the time it had sent as many, and has those to send again; the others once.
    """
    row, rounds = moved("20 s", "stop-and-copy", "SEV", link)
    private_bytes = (512 - 30) * MIB  # Firmware carries none of the pool that the guest shares.
    sent = 10 * _PSP_BYTES_PER_S / private_bytes
    assert rounds[0].size_bytes == pytest.approx(sent * 512 * MIB, rel=0.01)
    rest_s = private_bytes / _PSP_BYTES_PER_S - 10 + sent * 64 * MIB / _PSP_BYTES_PER_S
    assert row["downtime_ns"] / 1e9 == pytest.approx(rest_s, rel=0.01)
    assert row["expected_downtime_ns"] == pytest.approx(row["downtime_ns"], rel=0.05)
    assert row["bytes"] == row["wire_bytes"] == pytest.approx((512 + sent * 64) * MIB, rel=0.01)


FIXED = 22e6
"""The parts of a downtime that are always there (ns): stop and resume."""


def row_of(vm: dict[str, Any], migration: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The row of the one move of a VM of 1 GiB over 1 Gb/s, which goes on at the target."""
    values = {"fabric": {"link": "1 Gb/s"}, "duration": "50 s"} | changes
    _, rows = play(scenario(vms=[group("vm", **vm)], migrations=[move()], migration=migration, **values))
    (row,), there = rows["migrations"], vm_row(rows)
    assert (row["outcome"], there["host"], there["state"], there["faults"]) == ("completed", "host-2", "running", 0)
    return dict(row)


@pytest.mark.parametrize("then", ["stop-and-copy", "post-copy"])
@pytest.mark.parametrize(
    ("written_mib", "after", "left_mib"),
    [
        pytest.param(256, "8650 ms", 256, id="between two rounds, of a set that all was written"),
        pytest.param(256, "4300 ms", 256 + 768 / 2, id="in the first round, of which half went"),
        pytest.param(900, "4300 ms", 900 + 124 / 2, id="of a machine that writes nearly all of its memory"),
    ],
)
def test_a_page_that_was_not_sent_and_is_written_is_sent_once(
    written_mib: int, after: str, left_mib: float, then: str
) -> None:
    """The first round of a GiB takes 8,590 ms; then the log is read for 120."""
    row = row_of(
        writer(4_000_000_000, written_mib * MIB), {"timeout_per_gib": after, "at_timeout": then},
        costs={"migration.round_ns_per_gib": 120e6},
    )  # fmt: skip
    left_bytes = row["post_copy_bytes"] if then == "post-copy" else row["final_bytes"]
    assert left_bytes == pytest.approx(left_mib * MIB, rel=0.005)
    stands_still_ns = 0 if then == "post-copy" else left_mib * MIB / LINK * 1e9
    assert row["downtime_ns"] == pytest.approx(stands_still_ns + FIXED, rel=0.005, abs=5e6)
    assert row["expected_downtime_ns"] == pytest.approx(left_mib * MIB / LINK * 1e9 + FIXED, rel=0.01)


@pytest.mark.parametrize(
    ("send", "receive"), [pytest.param(25e6, 100e6, id="source"), pytest.param(100e6, 25e6, id="target")]
)
@pytest.mark.parametrize("link", ["10 Gb/s", "1 Gb/s"])
def test_the_slower_of_both_firmwares_sets_the_pace_to_the_last_page(send: float, receive: float, link: str) -> None:
    """Time is over after 1 s, in which 25 MB of 240 MiB have gone through both; all the rest waits for that one."""
    costs = {"psp.send_update_ns_per_kib": 1024e9 / send, "psp.receive_update_ns_per_kib": 1024e9 / receive}
    guest, private = {**IDLE, "generation": "SEV", "memory": "256 MiB"}, 240 * MIB
    stop = {"timeout_per_gib": "4 s", "at_timeout": "stop-and-copy"}
    row = row_of(guest, stop, fabric={"link": link}, costs=costs)
    assert row["downtime_ns"] == pytest.approx((private / 25e6 - 1) * 1e9, rel=0.04)
    assert (row["rounds"], row["bytes"]) == (1, pytest.approx(256 * MIB, rel=0.001))
    assert row["wire_bytes"] == row["bytes"]


@pytest.mark.parametrize(("after", "went_s"), [("1 ms", 0.0), ("1004 ms", 1.0)])
def test_pages_of_zeros_that_were_not_sent_cost_the_wire_as_little_as_in_a_round(after: str, went_s: float) -> None:
    """Of a GiB three quarters are zeros, a dozen bytes each; the dirty log of a GiB is on after 4 ms."""
    zeros, wire_s = {"timeout_per_gib": after, "zero_pages": 0.75}, GIB / 4 / LINK * 1.01
    stopped = row_of(IDLE, zeros | {"at_timeout": "stop-and-copy"})
    assert stopped["downtime_ns"] == pytest.approx((wire_s - went_s) * 1e9 + FIXED, rel=0.02)
    ahead = row_of(IDLE, zeros | {"at_timeout": "post-copy"})
    assert ahead["post_copy_ns"] == pytest.approx((wire_s - went_s) * 1e9, rel=0.03)
    assert stopped["wire_bytes"] == pytest.approx(ahead["wire_bytes"], rel=0.001)


@settings(max_examples=10, deadline=None)
@given(
    after_ms=st.integers(1, 12_000), then=st.sampled_from(["stop-and-copy", "post-copy"]), zeros=st.booleans(),
    written_mib=st.integers(1, 800), sealed=st.booleans(),
)  # fmt: skip
def test_whenever_time_is_over_all_memory_goes_over_at_least_once_and_none_faster_than_the_link_is(
    after_ms: int, then: str, zeros: bool, written_mib: int, sealed: bool
) -> None:
    memory = {"memory": "128 MiB", "generation": "SEV"} if sealed else {}
    vm = writer(400_000_000, written_mib % 40 * MIB + 4096 if sealed else written_mib * MIB) | memory
    migration = {"timeout_per_gib": f"{after_ms} ms", "at_timeout": "stop-and-copy" if sealed else then}
    row = row_of(vm, migration | ({"zero_pages": 0.5} if zeros else {}), costs=_COSTS)
    assert row["bytes"] >= (128 * MIB if sealed else GIB)
    assert row["wire_bytes"] >= row["bytes"] - row["zero_bytes"]
    stood_still_ns = (row["final_bytes"] - row["zero_bytes"]) / (_PSP_BYTES_PER_S / 0.75 if sealed else LINK) * 1e9
    assert row["downtime_ns"] >= stood_still_ns
