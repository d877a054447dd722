"""What a copy that was broken off has sent is what the link carried until then, and no more."""

from __future__ import annotations

from typing import Any

import pytest
from test_live_migration import LINK, group, move, play, scenario, small_image  # noqa: F401 - the fixture
from test_post_copy import writer

from cluster.hand_over import Phase

SLOW = {"link": "1 Gb/s"}
SLOW_LINK = LINK / 10
WRITER = writer(400_000_000, 32 << 20) | {"memory": "128 MiB"}
IDLE = {"workload": "trace-player", "parameters": {"working_set_bytes": 4096, "touches_per_step": 1}}
STOP = {"max_rounds": 2, "at_round_cap": "stop-and-copy"}


def cut(**changes: Any) -> tuple[dict[str, Any], dict[Phase, int]]:
    """The row of one move that is broken off, and when it came to each phase."""
    fleet, rows = play(scenario(**changes))
    (row,) = rows["migrations"]
    return row, dict(fleet.control.migrations.all[0].history)


@pytest.mark.parametrize("ratio", [None, 0.5])
def test_a_round_that_is_called_off_counts_as_far_as_it_got(ratio: float | None) -> None:
    settings = {} if ratio is None else {"compression": ratio}
    row, _ = cut(vms=[group("vm", **IDLE)], migration=settings, duration="3 s", fabric=SLOW,
                 migrations=[move(to="host-2", cancel_after="300 ms")])  # fmt: skip
    assert (row["outcome"], row["rounds"]) == ("cancelled", 0)
    moved = (row["ended_ns"] - row["started_ns"] - row["setup_ns"]) / 1e9 * SLOW_LINK
    assert row["wire_bytes"] == pytest.approx(moved, rel=1e-3)
    assert row["bytes"] == row["final_bytes"] == pytest.approx(moved / (ratio or 1.0), rel=1e-3)


def test_a_run_that_ends_in_a_round_counts_it_the_same_way() -> None:
    fleet, rows = play(scenario(vms=[group("vm", **IDLE)], duration="1300 ms", migrations=[move(to="host-2")]))
    (row,) = rows["migrations"]
    one = fleet.control.migrations.all[0]
    assert one.precopy is not None
    moved = (1.3e9 - row["started_ns"] - row["setup_ns"]) / 1e9 * LINK
    assert row["bytes"] == row["final_bytes"] == row["wire_bytes"] == pytest.approx(moved, rel=1e-3)


@pytest.mark.parametrize("kind", ["link", "host-crash", "control-plane-crash"])
def test_a_last_copy_that_breaks_off_counts_as_far_as_it_got(kind: str) -> None:
    common = {"vms": [group("vm", **WRITER)], "fabric": SLOW, "migration": STOP, "migrations": [move(to="host-2")],
              "duration": "5 s"}  # fmt: skip
    whole, phases = cut(**common)
    assert whole["outcome"] == "completed"
    stopped_ns = phases[Phase.STOPPED]
    at_ns = stopped_ns + 100_000_000
    assert at_ns < phases[Phase.COMMITTED] if Phase.COMMITTED in phases else whole["ended_ns"]
    fault = {"kind": kind, "at": f"{at_ns} ns"}
    fault |= {"link": {"host": "host-2", "lasts": "1 s"}, "host-crash": {"host": "host-2"}}.get(kind, {})
    row, _ = cut(**common, faults=[fault])
    assert row["outcome"] in ("link down", "target lost", "control plane restarted")
    moved = 0.1 * SLOW_LINK
    assert moved < whole["final_bytes"]
    assert row["final_bytes"] == pytest.approx(moved, rel=1e-2)
    assert row["bytes"] == whole["bytes"] - whole["final_bytes"] + row["final_bytes"]
    assert row["wire_bytes"] == pytest.approx(row["bytes"], abs=2)


def test_a_last_copy_that_never_began_has_sent_nothing() -> None:
    """The link breaks after the last round, and is down when the machine stands still."""
    common = {"vms": [group("vm", **WRITER)], "fabric": SLOW, "migration": STOP, "migrations": [move(to="host-2")],
              "duration": "5 s"}  # fmt: skip
    whole, phases = cut(**common)
    paused_ns, stopped_ns = phases[Phase.PAUSED], phases[Phase.STOPPED]
    fault = {"kind": "link", "host": "host-2", "at": f"{(paused_ns + stopped_ns) // 2} ns", "lasts": "1 s"}
    row, _ = cut(**common, faults=[fault])
    assert (row["outcome"], row["final_bytes"]) == ("link down", 0)
    assert row["bytes"] == row["wire_bytes"] == whole["bytes"] - whole["final_bytes"]


def test_what_came_behind_a_machine_that_ran_ahead_is_what_the_link_brought() -> None:
    common = {"vms": [group("vm", **WRITER)], "fabric": SLOW, "migration": {"mode": "post-copy"},
              "migrations": [move(to="host-2")]}  # fmt: skip
    _, phases = cut(**common, duration="5 s")
    draining_ns = phases[Phase.DRAINING]
    end_ns = draining_ns + 500_000_000
    row, _ = cut(**common, duration=f"{end_ns} ns")
    assert row["post_copy_bytes"] == pytest.approx(0.5 * SLOW_LINK, rel=1e-2)
    assert row["bytes"] == row["final_bytes"] + row["post_copy_bytes"]
    # The control plane crashes: what had come stays there, and is not sent again.
    crash = {"kind": "control-plane-crash", "at": f"{draining_ns + 200_000_000} ns"}
    row, _ = cut(**common, duration=f"{end_ns} ns", faults=[crash])
    assert row["post_copy_bytes"] == pytest.approx(0.5 * SLOW_LINK, rel=1e-2)
    whole, _ = cut(**common, duration="5 s", faults=[crash])
    assert whole["post_copy_bytes"] == whole["bytes"] - whole["final_bytes"]
