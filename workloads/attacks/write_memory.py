"""The hypervisor writes into what it backs a guest with (rows 09, 10, 16b)."""

from __future__ import annotations

from node.operations import HostRead, HostWrite
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Target
from workloads.attacks.vault import PAGE_BYTES

JUNK = bytes(range(256)) * (PAGE_BYTES // 256)


def write_junk(target: Target) -> Attack:
    """Row 09: store junk over a value."""
    yield LET_IT_RUN
    yield WRITE_BACK
    yield (HostWrite(target.victim.value.spa, JUNK),)
    yield WRITE_BACK


def replay(target: Target) -> Attack:
    """Row 10: keep what lies in DRAM, let the guest write anew, and put the old bytes back at the same address."""
    yield LET_IT_RUN
    yield WRITE_BACK
    (old,) = yield (HostRead(target.victim.value.spa, PAGE_BYTES),)
    yield LET_IT_RUN
    yield WRITE_BACK
    if isinstance(old, bytes):
        yield (HostWrite(target.victim.value.spa, old),)
        yield WRITE_BACK


def move_blocks(target: Target) -> Attack:
    """Row 16b: copy what lies in DRAM from one page of the guest to another, whatever it decrypts to there."""
    yield LET_IT_RUN
    yield WRITE_BACK
    (blocks,) = yield (HostRead(target.victim.other.spa, PAGE_BYTES),)
    if isinstance(blocks, bytes):
        yield (HostWrite(target.victim.value.spa, blocks),)
        yield WRITE_BACK


def wait_for_it(_: Target) -> Attack:
    """Row 19: what there was to do was done at the launch."""
    yield WRITE_BACK
    yield LET_IT_RUN
