"""What goes to a device and comes from it lies where its hypervisor reads and writes it (rows 70a and 70b).

Where a device works in private memory the same addresses lead to ciphertext, and to pages that only their guest
stores to.
"""

from __future__ import annotations

from node.operations import HostRead, HostWrite
from psp.system_bus import PAGE_BYTES
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Target
from workloads.attacks.write_memory import JUNK


def observe(target: Target) -> Attack:
    """Row 70a: read what the victim has handed its device."""
    yield LET_IT_RUN
    yield WRITE_BACK
    yield (HostRead(target.device.outbox.spa, PAGE_BYTES, encrypted=target.victim.c_bit),)


def alter(target: Target) -> Attack:
    """Row 70b: change what has come from the device, before the victim takes it."""
    yield LET_IT_RUN
    yield WRITE_BACK
    yield (HostWrite(target.device.inbox.spa, JUNK, encrypted=target.victim.c_bit),)
    yield WRITE_BACK
