"""SEV-TIO machines move in fleets: their devices stay, and others are proved to them where they come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_live_migration import FIRMWARE, play, small_image  # noqa: F401 - the fixture

from cluster.bench.fault_verdict import judged
from cluster.bench.faults import schedule
from cluster.together import Together
from node.guest_functions import guest_device_id
from node.host import Host

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
        "firmware": FIRMWARE[0],
        "parameters": {"block_bytes": 4096, "matrix_order": 8, "pause_ms": 80} | dict(parameters),
    }  # fmt: skip
    return {
        "schema": 1, "name": "moving-cards", "duration": "700 ms", "costs": COSTS,
        "hosts": [{"name": "here", "cards": cards} | common, {"name": "there", "cards": there} | common],
        "vms": [vm],
        "migrations": [{"vm": "vm", "to": "there", "at": "150 ms"}],
    } | changes  # fmt: skip


def by_handler(**changes: Any) -> dict[str, Any]:
    """The same with an SVSM whose handler moves the machine."""
    body = fleet(**changes)
    handler = {"svsm": True, "migration_handler": True, "migration_agent": False, "firmware": "auto"}
    return body | {"vms": [vm | handler for vm in body["vms"]]}


@pytest.mark.parametrize(("scene", "carrier"), [(fleet, "agents"), (by_handler, "handler")])
def test_it_lets_its_devices_go_and_has_others_proved_where_it_comes(
    scene: Callable[..., dict[str, Any]], carrier: str
) -> None:
    _, rows = play(scene(duration="1 s"))
    (row,) = rows["migrations"]
    assert (row["outcome"], row["devices"], row["carrier"]) == ("completed", "trusted", carrier)
    assert row["started_ns"] < row["devices_free_ns"] < row["ended_ns"] < row["devices_settled_ns"]
    (vm,) = rows["vms"]
    assert (vm["host"], vm["state"]) == ("there", "running")
    assert vm["units_of_work"] > 4


@pytest.mark.parametrize("events", [32, 1])
def test_where_no_card_can_be_trusted_it_stays_on_bounce_buffers(events: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few events a slow machine does at a time, nothing is said that was promised not to be."""
    monkeypatch.setattr("cluster.slices.SLICE_EVENTS", events)
    bare = [card | {"tee_io": False} for card in CARDS]
    _, rows = play(fleet(there=bare, duration="700 ms"))
    (row,) = rows["migrations"]
    assert (row["outcome"], row["devices"]) == ("completed", "bounce buffers")
    (vm,) = rows["vms"]
    assert (vm["host"], vm["state"]) == ("there", "running")


def spoilt(_: str, frames: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """What comes over the wire of a move, with the second frame changed."""
    return (*frames[:1], *[frame.replace(frame[-40:-32], bytes(8)) for frame in frames[1:2]], *frames[2:])


@pytest.mark.parametrize("scene", [fleet, by_handler])
def test_what_was_changed_on_the_wire_leaves_it_with_the_devices_that_it_had(
    scene: Callable[..., dict[str, Any]],
) -> None:
    hosts: dict[str, Host] = {}
    _, rows = play(scene(duration="1400 ms"), wire=spoilt, at_start=hosts.update)
    (row,) = rows["migrations"]
    assert (row["outcome"], row["devices_settled_ns"], row["devices"]) == ("spoiled", None, None)
    assert row["devices_free_ns"] is not None
    assert [trusts(hosts[one]) for one in ("here", "there")] == [[True, True], [False, False]]


def looks_always(one: Together, first_ns: int, looks: Any = Together._look) -> int:
    """Promises as they are at every event: one that is taken back does not go unseen."""
    promised_ns: int = looks(one, first_ns)
    one._often = 1
    return promised_ns


@pytest.mark.parametrize("scene", [fleet, by_handler])
def test_a_machine_whose_move_failed_speaks_again_no_sooner_than_its_host_had_promised(
    scene: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.slices.SLICE_EVENTS", 1)
    monkeypatch.setattr("cluster.together.Together._look", looks_always)
    body = scene(cards=[{"kind": "nic", "count": 2}], there=[{"kind": "nic", "count": 2}], duration="1500 ms")
    (vm,) = body["vms"]
    third = body["hosts"][1] | {"name": "third"}
    body |= {
        "hosts": [*body["hosts"], third],
        "vms": [
            vm | {"name": name, "host": host, "devices": ["nic"], "parameters": {"peer": peer, "pause_ms": 20}}
            for name, peer, host in (("vm", "other", "here"), ("other", "vm", "there"))
        ],
        "migrations": [{"vm": "vm", "to": "third", "at": "150 ms"}],
    }
    _, rows = play(body, wire=spoilt)
    (row,) = rows["migrations"]
    assert row["outcome"] == "spoiled"
    vms = {one["vm"]: one for one in rows["vms"]}
    assert [(vms[name]["host"], vms[name]["state"]) for name in ("vm", "other")] == [
        ("here", "running"), ("there", "running"),
    ]  # fmt: skip
    assert all(one["frames_sent"] > 20 for one in rows["networks"])


@pytest.mark.parametrize("scene", [fleet, by_handler])
def test_a_machine_that_keeps_its_devices_stays(scene: Callable[..., dict[str, Any]]) -> None:
    _, rows = play(scene(migration={"let_go_within": "1 ms"}, duration="400 ms"))
    (row,) = rows["migrations"]
    assert (row["outcome"], row["reason"], row["devices_free_ns"]) == ("refused", "DEVICES_KEPT", None)


def trusts(host: Host, devices: int = 2) -> list[bool]:
    """Which of the machine's devices are locked for it, and run."""
    given = [host.hypervisor.tio.given("vm", guest_device_id(device)) for device in range(devices)]
    return [one is not None and one.bound and one.ran for one in given]


@pytest.mark.parametrize("way", ["SEV_TIO", "SEV_TIO by its handler"])
@pytest.mark.parametrize("seed", [3, 9])
def test_whatever_crashes_and_goes_astray_devices_are_where_the_machine_is(seed: int, way: str) -> None:
    found, moves = judged(schedule(seed, way, Path(FIRMWARE[0])) | {"duration": "4 s"})
    assert found is None
    assert moves
