"""A guest that finds out for itself where the C-bit is: no honest host troubles it, and no false place deceives it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.laboratory.lying_hypervisor import DenyingHypervisor, MisplacingHypervisor
from cluster.laboratory.protection import Column, products
from cluster.laboratory.scene import Cast, Scene, Setting, act_out
from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Complaint, Transcript
from cluster.oracle.verdict import Outcome, judge
from node.guest import GuestState
from node.operations import HostRead
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Target

DENIED, MISPLACED = Cast(hypervisor=DenyingHypervisor), Cast(hypervisor=MisplacingHypervisor)


def look(target: Target) -> Attack:
    """Read the page where the secret will be, when it is there."""
    yield LET_IT_RUN
    yield WRITE_BACK
    yield (HostRead(target.victim.secret.spa, 4096, encrypted=target.victim.c_bit),)


def test_an_honest_host_is_no_enemy() -> None:
    for column in Column:
        ledger, transcript = Ledger(), Transcript()
        ledger.protect("victim")
        every = dict.fromkeys(("checks_sev_status", "checks_c_bit", "checks_cpuid", "reads_cpuid_page"), True)
        setting = Setting(column, products(column)[-1], **every)
        scene = Scene(replace(setting, victim="newcomer"), ledger, transcript)
        scene.play(look)
        victim = scene.host.guests["victim"]
        assert (victim.state, victim.vcpus[0].registers.r13 > 0) == (GuestState.RUNNING, True), column
        assert not [one for one in transcript.entries if isinstance(one, Complaint)]
        open_to_the_host = column in (Column.PLAIN, Column.SME, Column.TSME)
        assert (judge(ledger, transcript).outcome is Outcome.LEAKED) is open_to_the_host, column


@pytest.mark.parametrize("column", Column)
def test_an_honest_launch_is_measured_as_its_owner_expects(column: Column) -> None:
    ledger, transcript = act_out(Setting(column, products(column)[0], victim="booted"), look)
    assert not [one for one in transcript.entries if isinstance(one, Complaint)]
    assert judge(ledger, transcript).outcome is Outcome.BLOCKED


@pytest.mark.parametrize("column", [Column.SEV, Column.SEV_ES])
def test_a_false_place_of_the_c_bit_costs_the_secret_of_whoever_does_not_try_it_out(column: Column) -> None:
    assert judge(*act_out(Setting(column, "Milan", victim="newcomer"), look, cast=MISPLACED)).outcome is Outcome.LEAKED


def test_trying_it_out_shows_that_it_is_false() -> None:
    careful = Setting(Column.SEV_ES, "Milan", checks_c_bit=True, victim="newcomer")
    assert judge(*act_out(careful, look, cast=MISPLACED)).outcome is Outcome.DETECTED
    # Without a GHCB nobody is told; but nothing is lost.
    plain = replace(careful, column=Column.SEV)
    assert judge(*act_out(plain, look, cast=MISPLACED)).outcome in (Outcome.BLOCKED, Outcome.DOS)


CHECKS = ("checks_sev_status", "checks_c_bit", "checks_cpuid")


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    ("cast", "found_by"), [(DENIED, set(CHECKS)), (MISPLACED, {"checks_c_bit"})]
)
def test_each_check_alone_finds_the_lie_that_it_is_good_for(cast: Cast, found_by: set[str], check: str) -> None:
    setting = Setting(Column.SEV_ES, "Milan", victim="newcomer", **{check: True})
    found = judge(*act_out(setting, look, cast=cast))
    assert found.outcome is (Outcome.DETECTED if check in found_by else Outcome.LEAKED), found


def test_who_makes_none_of_them_loses_the_secret_to_either_lie() -> None:
    for cast in (DENIED, MISPLACED):
        assert judge(*act_out(Setting(Column.SEV_ES, "Milan", victim="newcomer"), look, cast=cast)).outcome == "leaked"


def test_under_an_rmp_no_table_is_found_at_the_false_place() -> None:
    setting = Setting(Column.SEV_SNP, "Milan", victim="newcomer")
    assert judge(*act_out(setting, look, cast=MISPLACED)).outcome is Outcome.BLOCKED
