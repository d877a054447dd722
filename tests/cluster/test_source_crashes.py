"""A source that crashes takes with it what it had not sent, however far the move has come."""

from pathlib import Path
from typing import Any

import pytest
from test_broken_links import BUSY
from test_live_migration import move, outcomes, play, scenario, small_image  # noqa: F401
from test_post_copy import LINK, POST, group

from cluster.bench.faults import GENERATIONS, small_firmware
from cluster.bench.moving_machines import moving

_SLOW_LINK = {"link": "10 Mb/s"}
_QUICK = {"psp.send_update_ns_per_kib": 10240, "psp.receive_update_ns_per_kib": 10240}


def crash(host: str, at: str) -> dict[str, Any]:
    return {"kind": "host-crash", "host": host, "at": at}


@pytest.mark.parametrize(("host", "outcome"), [("host-1", "lost"), ("host-2", "target lost")])
@pytest.mark.parametrize("generation", [*GENERATIONS, "SEV_SNP by its handler"])
def test_what_was_not_sent_when_a_host_crashed_does_not_come(
    tmp_path: Path, generation: str, host: str, outcome: str
) -> None:
    body = moving(generation, small_firmware(tmp_path))
    fleet, rows = play(
        body | {
            "schema": 1, "name": "crashes", "seed": 1, "duration": "70 s", "fabric": _SLOW_LINK,
            "migrations": [{"vm": "vm", "at": "1 s", "to": "host-2"}], "faults": [crash(host, "30 s")],
            "migration": {"timeout_per_gib": "16 s", "at_timeout": "stop-and-copy"}, "costs": body["costs"] | _QUICK,
        }
    )  # fmt: skip
    (one,) = fleet.control.migrations.all
    assert (outcomes(rows)[0][0], one.history[-2][0], one.ended_ns) == (outcome, "stopped", 30 * 10**9)
    assert [row["state"] for row in rows["vms"]] == (["ended"] if host == "host-1" else ["running"])


@pytest.mark.parametrize("at_us", [1_001_000, 1_004_000, 1_012_000, 1_018_000, 1_022_000, 1_024_000, 1_026_000])
def test_a_machine_that_would_run_ahead_is_lost_with_its_source_at_any_time(at_us: int) -> None:
    _, rows = play(
        scenario(vms=[group("vm", **BUSY)], migration=POST, fabric=LINK, faults=[crash("host-1", f"{at_us} us")],
                 migrations=[move(to="host-2")], duration="3 s")
    )  # fmt: skip
    assert outcomes(rows)[0][0] == "lost"
    assert all(row["state"] == "ended" for row in rows.get("vms", []))


def test_nothing_is_sent_any_more_to_a_target_that_crashed_while_the_machine_was_being_stopped() -> None:
    body = {"vms": [group("vm", **BUSY)], "fabric": LINK, "migrations": [move(to="host-2")], "duration": "15 s"}
    whole, _ = play(scenario(**body))
    (before,) = whole.control.migrations.all
    paused_ns, stopped_ns = dict(before.history)["paused"], dict(before.history)["stopped"]
    assert paused_ns + 1000 < stopped_ns
    fleet, rows = play(scenario(**body, faults=[crash("host-2", f"{paused_ns + 1000} ns")]))
    (one,) = fleet.control.migrations.all
    assert outcomes(rows) == [("target lost", "host-2 had nothing of it any more")]
    assert [phase for phase, _ in one.history][-3:] == ["paused", "stopped", "aborted"]
    assert one.ended_ns == stopped_ns
    assert (one.final_bytes, one.flow) == (0, None)
    (row,) = rows["vms"]
    assert (row["host"], row["state"]) == ("host-1", "running")


def silent(host: str, at: str, lasts: str) -> dict[str, Any]:
    return {"kind": "messages", "host": host, "direction": "to", "at": at, "lasts": lasts, "lost": 1.0}


def test_a_machine_whose_memory_is_lost_is_ended_though_its_target_does_not_hear_of_it_at_once() -> None:
    """And does not move, before it is known to be gone."""
    fleet, rows = play(
        scenario(
            vms=[group("vm", **BUSY)], migration=POST, fabric=LINK, duration="9 s",
            faults=[crash("host-1", "5 s"), silent("host-2", "4950 ms", "1 s")],
            migrations=[move(to="host-2"), move(to="host-3", at="5500 ms"), move(to="host-3", at="8 s")],
        )
    )  # fmt: skip
    assert [one.outcome.value for one in fleet.control.migrations.all] == ["lost", "refused", "refused"]
    assert [one.reason for one in fleet.control.migrations.all][1:] == ["UNDER_WAY", "NO_SUCH_VM"]
    (there,) = rows["vms"]
    assert (there["host"], there["state"]) == ("host-2", "ended")
    assert 5.95 * 10**9 < fleet.control.migrations.all[0].ended_ns < 6.2 * 10**9
    assert not any(one.unanswered for one in fleet.control.migrations.all)
