"""A host of a fleet that has no memory left for a protected machine's move has it refused, and the run goes on."""

from collections.abc import Mapping
from typing import Any

import pytest
from test_live_migration import group, move, play, scenario, small_image, vm_row

from node.host import Host
from node.hypervisor import Hypervisor

__all__ = ["small_image"]  # a fixture
QUICK = {"psp.send_update_ns_per_kib": 500.0, "psp.receive_update_ns_per_kib": 500.0}


def take_all(host: Host) -> None:
    """Somebody else has all memory of a host that is free."""
    assert isinstance(host.hypervisor, Hypervisor)
    frames = host.hypervisor.frames
    for start, length in frames.free_runs():
        assert frames.allocate_run(length, 4096) == start
    assert frames.free_bytes == 0


@pytest.mark.parametrize("agent", [False, True], ids=["by firmware", "by agents"])
@pytest.mark.parametrize("poor", ["host-1", "host-2"], ids=["at the source", "at the target"])
def test_a_move_that_finds_no_frame_ends_with_that_reason_and_its_machine_works_on(poor: str, agent: bool) -> None:
    kind = {"generation": "SEV_SNP", "migration_agent": True} if agent else {"generation": "SEV_ES"}
    hosts: dict[str, Host] = {}

    def at_start(found: Mapping[str, Host]) -> None:
        hosts.update(found)
        if poor == "host-1":
            take_all(hosts[poor])

    def on_the_wire(_: str, frames: tuple[bytes, ...]) -> tuple[bytes, ...]:
        if poor == "host-2":
            take_all(hosts[poor])
        return frames

    there = [{"name": "host", "product": "Milan", "count": 2, "memory": "1 GiB", "migration_agent": agent}]
    body: dict[str, Any] = scenario(
        hosts=there, vms=[group("vm", memory="64 MiB", vcpus=1, **kind)], costs=QUICK, duration="10 s",
        migrations=[move(to="host-2")],
    )  # fmt: skip
    _, rows = play(body, wire=on_the_wire, at_start=at_start)
    (one,) = rows["migrations"]
    assert one["outcome"] == "no room"
    assert one["reason"].startswith("memory: ")
    assert one["reason"].endswith(" 0 free")
    row = vm_row(rows)
    assert (row["host"], row["state"], row["faults"]) == ("host-1", "running", 0)
    _, stays = play(body | {"migrations": []})
    assert row["units_of_work"] > 0.9 * vm_row(stays)["units_of_work"]
    assert "vm" not in hosts["host-2"].guests
