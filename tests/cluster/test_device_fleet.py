"""Machines with devices of their own in a fleet: placed by free cards, and the same however the run is laid out."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from cluster import Scenario, run
from cluster.scenario import ScenarioError

CARDS = [{"kind": "nvme", "memory": "1 MiB"}, {"kind": "nic"}]


def scenario(*vms: dict[str, Any], hosts: int = 2, duration: str = "400 ms", product: str = "Turin") -> Scenario:
    common = {"memory": "128 MiB", "workload": "device-work", "start": "running"}
    return Scenario.parse({
        "schema": 1, "name": "devices", "duration": duration,
        "costs": {"psp.tio_exchange_ns": 1_000_000},
        "hosts": [{"name": "host", "product": product, "count": hosts, "memory": "2 GiB", "cards": CARDS}],
        "vms": [common | vm for vm in vms],
    })  # fmt: skip


def test_a_machine_goes_where_a_card_is_free_and_talks_from_there() -> None:
    pair = [
        {"name": one, "generation": "SEV_TIO", "devices": ["nvme", "nic"], "parameters": {"peer": other}}
        for one, other in (("a", "b"), ("b", "a"))
    ]
    results = run(scenario(*pair), layout="inline")
    vms = {row["vm"]: row for row in results.tables["vms"].to_pylist()}
    assert {vms["a"]["host"], vms["b"]["host"]} == {"host-1", "host-2"}
    assert all(row["units_of_work"] >= 3 for row in vms.values())
    networks = results.tables["networks"].to_pylist()
    assert all(row["frames_received"] >= 2 for row in networks)


def test_machines_that_must_run_need_cards_for_all_of_them() -> None:
    one = {"generation": "SEV_TIO", "devices": ["nvme"]}
    with pytest.raises(ScenarioError, match="a host with room at time zero"):
        run(scenario({"name": "vm", "count": 3} | one), layout="inline")


def test_a_cards_virtual_functions_count_one_by_one() -> None:
    one = {"generation": "SEV_TIO", "devices": ["nvme"], "count": 4}
    ordered = scenario({"name": "vm"} | one, hosts=1, duration="1 s").model_dump(
        mode="json", by_alias=True, exclude_none=True
    )
    ordered["hosts"][0]["cards"] = [{"kind": "nvme", "memory": "1 MiB", "virtual_functions": 4}]
    ordered["hosts"][0]["key_refresh"] = "100 ms"
    rows = run(Scenario.parse(ordered), layout="inline").tables["vms"].to_pylist()
    assert [row["units_of_work"] >= 2 for row in rows] == [True] * 4
    ordered["vms"][0]["count"] = 5
    with pytest.raises(ScenarioError, match="a host with room at time zero"):
        run(Scenario.parse(ordered), layout="inline")


def test_a_scenario_may_have_cards_without_tee_io() -> None:
    told = scenario({"name": "vm", "generation": "SEV_TIO", "devices": ["nvme"]}, hosts=1)
    ordered = told.model_dump(mode="json", by_alias=True, exclude_none=True)
    ordered["hosts"][0]["cards"] = [{"kind": "nvme", "memory": "1 MiB", "tee_io": False}]
    (row,) = run(Scenario.parse(ordered), layout="inline").tables["vms"].to_pylist()
    assert row["units_of_work"] >= 3
    ordered["vms"][0]["parameters"] = {"trusted_only": 1}
    (row,) = run(Scenario.parse(ordered), layout="inline").tables["vms"].to_pylist()
    assert row["units_of_work"] == 0


@pytest.mark.parametrize("generation", ["SEV_SNP", "SEV_TIO"])
def test_a_machine_has_devices_above_an_svsm(generation: str) -> None:
    told = scenario({"name": "vm", "generation": generation, "devices": ["nvme"], "svsm": True}, hosts=1)
    tables = run(told, layout="inline").tables
    (row,), (svsm,) = tables["vms"].to_pylist(), tables["svsms"].to_pylist()
    assert (row["state"], row["units_of_work"] >= 3, svsm["calls"] > 0) == ("running", True, True)
    assert (row["bytes_bounced"] > 0) is (generation == "SEV_SNP")


def test_a_cards_disk_may_lie_on_a_file_beside_the_scenario_and_a_run_leaves_it_as_it_was(tmp_path: Path) -> None:
    told = scenario({"name": "vm", "generation": "SEV_TIO", "devices": ["nvme"]}, hosts=1)
    ordered = told.model_dump(mode="json", by_alias=True, exclude_none=True)
    ordered["hosts"][0]["cards"] = [{"kind": "nvme", "disk": "disk.img"}]
    file, octets = tmp_path / "disk.img", bytes(range(256)) * (1 << 12)
    file.write_bytes(octets)
    found = Scenario.parse(ordered, folder=tmp_path)
    assert [one.disk for one in found.host_instances[0].cards] == [str(file)]
    (row,) = run(found, layout="inline").tables["vms"].to_pylist()
    assert row["units_of_work"] >= 3
    for told, works in ((hashlib.sha256(octets[: 64 << 10]).hexdigest(), True), ("0" * 64, False)):
        ordered["vms"][0]["parameters"] = {"disk_begins": told}
        (row,) = run(Scenario.parse(ordered, folder=tmp_path), layout="inline").tables["vms"].to_pylist()
        assert (row["units_of_work"] >= 3) is works
    assert file.read_bytes() == octets
    ordered["vms"][0]["parameters"] = {"disk_begins": "0x12"}
    with pytest.raises(ScenarioError, match=r"disk_begins of .* expected 64 hexadecimal digits"):
        Scenario.parse(ordered, folder=tmp_path)


def test_a_machine_with_devices_that_no_agent_may_move_does_not_migrate() -> None:
    moving = scenario({"name": "vm", "generation": "PLAIN", "devices": ["nvme"]}, duration="5 s")
    ordered = moving.model_dump(mode="json", by_alias=True, exclude_none=True)
    ordered["migrations"] = [{"vm": "vm", "to": "host-2", "at": "100 ms"}]
    (row,) = run(Scenario.parse(ordered), layout="inline").migrations.to_pylist()
    assert (row["outcome"], row["reason"]) == ("refused", "DEVICE_ASSIGNED")


def test_a_machine_takes_its_address_to_another_card_and_talks_on_from_there() -> None:
    pair = [
        {"name": one, "generation": "SEV_TIO", "devices": ["nic"], "parameters": {"peer": other, "pause_ms": 20}}
        for one, other in (("a", "b"), ("b", "a"))
    ]
    moving = scenario(*pair, hosts=3, duration="2 s")
    ordered = moving.model_dump(mode="json", by_alias=True, exclude_none=True)
    ordered["hosts"][0]["migration_agent"] = True
    ordered["costs"] |= {"psp.send_update_ns_per_kib": 500, "psp.receive_update_ns_per_kib": 500}
    ordered["vms"][0] |= {"migration_agent": True, "memory": "64 MiB"}
    ordered["migrations"] = [{"vm": "a", "to": "host-3", "at": "200 ms"}]
    results = run(Scenario.parse(ordered), layout="inline")
    (row,) = results.migrations.to_pylist()
    assert (row["outcome"], row["devices"]) == ("completed", "trusted")
    assert {one["vm"]: one["host"] for one in results.vms.to_pylist()} == {"a": "host-3", "b": "host-2"}
    a, b = results.tables["networks"].to_pylist()
    # What was sent while it stood still nobody took; before and after that frames came, both ways.
    assert a["frames_received"] > 20
    assert b["frames_received"] > 20
    assert a["frames_sent"] >= b["frames_received"]


def test_plain_cards_serve_machines_on_parts_without_trusted_io() -> None:
    one = {"name": "vm", "generation": "SEV_ES", "devices": ["nvme"]}
    results = run(scenario(one, product="Milan"), layout="inline")
    (row,) = results.tables["vms"].to_pylist()
    assert row["units_of_work"] >= 3
