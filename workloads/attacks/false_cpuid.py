"""What a hypervisor finds in a guest that it deceived by CPUID (rows 23, 48; Radev and Morbitzer 2020)."""

from __future__ import annotations

from node.operations import HostRead, RmpUpdate
from psp.system_bus import RmpEntry
from workloads.attacks.nested_remap import smash
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Target
from workloads.attacks.vault import PAGE_BYTES


def share_and_read(target: Target) -> Attack:
    """Rows 23, 48: take the page where the secret will be for shared memory, and read it when it is there.

    A guest that was deceived stores to it as to shared memory, which an RMP lets it do only there.
    """
    victim = target.victim
    if victim.gctx:
        yield smash(victim.secret)
        yield (RmpUpdate(victim.secret.spa, PAGE_BYTES, RmpEntry()),)
    yield LET_IT_RUN
    yield WRITE_BACK
    yield (HostRead(victim.secret.spa, PAGE_BYTES, encrypted=victim.c_bit),)
