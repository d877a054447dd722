"""The hypervisor points a guest's addresses at other memory (rows 11 to 15 and 47), or at none (43).

Each smashes the 2 MiB entries first, as it must before it maps a part of one in
4 KiB; without an RMP that is #UD and changes nothing.
"""

from __future__ import annotations

from node.operations import HostRead, HostWrite, HypervisorOperation, NestedMap, NestedUnmap, PSmash, RmpUpdate
from psp.system_bus import LARGE_PAGE_BYTES, RmpEntry
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Household, Target
from workloads.attacks.target_page import Page
from workloads.attacks.vault import PAGE_BYTES
from workloads.attacks.write_memory import JUNK


def merge_pages(target: Target) -> Attack:
    """Row 11: back two pages of the guest with one page of DRAM, so that a store to one changes the other."""
    victim = target.victim
    yield LET_IT_RUN
    yield WRITE_BACK
    yield smash(victim.value, victim.other)
    yield (point(victim, victim.other, victim.value.spa),)


def serve_the_secret(target: Target) -> Attack:
    """Row 12 (SEVered): back the page that the guest serves with one of its secrets, and read what it serves."""
    victim = target.victim
    yield LET_IT_RUN
    yield WRITE_BACK
    yield smash(victim.answer, victim.secret)
    yield (point(victim, victim.answer, victim.secret.spa),)
    yield LET_IT_RUN
    yield WRITE_BACK
    yield (HostRead(victim.outbox.spa, PAGE_BYTES, encrypted=victim.c_bit),)


def fresh_page(target: Target) -> Attack:
    """Rows 13, 14: back a page with a fresh one that is duly the guest's, but which it never validated."""
    victim, fresh = target.victim, target.spare[0]
    yield LET_IT_RUN
    yield WRITE_BACK
    yield smash(victim.value)
    if victim.gctx:  # Only an SNP guest can use a page that is assigned.
        yield (RmpUpdate(fresh, PAGE_BYTES, RmpEntry(assigned=True, gpa=victim.value.gpa, asid=victim.asid)),)
    yield (point(victim, victim.value, fresh),)


def shared_page(target: Target) -> Attack:
    """Row 15: back a private page with one that the hypervisor keeps and has filled."""
    victim, mine = target.victim, target.spare[0]
    yield LET_IT_RUN
    yield WRITE_BACK
    yield smash(victim.value)
    yield (HostWrite(mine, JUNK),)
    yield WRITE_BACK
    yield (point(victim, victim.value, mine),)


def page_of_another(target: Target) -> Attack:
    """Row 15: back a private page with one of another guest."""
    victim = target.victim
    yield LET_IT_RUN
    yield WRITE_BACK
    yield smash(victim.value, target.tenant.value)
    yield (point(victim, victim.value, target.tenant.value.spa),)


def svsm_page_to_its_guest(target: Target) -> Attack:
    """Row 47: give the frame of an SVSM's page to its guest's operating system, at an address that this validates.

    The frame stays the guest's, so key and tweak stay: once validated, it reads as what the SVSM wrote. The system
    is the attacker's, too: the order which page to ask for comes to it through its inbox.
    """
    victim = target.victim
    yield LET_IT_RUN
    yield WRITE_BACK
    yield (RmpUpdate(victim.secret.spa, PAGE_BYTES, RmpEntry(assigned=True, gpa=victim.value.gpa, asid=victim.asid)),)
    yield (point(victim, victim.value, victim.secret.spa),)
    yield (HostWrite(victim.inbox.spa, victim.value.gpa.to_bytes(8, "little")),)
    yield WRITE_BACK
    yield LET_IT_RUN


def take_away(target: Target) -> Attack:
    """Row 43: back a page with nothing any more."""
    yield LET_IT_RUN
    yield smash(target.victim.value)
    yield (NestedUnmap(target.victim.vm, target.victim.value.gpa, PAGE_BYTES),)


def smash(*pages: Page) -> tuple[HypervisorOperation, ...]:
    """PSMASH the 2 MiB entries around pages."""
    blocks = dict.fromkeys(page.spa // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES for page in pages)
    return tuple(PSmash(block) for block in blocks)


def point(household: Household, page: Page, spa: int) -> NestedMap:
    """Back one page of a guest with another frame, mapped as its memory is."""
    return NestedMap(household.vm, page.gpa, spa, PAGE_BYTES, encrypted=household.c_bit)
