"""The hypervisor reads what it backs a guest with (row 01)."""

from __future__ import annotations

from node.operations import HostRead
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Target
from workloads.attacks.vault import PAGE_BYTES


def read_private_page(target: Target) -> Attack:
    """Row 01: load the page that holds the secret, through a mapping without the C-bit and through one with it."""
    yield LET_IT_RUN
    yield WRITE_BACK
    yield (HostRead(target.victim.secret.spa, PAGE_BYTES),)
    yield (HostRead(target.victim.secret.spa, PAGE_BYTES, encrypted=True),)
