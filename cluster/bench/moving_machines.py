"""What machine moves in a schedule of faults, and what is looked for after it: one for each way to move.

Beside what must hold of all, a machine with a trusted disk trusts one where it runs, and has none bound, fenced or
given to it anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from node.asid_fence import DmaFence
from node.card_slot import CardSlot
from node.guest import GuestState
from node.guest_functions import guest_device_id
from node.host import Host
from tio.device_identity import CardKind

VM = "vm"
CHIPS = 8
"""Scenarios that schedules with agents are of: to certify a new one's chips takes as long as all of a schedule."""
_STORE = {"workload": "key-value-store", "parameters": {"records": 40}}
_DISK = {"workload": "device-work", "parameters": {"block_bytes": 4096, "pause_ms": 100}, "devices": ["nvme"]}
_FENCES = range(1, 100)


class Way(NamedTuple):
    """Keys of hosts, of the machine, and costs, that make it move so."""

    hosts: Mapping[str, Any] = {}
    machine: Mapping[str, Any] = {}
    costs: Mapping[str, float] = {}


WAYS: Mapping[str, Way] = {
    "PLAIN": Way(),
    "SEV": Way(),
    "SEV_ES": Way(),
    "SEV_SNP": Way({"migration_agent": True}, {"migration_agent": True}),
    "SEV_SNP above an SVSM": Way(
        {"migration_agent": True}, {"generation": "SEV_SNP", "svsm": True, "migration_agent": True, "firmware": "auto"}
    ),
    "SEV_SNP by its handler": Way(
        {}, {"generation": "SEV_SNP", "svsm": True, "migration_handler": True, "firmware": "auto"}
    ),
    "SEV_SNP by its handler and agents": Way(
        {"migration_agent": True},
        {"generation": "SEV_SNP", "svsm": True, "migration_handler": True, "migration_agent": True, "firmware": "auto"},
    ),
    "SEV_TIO by its handler": Way(
        {"product": "Turin", "memory": "2 GiB", "cards": [{"kind": "nvme", "memory": "1 MiB"}]},
        {"generation": "SEV_TIO", "svsm": True, "migration_handler": True, "firmware": "auto"} | _DISK,
        {"psp.tio_exchange_ns": 1_000_000},
    ),
    "SEV_TIO": Way(
        {"migration_agent": True, "product": "Turin", "memory": "2 GiB",
         "cards": [{"kind": "nvme", "memory": "1 MiB"}]},
        {"migration_agent": True} | _DISK,
        {"psp.tio_exchange_ns": 1_000_000},
    ),
}  # fmt: skip
"""By the name that figures give each."""


def moving(way: str, firmware: Path) -> dict[str, Any]:
    """Hosts, machine and costs of a scenario in which it moves that way."""
    changed = WAYS[way]
    host: dict[str, Any] = {"name": "host", "product": "Milan", "count": 3, "memory": "4 GiB"}
    machine: dict[str, Any] = {"name": VM, "generation": way, "memory": "64 MiB", "start": "running", "host": "host-1"}
    machine |= {"firmware": str(firmware)} | _STORE
    return {
        "hosts": [host | dict(changed.hosts)], "vms": [machine | dict(changed.machine)], "costs": dict(changed.costs),
    }  # fmt: skip


def devices_amiss(hosts: list[Host]) -> str | None:
    """What is wrong with trusted disks, None for nothing and where there are no cards."""
    disk = CardSlot(1, CardKind.NVME).requester
    for host in hosts:
        if host.board.root_complex is None:
            continue
        guest, io = host.guests.get(VM), host.board.trusted_dma
        given = host.hypervisor.tio.given(VM, guest_device_id(0))  # type: ignore[attr-defined]  # it is in this process
        if guest is not None and guest.state is GuestState.RUNNING:
            if given is None or not (given.bound and given.ran):
                return f"{host.spec.name}: its disk is not trusted"
        elif given is not None or io is None or io.binding(disk) is not None:
            return f"{host.spec.name}: a disk is left"
        elif {io.fences.status(asid) for asid in _FENCES} != {DmaFence.DEFAULT}:
            return f"{host.spec.name}: a fence is left"
    return None
