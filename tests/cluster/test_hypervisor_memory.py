"""The memory of a hypervisor's process, byte for byte: what a tenant holds is there for PLAIN and SME, not from SEV on.

The process is that of layout ``isolated``, with a hypervisor that keeps all it is told and reads everything it can.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from isolated_parts import STORE, S, exported

from cluster.host_entity import HostEntity, HostOrder
from cluster.process_channel import Door
from node.generation import Generation
from node.guest import GuestSpec
from node.host import HostSpec
from node.operations import Read
from node.platform import HostMode, Platform
from node.product import PRODUCTS
from node.remote_hypervisor import RemoteHypervisor
from workloads.key_value_store import KeyValueStore

READABLE = {
    Generation.PLAIN: True, Generation.SME: True, Generation.SEV: False, Generation.SEV_ES: False,
    Generation.SEV_SNP: False,
}  # fmt: skip
_CHUNK_BYTES = 8 << 20
PROCESS = """
import sys
sys.path[:0] = sys.argv[2:]
from isolated_parts import RecordingHypervisor
RecordingHypervisor().serve((int(sys.argv[1]), bytes.fromhex(sys.stdin.readline())))
"""


def found_in(pid: int, wanted: dict[str, bytes]) -> set[str]:
    """The names of the byte strings that lie anywhere in a process's memory."""
    found: set[str] = set()
    overlap = max(map(len, wanted.values())) - 1
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            where, rights, *_ = line.split()
            if not rights.startswith("r") or line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            start, end = (int(part, 16) for part in where.split("-"))
            for at in range(start, end, _CHUNK_BYTES):
                memory.seek(at)
                try:
                    data = memory.read(min(_CHUNK_BYTES + overlap, end - at))
                except OSError:
                    continue  # A mapping of a device, or past the end of its file.
                found |= {name for name, octets in wanted.items() if name not in found and octets in data}
    return found


def canary_of(entity: HostEntity, spec: GuestSpec) -> bytes:
    """A record that a VM holds at this moment, as the VM itself sees it: its bytes follow from a random seed alone."""
    place = spec.memory.placement(spec.name, 0, spec.seed)
    store = KeyValueStore.build(spec.program, place)
    table = Read(place.base_gpa, store.parameters.private_bytes)
    (held,) = entity.host.board.execute_guest(entity.host.board.vmcb(spec.name, 0), (table,))
    assert isinstance(held, bytes)
    records = (store._record(key, version) for version in range(1, 10) for key in range(64))
    return next(record for record in records if record in held)


@pytest.fixture(scope="module")
def found() -> Iterator[set[str]]:
    """Of one host with a VM of each generation, those whose canary its hypervisor's process holds."""
    seeds = {generation: secrets.randbits(62) for generation in READABLE}
    guests = {
        generation.name: GuestSpec(generation.name, generation, 1, 64 << 20, STORE, seed)
        for generation, seed in seeds.items()
    }
    door = Door()
    port, key = door.key
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    process = subprocess.Popen([sys.executable, "-c", PROCESS, str(port), *paths], stdin=subprocess.PIPE)
    assert process.stdin is not None
    try:
        process.stdin.write(key.hex().encode() + b"\n")
        process.stdin.flush()
        channel = door.wait(60, 60)
        assert channel is not None

        def exchange(request: bytes) -> bytes:
            channel.send(request)
            return channel.receive()

        platform = Platform(HostMode.SME)
        spec = HostSpec("milan", PRODUCTS["Milan"], 4 << 30, 100, 1, 60 * S, platform=platform)
        entity = HostEntity(
            HostOrder(spec, (), tuple(guests.values())), hypervisor=lambda *order: RemoteHypervisor(exchange, *order)
        )
        while entity.next_event_ns() < 20 * S:
            entity.advance(20 * S, 1000)
        host = entity.host
        for name in guests:
            host.pause(name)
        while entity.next_event_ns() < 60 * S:
            entity.advance(60 * S, 1000)
        for name in guests:  # It reads all memory and all registers of each.
            exported(entity, name)
        yield found_in(process.pid, {name: canary_of(entity, one) for name, one in guests.items()})
        channel.close()
        assert process.wait(30) == 0
    finally:
        door.close()
        process.stdin.close()
        process.kill()
        process.wait()


@pytest.mark.parametrize("generation", READABLE)
def test_a_tenant_s_canary_is_in_its_hypervisor_s_process_until_it_has_a_key_of_its_own(
    found: set[str], generation: Generation
) -> None:
    assert (generation.name in found) is READABLE[generation]
