"""Whenever the time for copying is over, what was not copied by then still goes over: nothing is left out."""

from typing import Any

import pytest
from test_live_migration import GIB, group, move, play, scenario, small_image, vm_row  # noqa: F401 - the fixture

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
    """Firmware sends 20 MB/s: of its first round a third in 10 s, whether the network has brought all of it or half."""
    row, rounds = moved("20 s", "stop-and-copy", "SEV", link)
    private_bytes = (512 - 30) * MIB  # Firmware carries none of the pool that the guest shares.
    assert rounds[0].size_bytes > 280 * MIB
    rest_s = private_bytes / _PSP_BYTES_PER_S - 10 + 64 * MIB / _PSP_BYTES_PER_S
    assert row["downtime_ns"] / 1e9 == pytest.approx(rest_s, rel=0.02)
