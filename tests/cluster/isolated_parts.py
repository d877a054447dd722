"""Parts that tests of layout ``isolated`` start from: orders of hosts, and a hypervisor that keeps what it is told."""

from __future__ import annotations

import contextlib
from pathlib import Path

from cluster.host_entity import HostEntity, HostOrder
from cluster.hypervisor_process import HypervisorProcess
from node.generation import Generation
from node.guest import GuestSpec
from node.host import HostSpec
from node.product import PRODUCTS
from node.program import ProgramSpec
from node.sealed_transfer import SEALED
from node.vm_state import VmState
from workloads.key_value_store import KeyValueStore

S = 10**9
SEED = 0x5EED_0F_A11_5EC2E7
"""So long that no number comes by it by accident."""
STORE = ProgramSpec(
    "key-value-store", (("batch", 16), ("instructions_per_batch", 5 * S), ("records", 64), ("value_bytes", 128))
)
TELL = b"tell"


class RecordingHypervisor(HypervisorProcess):
    """Keeps every byte that its process is sent, until it is asked for them."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[bytes] = []

    def exchange(self, request: bytes) -> bytes:
        if request == TELL:
            told, self.told = self.told, []
            return b"\0".join(told)
        self.told.append(request)
        return super().exchange(request)


def guest(name: str, generation: Generation, program: ProgramSpec = STORE) -> GuestSpec:
    return GuestSpec(name, generation, 1, 256 << 20, program, SEED)


def host_order(*guests: GuestSpec) -> HostOrder:
    return HostOrder(HostSpec("milan", PRODUCTS["Milan"], 16 << 30, 100, SEED, 60 * S), (), guests)


def exported(entity: HostEntity, name: str) -> VmState:
    """What a hypervisor gets of a VM that stands still: memory and registers, or packets for another host."""
    host, guest = entity.host, entity.host.guests[name]
    sealed = guest.spec.generation in SEALED
    if sealed:
        other = HostEntity(HostOrder(HostSpec("other", host.spec.product, 4 << 30, 100, SEED, 60 * S), ())).host
        platform = other.tasks.at_once(other.hypervisor.receive(guest.spec.machine))
        host.tasks.at_once(host.hypervisor.seal(name, platform))
    state = host.tasks.at_once(host.hypervisor.export(name, (True,), guest.reset_rips))
    if sealed:
        host.tasks.at_once(host.hypervisor.unseal(name))
    assert isinstance(state, VmState)
    return state


def secrets_of(spec: GuestSpec) -> dict[str, bytes]:
    """What nobody but its tenant may know of a key-value store: its records, and what they are made from."""
    store = KeyValueStore.build(spec.program, spec.memory.placement(spec.name, 0, SEED))
    records = {f"record {key}, version {one}": store._record(key, one) for key in range(64) for one in (1, 2, 3)}
    return {
        **records, "key": store.content.key,
        "seed, big-endian": SEED.to_bytes(8, "big"), "seed, little-endian": SEED.to_bytes(8, "little"),
    }  # fmt: skip


def ray_processes_of(root: int) -> dict[int, str]:
    """What each worker process of Ray below a process is, by its number."""
    everybody = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                everybody[int(folder.name)] = int(parent), (folder / "cmdline").read_text()
    family = {root}
    while more := {pid for pid, (parent, _) in everybody.items() if parent in family} - family:
        family |= more
    return {pid: everybody[pid][1] for pid in family - {root} if everybody[pid][1].startswith("ray::")}


def alive(pids: dict[int, str]) -> set[int]:
    """Those of these processes that are still there."""
    found = set()
    for pid, line in pids.items():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_text().startswith(line.partition(".")[0]):
                found.add(pid)
    return found
