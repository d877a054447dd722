"""A victim whose stack pointer is shifted reads what it did not mean to (row 34), and an undisturbed one never does."""

from __future__ import annotations

import pytest

from cluster.laboratory.protection import Column
from cluster.laboratory.scene import Setting, act_out
from cluster.oracle.verdict import Outcome, judge
from node.core_msrs import STACK_ENGINE_OFF, Msr
from node.operations import ReadMsr, VmPreempt, VmRun, WriteMsr
from workloads.attacks.target import LET_IT_RUN

THREAD = 8


def stop(thread: int, bits: int, rounds: int):
    """Stop an engine after the victim has called, for so many of its stages."""

    def attack(target):
        yield (VmPreempt(target.victim.vm, 0), VmRun(target.victim.vm, 0, THREAD), ReadMsr(thread, Msr.DE_CFG))
        yield LET_IT_RUN
        for _ in range(rounds):
            yield (WriteMsr(thread, Msr.DE_CFG, bits),)
            yield LET_IT_RUN
        yield (WriteMsr(thread, Msr.DE_CFG, 0),)
        for _ in range(3):
            yield LET_IT_RUN

    return attack


@pytest.mark.parametrize(
    ("thread", "bits", "rounds", "expected"),
    [
        (THREAD + 1, STACK_ENGINE_OFF, 1, Outcome.CORRUPTED),
        (THREAD + 1, STACK_ENGINE_OFF, 4, Outcome.CORRUPTED),
        (THREAD + 1, STACK_ENGINE_OFF, 0, Outcome.BLOCKED),
        (THREAD + 1, 1 << 9, 1, Outcome.BLOCKED),
        (THREAD, STACK_ENGINE_OFF, 1, Outcome.BLOCKED),
        (THREAD - 1, STACK_ENGINE_OFF, 1, Outcome.BLOCKED),
    ],
)
def test_it_takes_the_other_thread_and_this_bit(thread: int, bits: int, rounds: int, expected: Outcome) -> None:
    found = judge(*act_out(Setting(Column.SEV_SNP, "Milan", victim="caller"), stop(thread, bits, rounds)))
    assert found.outcome is expected, found
