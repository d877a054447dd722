"""The bundled scenario of agents and handlers, in miniature: the same results in every layout."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from cluster import Scenario, run
from cluster.actor_layout import one_each, packed
from cluster.bench.faults import small_firmware
from cluster.bundled_scenarios import bundled_text
from cluster.isolated_layout import IsolatedLayout
from cluster.session import Session

AT = {
    "store-1": "100 ms", "kept": "150 ms", "live": "200 ms", "store-2": "400 ms", "disk-1": "1200 ms",
    "disk-2": "1800 ms", "guarded": "2600 ms", "live-disk": "900 ms", "listed": "250 ms",
}  # fmt: skip


def miniature(folder: Path) -> Scenario:
    """Its hosts, machines and moves, smaller and sooner."""
    body: dict[str, Any] = tomllib.loads(bundled_text("agent-migration"))
    body["duration"] = "3300 ms"
    body["costs"] = {
        "psp.tio_exchange_ns": 1_000_000, "psp.send_update_ns_per_kib": 500, "psp.receive_update_ns_per_kib": 500,
    }  # fmt: skip
    firmware = str(small_firmware(folder))
    for vm in body["vms"]:
        vm.update({"memory": "64 MiB"} | ({} if vm.get("svsm") else {"firmware": firmware}))
        vm["parameters"] = {"records": 40} if vm["workload"] == "key-value-store" else {"pause_ms": 300}
    for move in body["migrations"]:
        move["at"] = AT[move["vm"]]
    return Scenario.parse(body)


@pytest.mark.ray
def test_agents_move_machines_in_every_layout_alike(tmp_path: Path) -> None:
    """One Ray for all that need one: to start it takes longer than these runs."""
    scenario = miniature(tmp_path)
    inline = run(scenario, layout="inline")
    moves = {row["vm"]: row for row in inline.migrations.to_pylist()}
    assert {vm: row["outcome"] for vm, row in moves.items()} == dict.fromkeys(AT, "completed") | {"kept": "refused"}
    devices = {vm: moves[vm]["devices"] for vm in ("disk-1", "disk-2", "live-disk")}
    assert devices == {"disk-1": "trusted", "disk-2": "bounce buffers", "live-disk": "trusted"}
    assert moves["live"]["downtime_ns"] < moves["store-1"]["downtime_ns"] / 2
    with Session("isolated", None) as session:
        isolated = session._layout
        assert isinstance(isolated, IsolatedLayout)
        hosts = isolated._hosts
        for name, layout, rule in (
            ("isolated", isolated, one_each(None)), ("host", hosts, one_each(None)), ("packed", hosts, packed(2))
        ):  # fmt: skip
            session._layout, hosts.rule = layout, rule
            assert session.run(scenario, None, None, None).digest == inline.digest, name
