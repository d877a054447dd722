"""Somebody with a hand on the memory modules: what lies in DRAM is read and changed past every chip (rows 07, 08)."""

from __future__ import annotations

from workloads.attacks.dimm_operations import DimmDump, DimmPoke
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Target
from workloads.attacks.write_memory import JUNK


def cold_boot(_: Target) -> Attack:
    """Row 07: take the modules out while they still hold their contents."""
    yield LET_IT_RUN
    yield WRITE_BACK
    yield (DimmDump(),)


def change_dram(target: Target) -> Attack:
    """Row 08: change a page on the bus or in the module."""
    yield LET_IT_RUN
    yield WRITE_BACK
    yield (DimmPoke(target.victim.value.spa, JUNK),)
