"""A tenant reads memory of another, by the hypervisor's mistake or with its help (rows 44, 45, 46).

The tenant's own program goes on meanwhile, so each maps the foreign page where that program only reads.
"""

from __future__ import annotations

from node.operations import HypervisorOperation, PspCommand, PValidate, Read, RmpUpdate, VmcbClear
from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.system_bus import RmpEntry
from workloads.attacks.nested_remap import point, smash
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Target
from workloads.attacks.vault import PAGE_BYTES


def wrong_mapping(target: Target) -> Attack:
    """Row 44: a page of the victim backs a page of the tenant, which reads it as its own."""
    mine = target.tenant.secret
    yield LET_IT_RUN
    yield WRITE_BACK
    yield smash(target.victim.secret, mine)
    yield (point(target.tenant, mine, target.victim.secret.spa),)
    yield (Read(mine.gpa, PAGE_BYTES),)


def two_contexts(target: Target) -> Attack:
    """Row 46: one page of DRAM is mapped in both; the tenant reads it with and without the C-bit."""
    mine = target.tenant.secret
    yield LET_IT_RUN
    yield WRITE_BACK
    yield smash(target.victim.secret, mine)
    yield (point(target.tenant, mine, target.victim.secret.spa),)
    yield (Read(mine.gpa, PAGE_BYTES),)
    yield (Read(mine.gpa, PAGE_BYTES, private=False),)


def freed_page(target: Target) -> Attack:
    """Row 45: the victim ends, its page is not scrubbed and goes to the tenant, which accepts and reads it."""
    victim, mine = target.victim, target.tenant.secret
    freed = victim.secret.spa
    yield LET_IT_RUN
    yield WRITE_BACK
    yield smash(victim.secret, mine)
    yield from _end(target)
    yield (RmpUpdate(freed, PAGE_BYTES, RmpEntry()),)
    if target.tenant.gctx:  # Only an SNP guest can use a page that is assigned.
        yield (RmpUpdate(freed, PAGE_BYTES, RmpEntry(assigned=True, gpa=mine.gpa, asid=target.tenant.asid)),)
    yield (point(target.tenant, mine, freed),)
    yield (PValidate(mine.gpa, PAGE_BYTES, large=False),)
    yield (Read(mine.gpa, PAGE_BYTES),)
    yield (Read(mine.gpa, PAGE_BYTES, private=False),)


def _end(target: Target) -> Attack:
    """Tear the victim down and scrub nothing."""
    victim, page = target.victim, target.command_page
    yield (VmcbClear(victim.vm),)
    commands: tuple[HypervisorOperation, ...] = ()
    if victim.gctx:
        context = buffers.GuestContextPage(address=victim.gctx)
        commands = (PspCommand(SnpCommand.DECOMMISSION, page, context.pack()),)
    elif victim.handle:
        handle = buffers.Handle(handle=victim.handle).pack()
        commands = tuple(
            PspCommand(code, page, handle) for code in (LegacyCommand.DEACTIVATE, LegacyCommand.DECOMMISSION)
        )
    if commands:
        yield commands
