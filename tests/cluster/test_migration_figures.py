"""Live figures of migrations say what is so, and looking at them changes no result."""

from typing import Any

import pytest
from test_live_migration import BUSY, IDLE, group, move, scenario

from cluster.coordinator import Coordinator
from cluster.fleet import build_fleet
from cluster.host_entity import build_host
from cluster.inline_layout import InlineLayout
from cluster.migration_figures import MigrationFigures, figures_of
from cluster.migration_rows import migration_row
from cluster.scenario import Scenario

MIB = 1 << 20


def play(body: dict[str, Any], *, looks: bool) -> tuple[list[tuple[int, MigrationFigures]], list[dict[str, Any]]]:
    """Figures after every window, and the rows in the end."""
    chosen = Scenario.parse(body)
    fleet, seen = build_fleet(chosen), []
    layout = InlineLayout()
    layout.start(build_host, [(order.spec.name, order.pack()) for order in fleet.orders])
    live = fleet.control.migrations

    def glance(begin: int, end: int) -> int:
        if looks:
            seen.append((begin, figures_of(live, begin)))
        return min(end, begin + 50_000_000)

    Coordinator(layout, fleet.control, chosen.control_plane_latency, chosen.duration, cut=glance).run()
    return seen, [migration_row(one) for one in live.all]


def test_looking_changes_nothing_and_figures_add_up() -> None:
    body = scenario(
        vms=[group("vm", **IDLE, memory="512 MiB"), group("busy", **BUSY, memory="512 MiB")], duration="14 s",
        migrations=[move(), move("busy")], fabric={"link": "1 Gb/s"}, migration={"per_host": 1, "max_rounds": 3},
    )  # fmt: skip
    seen, rows = play(body, looks=True)
    assert play(body, looks=False)[1] == rows
    assert [row["outcome"] for row in rows] == ["completed", "round cap"]
    waits = [figures for at_ns, figures in seen if 10**9 < at_ns < rows[0]["ended_ns"]]
    assert {figures.phases["pending"] for figures in waits} == {1}
    first = [figures.moves[0] for figures in waits if figures.moves]
    assert {one.vm for one in first} == {"vm"}
    # What is sent and what is left are the memory; it goes at the link's rate.
    assert all(one.processed_bytes + one.remaining_bytes == one.total_bytes for one in first if not one.rounds)
    assert {one.transfer_bytes_per_s for one in first if not one.rounds} == {125e6}
    assert [one.processed_bytes for one in first] == sorted(one.processed_bytes for one in first)
    assert seen[-1][1].outcomes == {"completed": 1, "round cap": 1}
    busy = [figures.moves[0] for _, figures in seen if figures.moves and figures.moves[0].vm == "busy"]
    late = busy[-1]
    # Two vCPUs write 64 MiB each all over in less than a round: that much is dirty after it.
    assert late.dirty_bytes_per_s == pytest.approx(125e6, rel=0.05)
    assert late.expected_downtime_s == pytest.approx(128 * MIB / 125e6 + 0.022, rel=0.05)
    assert rows[1]["remaining_bytes"] == pytest.approx(128 * MIB, rel=0.01)
    assert rows[1]["expected_downtime_ns"] == pytest.approx(late.expected_downtime_s * 1e9, rel=0.05)
