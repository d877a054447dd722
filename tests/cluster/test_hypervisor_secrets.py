"""Nothing that reaches a hypervisor's process holds a secret of an encrypted VM; a plain VM's are there to be read."""

from collections.abc import Callable
from functools import partial

import pytest
from isolated_parts import TELL, RecordingHypervisor, exported, guest, host_order, secrets_of

from cluster.host_entity import HostEntity
from node.generation import Generation
from node.remote_hypervisor import RemoteHypervisor

S = 10**9
REGISTERS = slice(0x178, 0x380)
"""RIP to R15 of a save area (APM volume 2, table B-4)."""


def advance(entity: HostEntity, until_ns: int) -> None:
    while entity.next_event_ns() < until_ns:
        entity.advance(until_ns, 1000)


def seen(generation: Generation, exchange: Callable[[bytes], bytes]) -> tuple[bytes, bytes, set[str]]:
    """All that a hypervisor is told in a VM's life, while it reads all of its memory, its registers and its disk.

    Also the VM's registers as the core sees them, and the names of the secrets that were found.
    """
    spec = guest("vault", generation)
    entity = HostEntity(host_order(spec), hypervisor=partial(RemoteHypervisor, exchange))
    host = entity.host
    advance(entity, 60 * S)
    host.pause("vault")
    advance(entity, 120 * S)
    state = exported(entity, "vault")
    # The firmware, and the store: as they are in memory, or as the security processor wraps them.
    assert sum(len(part) for run in (*state.packets, *state.pages) for part in run if isinstance(part, bytes)) > 1 << 20
    registers = host.board.save_areas.load(host.board.vmcb("vault", 0))[REGISTERS]
    host.resume("vault")
    advance(entity, 180 * S)
    host.destroy("vault")
    advance(entity, 190 * S)
    assert (host.guests["vault"].operations > 1000, host.guests["vault"].faults) == (True, 0)
    told = exchange(TELL)
    return told, registers, {name for name, secret in secrets_of(spec).items() if secret in told}


@pytest.mark.parametrize("generation", [Generation.SEV, Generation.SEV_ES, Generation.SEV_SNP])
def test_a_hypervisor_is_told_nothing_of_what_an_encrypted_vm_holds(generation: Generation) -> None:
    told, registers, found = seen(generation, RecordingHypervisor().exchange)
    assert len(told) > 1 << 20
    assert found == set()
    # SEV leaves registers in the clear, its successors do not (white papers on SEV-ES and SEV-SNP).
    assert (registers in told) is (generation is Generation.SEV)


def test_a_hypervisor_finds_what_a_plain_vm_holds_by_reading_its_memory() -> None:
    told, registers, found = seen(Generation.PLAIN, RecordingHypervisor().exchange)
    assert sum(name.startswith("record") for name in found) > 32  # each of 64 in one version
    assert registers in told
    # But even so nobody gave it away: what its contents are made from stays with the tenant.
    assert not found & {"key", "seed, big-endian", "seed, little-endian"}
