"""The benches of fleets, placement and idle machines run, small, and say what they are held against."""

from pathlib import Path

import pytest

from cluster.bench import fleet, idle, placement
from cluster.session import Session
from node.firmware_image import laboratory_image


def test_placement_simulates_every_machine_and_uses_hosts_in_order() -> None:
    took_s, used, outcome = placement.placed(20, 144)
    assert took_s > 0
    assert (outcome.round_trips, outcome.control_plane_acts) == (0, 0)
    # 144 machines of 4.5 CPUs and 1,280 MiB on average, on hosts of 144 CPUs and 200 GiB less the RMP and firmware.
    assert used == 5


def test_idle_machines_are_recorded_and_the_figures_name_their_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "VMS", 300)
    figures = {figure.name: figure for figure in idle.run()}
    assert figures["idle: memory of each, beside SimGrid"].reference_name == "SimGrid 4.1"
    assert figures["idle: round trips"].value == 0


def test_a_small_fleet_of_all_kinds_computes_and_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_COUNTS", (2, 1, 1, 1, 1, 1))
    image = tmp_path / "laboratory.fd"
    image.write_bytes(laboratory_image().data)
    scenario = fleet.fleet(2, 1, image).model_copy(update={"duration": 2_000_000_000})
    assert len(scenario.vm_instances) == 14
    with Session("inline", None) as session:
        results = session.run(scenario, None, None, None)
    assert {row["state"] for row in results.vms.to_pylist()} == {"running"}
    assert len(scenario.migrations) == 1
