"""A hypervisor runs its tenant with an SNP victim's ASID, as a guest that no RMP check is made for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from cluster.laboratory.protection import Column
from cluster.laboratory.scene import Setting, act_out
from cluster.oracle.verdict import Outcome, judge
from node.generation import Generation
from node.operations import NestedMap, Read, VmcbWrite, VmKick, VmPreempt, VmRun
from node.platform import AS_USUAL, Platform, Protection
from node.product import PRODUCTS
from workloads.attacks.nested_remap import smash
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Target
from workloads.attacks.vault import PAGE_BYTES

AWAY = 1 << 40
"""A guest-physical address that the tenant's own program has no use for."""
SEV, ES = Generation.SEV, Generation.SEV_ES
NO_SEALS = Platform(disabled=frozenset({Protection.SAVE_AREA_INTEGRITY}))


def borrow_asid(generation: Generation) -> Callable[[Target], Attack]:
    def attack(target: Target) -> Attack:
        victim, tenant = target.victim, target.tenant
        yield LET_IT_RUN
        yield WRITE_BACK
        yield smash(victim.secret)
        yield (
            NestedMap(tenant.vm, AWAY, victim.secret.spa, PAGE_BYTES),
            VmcbWrite(tenant.vm, 0, victim.asid, generation.name, target.spare[0]),
            VmRun(tenant.vm, 0),
        )
        yield (Read(AWAY, PAGE_BYTES),)

    return attack


def outcome(generation: Generation, product: str = "Milan", platform: Platform = AS_USUAL) -> Outcome:
    setting = Setting(Column.SEV_SNP, product, platform)
    return judge(*act_out(setting, borrow_asid(generation))).outcome


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads of guests that are not SNP-active pass the RMP."""
    row = PRODUCTS["Milan"]
    switched = replace(row, rmp=replace(row.rmp, sev_reads_checked=False))
    monkeypatch.setitem(PRODUCTS, "Milan", switched)  # type: ignore[arg-type]


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
@pytest.mark.parametrize("generation", [SEV, ES])
def test_an_snp_guests_asid_lets_nobody_else_read_its_memory(generation: Generation, product: str) -> None:
    assert outcome(generation, product) is Outcome.BLOCKED


@pytest.mark.usefixtures("unchecked")
def test_plain_sev_is_stopped_by_vmrun_already() -> None:
    assert outcome(SEV) is Outcome.BLOCKED


def test_sev_es_with_an_asid_of_its_own_range_is_stopped_by_the_rmp() -> None:
    assert outcome(ES, platform=NO_SEALS) is Outcome.BLOCKED


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("platform", [AS_USUAL, NO_SEALS])
def test_and_no_code_of_the_tenants_runs_behind_the_victims_key(platform: Platform) -> None:
    """What a core fetches there the victim's key decrypts: the tenant's program is nothing but garbage."""
    assert outcome(ES, platform=platform) is Outcome.BLOCKED


# A tenant in its victim's save area.

GUESTS = [(Column.SEV_SNP, "Milan"), (Column.SEV_SNP, "Turin"), (Column.SEV_ES, "Rome")]


def wear(*before: type) -> Callable[[Target], Attack]:
    """Enter the tenant with the victim's save area and all of its pages; then read, or let its program read."""

    def attack(target: Target) -> Attack:
        victim, tenant = target.victim, target.tenant
        yield LET_IT_RUN
        yield WRITE_BACK
        mine = [getattr(victim, name) for name in PAGES]
        its = [getattr(tenant, name) for name in PAGES]
        yield smash(*mine)
        yield (
            VmPreempt(victim.vm, 0),
            *[NestedMap(tenant.vm, gpa.gpa, page.spa, PAGE_BYTES) for gpa, page in zip(its, mine, strict=True)],
            VmcbWrite(tenant.vm, 0, victim.asid, victim.generation, victim.save_area),
            *[kind(tenant.vm, 0) for kind in before],
        )
        yield (Read(tenant.secret.gpa, PAGE_BYTES),)
        yield LET_IT_RUN
        yield LET_IT_RUN

    return attack


PAGES = ("secret", "value", "other", "decision", "answer", "request", "code")


@pytest.mark.parametrize("before", [(), (VmRun,), (VmKick,)], ids=["scheduled", "VMRUN", "kicked"])
@pytest.mark.parametrize(("column", "product"), GUESTS)
def test_a_tenant_in_its_victims_save_area_reads_nothing(
    column: Column, product: str, before: tuple[type, ...]
) -> None:
    verdict = judge(*act_out(Setting(column, product), wear(*before)))
    assert verdict.outcome in (Outcome.BLOCKED, Outcome.DOS), verdict


@pytest.mark.parametrize("tlb_entries", [None, 64])
@pytest.mark.parametrize("product", ["Rome", "Milan"])
def test_a_tenant_whose_new_control_block_vmrun_refused_does_not_run_with_it(
    product: str, tlb_entries: int | None
) -> None:
    def attack(target: Target) -> Attack:
        victim, tenant = target.victim, target.tenant
        yield LET_IT_RUN
        yield WRITE_BACK
        yield smash(victim.secret)
        rest = zip([getattr(tenant, name) for name in PAGES[1:]], target.spare[1:], strict=False)
        yield (
            NestedMap(tenant.vm, tenant.secret.gpa, victim.secret.spa, PAGE_BYTES),
            *[NestedMap(tenant.vm, page.gpa, spa, PAGE_BYTES) for page, spa in rest],
            VmcbWrite(tenant.vm, 0, victim.asid, "SEV_ES", target.spare[0]),
            VmRun(tenant.vm, 0),
        )
        yield LET_IT_RUN
        yield LET_IT_RUN

    setting = Setting(Column.SEV_ES, product, Platform(tlb_entries=tlb_entries))
    verdict = judge(*act_out(setting, attack))
    assert verdict.outcome in (Outcome.BLOCKED, Outcome.DOS), verdict
