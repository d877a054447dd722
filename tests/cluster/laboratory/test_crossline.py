"""What a VM with a victim's ASID gets (rows 20, 21), what it takes for that, and that the victim lives on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.laboratory.protection import Column
from cluster.laboratory.scene import Scene, Setting, act_out
from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Conclusion, Transcript
from cluster.oracle.verdict import Outcome, judge
from node.guest import GuestState
from workloads.attacks.crossline import VM, load_entries, run_an_instruction
from workloads.attacks.single_step import Step
from workloads.attacks.target import LET_IT_RUN


def other_page(attack):
    """The same attack on the victim's status, which is random and looks like nothing."""

    def aimed(target):
        yield from attack(replace(target, victim=replace(target.victim, secret=target.victim.request)))

    return aimed


@pytest.mark.parametrize("column", [Column.SEV, Column.SEV_ES])
def test_a_walk_tells_only_of_what_looks_like_an_entry(column: Column) -> None:
    setting = Setting(column, "Rome", page_tables=True)
    _, transcript = act_out(setting, load_entries)
    (told,) = [one.octets for one in transcript.entries if isinstance(one, Conclusion)]
    assert len(told) == (64 if column is Column.SEV else 24)
    _, transcript = act_out(setting, other_page(load_entries))
    (told,) = [one.octets for one in transcript.entries if isinstance(one, Conclusion)]
    assert told == b""


@pytest.mark.parametrize("column", [Column.SEV, Column.SEV_ES, Column.SEV_SNP])
@pytest.mark.parametrize("attack", [load_entries, run_an_instruction])
def test_the_victim_goes_on_unharmed(column: Column, attack) -> None:
    scene = Scene(Setting(column, "Milan", page_tables=True), Ledger(), Transcript())
    scene.play(attack)
    victim = scene.host.guests["victim"]
    before = victim.vcpus[0].registers.r13
    scene.let_run(victim)
    assert (victim.state, victim.faults, victim.vcpus[0].registers.r13) == (GuestState.RUNNING, 0, before + 1)


def test_without_the_victims_instruction_there_is_nothing_to_run() -> None:
    # A vault without page tables of its own has no such code.
    found = judge(*act_out(Setting(Column.SEV, "Rome"), run_an_instruction))
    assert found.outcome is Outcome.BLOCKED, found


def test_what_nobody_entered_executes_nothing() -> None:
    def idle(target):
        yield LET_IT_RUN
        (code,) = yield (Step(target.victim.vm),)
        assert code == -1
        (code,) = yield (Step(VM),)
        assert code == -1

    _, transcript = act_out(Setting(Column.SEV, "Rome"), idle)
    assert not [one for one in transcript.entries if isinstance(one, Conclusion)]
