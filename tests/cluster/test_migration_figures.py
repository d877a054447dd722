"""Live figures of migrations say what is so, and looking at them changes no result."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from test_live_migration import BUSY, IDLE, group, move, scenario

from cluster.coordinator import Coordinator
from cluster.entity import Message
from cluster.fleet import build_fleet
from cluster.host_entity import build_host
from cluster.inline_layout import InlineLayout
from cluster.migration_figures import (
    BOUNDS_S,
    DOWNTIME_BOUNDS_S,
    EndedMove,
    FinalMove,
    LastDowntime,
    MigrationFigures,
    MoveBooks,
    Times,
)
from cluster.migration_rows import migration_row
from cluster.scenario import Scenario

MIB = 1 << 20


def play(body: dict[str, Any], *, looks: bool) -> tuple[list[tuple[int, MigrationFigures]], list[dict[str, Any]]]:
    """Figures after every step of the control plane and a second later, and the rows in the end."""
    chosen = Scenario.parse(body)
    fleet, seen = build_fleet(chosen), []
    layout = InlineLayout()
    layout.start(build_host, [(order.spec.name, order.pack()) for order in fleet.orders])
    live, step = fleet.control.migrations, fleet.control.step
    books = MoveBooks(live)

    class Watched:
        next_event_ns = staticmethod(fleet.control.next_event_ns)

        @staticmethod
        def step(now_ns: int, messages: Sequence[Message]) -> tuple[Sequence[Message], int]:
            told = step(now_ns, messages)
            if looks:
                seen.extend((at_ns, books.at(at_ns)) for at_ns in (now_ns, now_ns + 10**9))
                assert seen[-1][1] == MoveBooks(live).at(now_ns + 10**9), "as who looks for the first time sees it"
            return told

    Coordinator(layout, Watched(), chosen.control_plane_latency, chosen.duration).run()
    return seen, [migration_row(one) for one in live.all]


def test_looking_changes_nothing_and_figures_add_up() -> None:
    body = scenario(
        vms=[group("vm", **IDLE, memory="512 MiB"), group("busy", **BUSY, memory="512 MiB")], duration="14 s",
        migrations=[move(), move("busy")], fabric={"link": "1 Gb/s"}, migration={"per_host": 1, "max_rounds": 3},
    )  # fmt: skip
    seen, rows = play(body, looks=True)
    assert play(body, looks=False)[1] == rows
    assert [row["outcome"] for row in rows] == ["completed", "round cap"]
    waits = [figures for at_ns, figures in seen[::2] if 10**9 < at_ns < rows[0]["ended_ns"]]
    assert {figures.phases["pending"] for figures in waits} == {1}
    busy = [figures.moves[0] for _, figures in seen if figures.moves and figures.moves[0].vm == "busy"]
    first = [one for one in busy if not one.rounds]
    assert {one.processed_bytes for one in first} >= {0, 125 * 10**6}
    # What is sent and what is left are the memory; it goes at the link's rate.
    assert all(one.processed_bytes + one.remaining_bytes == one.total_bytes for one in first)
    assert {one.transfer_bytes_per_s for one in first} == {0.0, 125e6}  # The dirty log is turned on first.
    assert seen[-1][1].outcomes == {"completed": 1, "round cap": 1}
    last = seen[-1][1]
    # Each began when its first byte could go, and the first runs where it went, the second where it was.
    began_s = [(row["started_ns"] + row["setup_ns"]) / 1e9 for row in rows]
    assert set(last.ended) == {
        EndedMove(row["vm"], f"migration-{row['migration']}", node, began, row["ended_ns"] / 1e9, succeeded=succeeded)
        for row, began, node, succeeded in zip(rows, began_s, ("host-2", "host-1"), (True, False), strict=True)
    }
    assert last.final == (
        FinalMove("busy", "migration-1", "round cap", "after 3 rounds"), FinalMove("vm", "migration-0", "completed", "")
    )  # fmt: skip
    assert last.bound == {("vm", "host-2"): False, ("busy", "host-1"): False}
    downtime = rows[0]["downtime_ns"] / 1e9
    assert last.last_downtimes == (LastDowntime("vm", "host-1", "host-2", downtime),)
    assert last.downtimes == {
        "host-1": Times(tuple(int(downtime <= bound) for bound in DOWNTIME_BOUNDS_S), 1, downtime)
    }
    took_s = [(row["ended_ns"] - row["ordered_ns"]) / 1e9 for row in rows]
    for phase, took in zip(("Succeeded", "Failed"), took_s, strict=True):
        found = last.transitions[phase]
        assert (found.count, found.sum_s) == (1, took)
        assert found.within == tuple(int(took <= bound) for bound in BOUNDS_S)
    assert (last.transitions["Pending"].count, last.transitions["Pending"].sum_s) == (2, 0.0)
    # The second waited in line until the first was over, which did not wait; each copies from a little later on.
    scheduling, running = (last.transitions[name] for name in ("Scheduling", "Running"))
    assert (scheduling.count, running.count) == (2, 2)
    assert scheduling.sum_s == took_s[0] < running.sum_s < sum(took_s)
    assert last.places == {"vm": "host-2", "busy": "host-1"}
    assert {one.expected_downtime_s for one in first} == {None}, "nothing was sent yet"
    late = busy[-1]
    # It writes 64 MiB all over in less than a round: that much is dirty after it.
    assert late.dirty_bytes_per_s == pytest.approx(125e6, rel=0.05)
    assert late.expected_downtime_s == pytest.approx(64 * MIB / 125e6 + 0.022, rel=0.05)
    assert rows[1]["remaining_bytes"] == pytest.approx(64 * MIB, rel=0.01)
    assert rows[1]["expected_downtime_ns"] == pytest.approx(late.expected_downtime_s * 1e9, rel=0.05)


def test_the_transfer_rate_is_what_the_link_carries_though_memory_goes_faster_where_it_is_compressed() -> None:
    body = scenario(
        vms=[group("vm", **IDLE, memory="512 MiB")], duration="8 s", migrations=[move()], fabric={"link": "1 Gb/s"},
        migration={"zero_pages": 0.5},
    )  # fmt: skip
    seen, _ = play(body, looks=True)
    assert {one.transfer_bytes_per_s for _, figures in seen for one in figures.moves} == {0.0, 125e6}


def test_a_machine_that_is_throttled_is_slowed_by_that_and_by_what_the_dirty_log_takes() -> None:
    seen, (row,) = play(
        scenario(
            vms=[group("vm", **BUSY, memory="512 MiB")], duration="14 s", migrations=[move()],
            fabric={"link": "1 Gb/s"}, migration={"max_rounds": 9, "auto_converge": True, "downtime_limit": "30 ms"},
            costs={"migration.dirty_fault_ns": 20_000},
        ),
        looks=True,
    )  # fmt: skip
    every = [one for _, figures in seen for one in figures.moves]
    assert (row["outcome"], row["rounds"]) == ("round cap", 9)
    assert {round(one.throttle_ratio, 6) for one in every} >= {0.0, 0.2, 0.3}
    assert all(one.slowed_ratio > one.throttle_ratio for one in every if one.rounds)
    assert {one.slowed_ratio for one in every if not one.rounds} == {0.0}
    assert {one.sent_bytes["stop-and-copy"] for one in every} == {0}
    assert every[-1].sent_bytes["pre-copy"] == every[-1].processed_bytes <= row["bytes"]


def test_figures_of_a_machine_that_runs_ahead_are_of_what_is_still_to_come() -> None:
    """At 125 MB a second, but while its link is down."""
    down = {"kind": "link", "host": "host-1", "at": "3 s", "lasts": "2 s"}
    seen, (row,) = play(
        scenario(
            vms=[group("vm", **IDLE, memory="512 MiB")], duration="12 s", migrations=[move()], faults=[down],
            fabric={"link": "1 Gb/s"}, migration={"mode": "post-copy", "recover_after": "0 s"},
        ),
        looks=True,
    )  # fmt: skip
    assert (row["outcome"], row["post_copy_pauses"]) == ("completed", 1)
    ahead = [(at_ns, one) for at_ns, figures in seen[::2] for one in figures.moves if one.processed_bytes]
    whole = {one.processed_bytes + one.remaining_bytes for _, one in ahead}
    assert whole == {row["post_copy_bytes"] + row["final_bytes"]}
    for (before_ns, before), (at_ns, one) in pairwise(ahead):
        assert one.remaining_bytes <= before.remaining_bytes
        if at_ns <= 3 * 10**9 and before.transfer_bytes_per_s:
            came = (at_ns - before_ns) * 125e6 / 1e9
            assert before.remaining_bytes - one.remaining_bytes == pytest.approx(came, abs=4096)
    paused = [one for at_ns, one in ahead if 3.1e9 < at_ns < 4.9e9]
    assert {one.sent_bytes["stop-and-copy"] for _, one in ahead} == {row["final_bytes"]}
    assert {one.sent_bytes["post-copy"] + one.remaining_bytes for _, one in ahead} == {row["post_copy_bytes"]}
    assert {one.dirty_bytes_per_s for _, one in ahead} == {0.0}, "nobody has looked at what it writes"
    # Its memory makes nobody wait: the source's part of 8 ms and the target's of 14 alone.
    assert {one.expected_downtime_s for _, one in ahead} == {0.022}
    assert row["expected_downtime_ns"] == 22_000_000 == pytest.approx(row["downtime_ns"], rel=0.2)
    assert {one.transfer_bytes_per_s for one in paused} == {0.0}
    (left,) = {one.remaining_bytes for one in paused}
    assert left == pytest.approx(row["post_copy_bytes"] - 2 * 125e6, rel=0.05)


def test_only_what_kubevirt_would_still_have_is_told() -> None:
    """Five migrations of a machine that are over, none of one that is gone, and no times of who never copied."""
    seen, rows = play(
        scenario(
            vms=[group("vm", **IDLE, memory="512 MiB", lifetime="25 s"),
                 group("sealed", **IDLE, generation="SEV_SNP", memory="512 MiB")],
            duration="30 s", control_plane_latency="1 ms",
            migrations=[*(move(at=f"{at} s") for at in range(1, 22, 3)), move("sealed"), move("sealed", "9 s")],
        ),
        looks=True,
    )  # fmt: skip
    outcomes = {vm: [row["outcome"] for row in rows if row["vm"] == vm] for vm in ("vm", "sealed")}
    assert outcomes == {"vm": ["completed"] * 7, "sealed": ["refused"] * 2}
    before = [figures for at_ns, figures in seen if at_ns < 25 * 10**9][-1]
    numbers = {vm: [row["migration"] for row in rows if row["vm"] == vm] for vm in outcomes}
    assert [one for one in before.final if one.vm == "vm"] == [
        FinalMove("vm", f"migration-{number}", "completed", "") for number in numbers["vm"][-5:]
    ]
    assert [one for one in before.final if one.vm == "sealed"] == [
        FinalMove("sealed", f"migration-{number}", "refused", "NEEDS_MIGRATION_AGENT") for number in numbers["sealed"]
    ]
    assert {one.vm for one in before.ended} == {"vm"}
    assert [refused for (vm, _), refused in before.bound.items() if vm == "sealed"] == [True]
    last = seen[-1][1]
    assert {one.vm for one in last.final} == {vm for vm, _ in last.bound} == {"sealed"}
    assert (last.ended, last.last_downtimes) == ((), ())
    assert last.outcomes == {"completed": 7, "refused": 2}
