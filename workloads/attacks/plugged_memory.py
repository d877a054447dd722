"""The hypervisor says that it has added memory to a guest that runs (COCONUT-SVSM issue 114).

What it names may be new, or a page that the guest uses already: a guest that asks no more than whether PVALIDATE
went well takes both for fresh, and begins something new in the middle of what it has.
"""

from __future__ import annotations

from node.operations import HostWrite, RmpUpdate
from psp.system_bus import RmpEntry
from workloads.attacks.nested_remap import point, smash
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Target
from workloads.attacks.target_page import Page
from workloads.attacks.vault import PAGE_BYTES

ADDED_GPA = 1 << 32
"""Where there was nothing."""


def name_a_page_in_use(target: Target) -> Attack:
    """Name the page where the guest keeps its book."""
    yield LET_IT_RUN
    yield smash(target.victim.value)
    yield _say(target, target.victim.value.gpa)
    yield WRITE_BACK
    yield LET_IT_RUN


def add_a_page(target: Target) -> Attack:
    """Add one indeed, as an honest hypervisor does."""
    victim, added = target.victim, Page(ADDED_GPA, target.spare[0])
    yield (RmpUpdate(added.spa, PAGE_BYTES, RmpEntry(assigned=True, gpa=added.gpa, asid=victim.asid)),)
    yield (point(victim, added, added.spa),)
    yield _say(target, added.gpa)
    yield WRITE_BACK
    yield LET_IT_RUN


def _say(target: Target, gpa: int) -> tuple[HostWrite, ...]:
    return (HostWrite(target.victim.inbox.spa, gpa.to_bytes(8, "little")),)
