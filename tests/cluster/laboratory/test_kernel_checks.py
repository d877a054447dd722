"""Checks of a guest's kernel that no row of the matrix names: off, each gives what was published of it."""

from __future__ import annotations

import pytest

from cluster.laboratory.interface import Interface
from cluster.laboratory.lying_hypervisor import MisleadingHypervisor
from cluster.laboratory.protection import Column
from cluster.laboratory.scene import VICTIM, Cast, Scene, Setting, act_out
from cluster.laboratory.victims import IMAGE
from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Transcript
from cluster.oracle.verdict import Outcome, judge
from node.event_injection import ExceptionVector, exception
from node.guest import GuestState
from node.operations import HostRead, VmcbStore, VmKick
from node.platform import Platform, Protection
from node.vmexit import ExitCode
from node.vmsa import SevFeature
from workloads.attacks.injection import take_a_store
from workloads.attacks.plugged_memory import add_a_page, name_a_page_in_use
from workloads.attacks.target import LET_IT_RUN

SNP = ((Column.SEV_SNP, "Milan"), (Column.SEV_SNP, "Genoa"), (Column.SEV_TIO, "Turin"))


def grower(column: Column, product: str, checks: bool, platform: Platform = Platform()) -> Setting:  # noqa: B008
    return Setting(column, product, platform, victim="grower", checks_carry=checks)


@pytest.mark.parametrize(("column", "product"), SNP)
def test_a_page_in_use_passes_for_new_where_nobody_looks_at_the_carry(column: Column, product: str) -> None:
    off = judge(*act_out(grower(column, product, checks=False), name_a_page_in_use))
    assert off.outcome is Outcome.CORRUPTED, off
    on = judge(*act_out(grower(column, product, checks=True), name_a_page_in_use))
    assert on.outcome is Outcome.DETECTED, on


@pytest.mark.parametrize("checks", [False, True])
def test_a_page_that_is_new_is_taken_either_way(checks: bool) -> None:
    scene = Scene(grower(Column.SEV_SNP, "Milan", checks), Ledger(), Transcript())
    scene.play(add_a_page)
    victim = scene.host.guests["victim"]
    assert (victim.state, victim.faults, victim.vcpus[0].registers.r12) == (GuestState.RUNNING, 0, 1 << 32)


def test_a_hypervisor_that_names_nothing_harms_nobody() -> None:
    def idle(target):
        for _ in range(3):
            yield LET_IT_RUN
        yield from add_a_page(target)

    found = judge(*act_out(grower(Column.SEV_SNP, "Milan", checks=False), idle))
    assert found.outcome is Outcome.BLOCKED, found


def test_the_carry_is_pvalidates_own_answer_and_needs_no_other_check_of_the_rmp() -> None:
    for protection in (Protection.VALIDATED_BIT, Protection.RMP_WRITE_CHECK):
        setting = grower(Column.SEV_SNP, "Milan", checks=True, platform=Platform(disabled=frozenset({protection})))
        assert judge(*act_out(setting, name_a_page_in_use)).outcome is Outcome.DETECTED


ENCRYPTED = ((Column.SEV_ES, "Rome"), (Column.SEV_SNP, "Milan"), (Column.SEV_TIO, "Turin"))


def keeper(column: Column, product: str, checks: bool, features: int = 0) -> Setting:
    return Setting(column, product, victim="keeper", vc_handler_verifies=checks, sev_features=features)


def outcome_of_a_store(setting: Setting) -> Outcome:
    return judge(*act_out(setting, take_a_store, Interface.VMM_COMMUNICATION)).outcome


@pytest.mark.parametrize(("column", "product"), ENCRYPTED)
def test_a_store_to_memory_passes_for_one_to_a_device_where_nobody_looks_at_the_instruction(column, product) -> None:
    assert outcome_of_a_store(keeper(column, product, checks=False)) is Outcome.LEAKED
    assert outcome_of_a_store(keeper(column, product, checks=True)) is Outcome.DETECTED


def test_alternate_injection_lets_no_such_vc_in() -> None:
    setting = keeper(Column.SEV_SNP, "Milan", checks=False, features=int(SevFeature.ALTERNATE_INJECTION))
    assert outcome_of_a_store(setting) is Outcome.BLOCKED


@pytest.mark.parametrize("column", [Column.PLAIN, Column.SEV])
def test_without_encrypted_registers_there_is_no_vc(column: Column) -> None:
    assert outcome_of_a_store(keeper(column, "Milan", checks=False)) is Outcome.NOT_APPLICABLE


@pytest.mark.parametrize("code", [ExitCode.CPUID, ExitCode.VMMCALL, 0x1234])
@pytest.mark.parametrize("checks", [False, True])
def test_what_no_handler_could_do_with_a_store_ends_the_guest(code: int, checks: bool) -> None:
    def attack(target):
        yield LET_IT_RUN
        event = exception(ExceptionVector.VC, code)
        yield (VmcbStore(target.victim.vm, 0, "EVENTINJ", event.field), VmKick(target.victim.vm, 0))
        yield LET_IT_RUN

    found = judge(*act_out(keeper(Column.SEV_ES, "Rome", checks), attack))
    assert found.outcome is Outcome.DETECTED, found


@pytest.mark.parametrize("checks", [False, True])
def test_a_kernel_that_lays_its_jump_table_where_it_is_told_stores_into_its_own_firmware(checks: bool) -> None:
    def look(target):
        yield (HostRead(target.spare[0], 16),)
        yield LET_IT_RUN

    ledger, transcript = Ledger(), Transcript()
    ledger.promise(VICTIM, IMAGE.gpa, IMAGE.data[:4])
    setting = Setting(Column.SEV_ES, "Rome", two_processes=True, checks_jump_table=checks)
    Scene(setting, ledger, transcript, Cast(hypervisor=MisleadingHypervisor)).play(look)
    found = judge(ledger, transcript)
    assert found.outcome is (Outcome.DETECTED if checks else Outcome.CORRUPTED), found
