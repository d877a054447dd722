"""A hypervisor runs its tenant with an SNP victim's ASID, as a guest that no RMP check is made for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from cluster.laboratory.protection import Column
from cluster.laboratory.scene import Setting, act_out
from cluster.oracle.verdict import Outcome, judge
from node.generation import Generation
from node.operations import NestedMap, Read, VmcbWrite, VmRun
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
def test_and_by_the_value_of_its_registers_before_that() -> None:
    assert outcome(ES) is Outcome.BLOCKED
    assert outcome(ES, platform=NO_SEALS) is Outcome.LEAKED
