"""SEV-TIO machines move in fleets: their devices stay, and others are proved to them where they come."""

from __future__ import annotations

from typing import Any

from test_live_migration import outcomes, play, small_image  # noqa: F401 - the fixture

CARDS = [{"kind": "nvme", "memory": "1 MiB"}, {"kind": "gpu", "memory": "1 MiB"}]
COSTS = {
    "psp.tio_exchange_ns": 1_000_000,
    "psp.send_update_ns_per_kib": 100.0,
    "psp.receive_update_ns_per_kib": 100.0,
}
"""Attached and moved sooner than the table has it."""


def fleet(*, cards: Any = CARDS, there: Any = CARDS, parameters: Any = (), **changes: Any) -> dict[str, Any]:
    common = {"product": "Turin", "memory": "2 GiB", "migration_agent": True}
    vm = {
        "name": "vm", "generation": "SEV_TIO", "memory": "64 MiB", "vcpus": 1, "workload": "device-work",
        "devices": ["nvme", "gpu"], "migration_agent": True, "start": "running", "host": "here",
        "parameters": {"block_bytes": 4096, "matrix_order": 8, "pause_ms": 25} | dict(parameters),
    }  # fmt: skip
    return {
        "schema": 1, "name": "moving-cards", "duration": "1600 ms", "costs": COSTS,
        "hosts": [{"name": "here", "cards": cards} | common, {"name": "there", "cards": there} | common],
        "vms": [vm],
        "migrations": [{"vm": "vm", "to": "there", "at": "150 ms"}],
    } | changes  # fmt: skip


def test_it_lets_its_devices_go_and_has_others_proved_where_it_comes() -> None:
    _, rows = play(fleet())
    (row,) = rows["migrations"]
    assert (row["outcome"], row["devices"]) == ("completed", "trusted")
    assert row["started_ns"] < row["devices_free_ns"] < row["ended_ns"] < row["devices_settled_ns"]
    (vm,) = rows["vms"]
    assert (vm["host"], vm["state"]) == ("there", "running")
    assert vm["units_of_work"] > 10


def test_where_no_card_can_be_trusted_it_stays_on_bounce_buffers() -> None:
    bare = [card | {"tee_io": False} for card in CARDS]
    _, rows = play(fleet(there=bare))
    (row,) = rows["migrations"]
    assert (row["outcome"], row["devices"]) == ("completed", "bounce buffers")
    (vm,) = rows["vms"]
    assert (vm["host"], vm["state"]) == ("there", "running")
    _, rows = play(fleet(there=[bare[0], CARDS[1]]))
    assert rows["migrations"][0]["devices"] == "1 of 2 trusted"
