"""Pages of zeros in pre-copy: looked for where pages hold bytes, taken for a share where they are only accounted."""

from collections.abc import Mapping
from typing import Any

import pytest
from test_live_migration import BUSY, FAST, IDLE, LINK, QUICK, group, play, scenario, small_image, took_s  # noqa: F401
from test_live_migration import move as planned

from cluster.precopy import PrecopySettings, RoundCap
from node.host import Host
from node.operations import Write
from workloads.trace_player import pack_runs

MIB, GIB = 1 << 20, 1 << 30
PAGE_BYTES = 4096


def moved(
    generation: str = "PLAIN", memory: str = "1 GiB", at_start: Any = None, work: Mapping[str, Any] = IDLE,
    **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    fabric = settings.pop("fabric", {})
    hosts = [{"name": "host", "product": "Milan", "count": 2, "memory": "16 GiB",
              "mode": "sme" if generation == "SME" else "none"}]  # fmt: skip
    vm = group("vm", **{**work, "vcpus": 1}, generation=generation, memory=memory)
    body = scenario(
        hosts=hosts, vms=[vm], migrations=[planned()],
        migration=settings, fabric=fabric, duration="4 s", costs=QUICK,
    )  # fmt: skip
    (row,) = play(body, at_start=at_start)[1]["migrations"]
    assert row["outcome"] == "completed"
    return row


def test_a_share_of_zeros_is_neither_sent_nor_waited_for() -> None:
    plain, half = moved(), moved(zero_pages=0.5)
    assert (plain["zero_bytes"], half["rounds"]) == (0, plain["rounds"])
    # Of what is only accounted; a few pages are held in any case.
    assert half["zero_bytes"] == pytest.approx(GIB / 2, rel=0.02)
    assert half["bytes"] == plain["bytes"], "all of it has gone over, one way or the other"
    news = half["zero_bytes"] // PAGE_BYTES * 8
    assert half["wire_bytes"] == pytest.approx(plain["wire_bytes"] - half["zero_bytes"] + news, abs=PAGE_BYTES)
    shorter = took_s(plain) - took_s(half)
    assert shorter == pytest.approx((half["zero_bytes"] - news) / LINK, rel=0.02)
    assert half["downtime_ns"] == pytest.approx(plain["downtime_ns"], rel=0.02)


def test_what_is_written_again_is_looked_for_zeros_no_more() -> None:
    stopped = {"work": BUSY, "max_rounds": 4, "downtime_limit": "1 ms", "at_round_cap": "stop-and-copy"}
    plain, half = moved(**stopped), moved(**stopped, zero_pages=0.5)
    assert min(plain["rounds"], half["rounds"]) > 2
    assert half["zero_bytes"] == pytest.approx(GIB / 2, rel=0.07)
    news = half["zero_bytes"] // PAGE_BYTES * 8
    sent = half["wire_bytes"] / half["bytes"], plain["wire_bytes"] / plain["bytes"]
    assert half["wire_bytes"] == pytest.approx(half["bytes"] * sent[1] - half["zero_bytes"] + news, abs=16 * PAGE_BYTES)


def test_what_is_left_is_held_against_what_the_network_carries_not_against_zeros() -> None:
    """A machine that writes half as fast as that would stand still for three times as long as it may, at once."""
    work = {"workload": "trace-player", "parameters": {
        "fragments": pack_runs([(60_000, 100)]), "step_ms": 1000, "touches_per_step": 0,
        "written_set_bytes": 64 * MIB, "written_bytes_per_s": 60_000_000,
    }}  # fmt: skip
    row = moved(work=work, zero_pages=0.95, downtime_limit="60 ms", fabric={"link": "1 Gb/s"})
    assert row["rounds"] > 2
    assert row["downtime_ns"] < 64e6, "but for what is said to and fro"
    assert row["expected_downtime_ns"] == pytest.approx(row["downtime_ns"], rel=0.15)


def test_what_is_all_zeros_takes_as_long_as_to_look_through_it() -> None:
    row = moved(zero_pages=1.0, connections=16, fabric=FAST)
    # 18 GiB/s is the cost table's.
    assert took_s(row) == pytest.approx(1.004 / 18 + 0.022 + 0.004, rel=0.1)
    assert row["wire_bytes"] < 0.02 * GIB


@pytest.mark.parametrize("generation", ["PLAIN", "SME"])
def test_of_pages_that_hold_bytes_the_source_sees_which_are_zero(generation: str) -> None:
    def filled(hosts: Mapping[str, Host]) -> None:
        board = hosts["host-1"].board
        vmcb, place = board.vmcb("vm", 0), hosts["host-1"].guests["vm"].spec.memory.placement("vm", 0, 0)
        end = place.base_gpa + place.length
        contents = bytes(3 * MIB), b"\x5a" * MIB, b"\0" * (PAGE_BYTES - 1) + b"\1"
        for number, data in enumerate(contents, 1):
            gpa = end - number * 4 * MIB
            assert board.execute_guest(vmcb, (Write(gpa, data),)) == (None,)

    none, some = (moved(generation, "64 MiB", start, zero_pages=0.0) for start in (None, filled))
    assert (none["zero_bytes"], some["zero_bytes"]) == (0, 3 * MIB)
    saved = none["wire_bytes"] - some["wire_bytes"]
    assert saved == pytest.approx(3 * MIB - 3 * MIB // PAGE_BYTES * 8, abs=8), "written less in a shorter time"
    assert moved(generation, "64 MiB", filled)["zero_bytes"] == 0, "who was not told to look finds nothing"


@pytest.mark.parametrize("generation", ["SEV", "SEV_ES"])
def test_what_only_firmware_reads_has_no_zeros_for_its_host(generation: str) -> None:
    asked, plain = (moved(generation, "64 MiB", zero_pages=share) for share in (0.9, None))
    assert asked == plain


def test_what_is_written_is_sent_whole_and_a_machine_that_runs_ahead_pulls_no_zeros() -> None:
    at_once = {"mode": "post-copy"}
    ahead, half = moved(**at_once), moved(**at_once, zero_pages=0.5)
    assert half["post_copy_bytes"] == ahead["post_copy_bytes"]
    assert half["post_copy_ns"] == pytest.approx(ahead["post_copy_ns"] / 2, rel=0.05)


def test_zeros_are_whole_pages_and_at_most_all_of_what_is_accounted() -> None:
    settings = PrecopySettings(1, 1, RoundCap.ABORT, 0.0, 0.0, zero_share=0.3, zero_page_wire_bytes=8.0)
    assert settings.zeros_among(10 * PAGE_BYTES) == 3 * PAGE_BYTES
    assert settings.zeros_among(3 * PAGE_BYTES) == 0
    assert settings.zeros_among(-PAGE_BYTES) == 0
    assert settings.without_zeros(10 * PAGE_BYTES, 4 * PAGE_BYTES, 0.5) == (3 * PAGE_BYTES + 32, 0.0)
