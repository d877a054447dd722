"""The victim of attacks on the device path lives undisturbed in every column, whatever its ways."""

from dataclasses import replace

import pytest

from cluster.laboratory.protection import Column, products
from cluster.laboratory.scene import OTHER_CARD, OWN_CARD, Scene, Setting
from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Entry, Transcript
from cluster.oracle.verdict import Outcome, judge
from node.guest import GuestState
from node.operations import HostRead, Write
from tio.tdisp import TdiState
from workloads.attacks.depositor_ways import DepositorWays
from workloads.attacks.target import LET_IT_RUN

ROUNDS = 3


def harmless(target):
    for _ in range(ROUNDS):
        yield (HostRead(target.spare[0], 16),)
        yield LET_IT_RUN


def played(column, **changes):
    ledger, transcript = Ledger(), Transcript()
    cards = (OWN_CARD, OTHER_CARD)
    setting = Setting(column, products(column)[-1], victim="depositor", cards=cards)
    scene = Scene(replace(setting, **changes), ledger, transcript)
    scene.play(harmless)
    return scene, judge(ledger, transcript), ledger, transcript


@pytest.mark.parametrize("column", Column)
def test_it_notes_what_it_brought_and_nobody_learns_of_it(column):
    scene, verdict, ledger, transcript = played(column)
    victim = scene.host.guests["victim"]
    assert (verdict.outcome, verdict.evidence) == (Outcome.BLOCKED, "nothing but garbage")
    assert (victim.state, victim.faults, victim.vcpus[0].registers.r13) == (GuestState.RUNNING, 0, ROUNDS + 1)
    written = {
        one.operation.gpa: one.operation.data
        for one in transcript.entries
        if isinstance(one, Entry) and one.actor.name == "victim" and isinstance(one.operation, Write)
    }
    # The device's size, all of the first rounds, and of the last its words alone.
    promised = ledger.promises("victim")
    assert len([at for at, octets in promised.items() if written.get(at) == octets]) == 1 + 3 * ROUNDS + 1
    state = scene.host.board.slots.by_port[OWN_CARD.port].card.tdi.state
    assert state is (TdiState.RUN if column is Column.SEV_TIO else TdiState.CONFIG_UNLOCKED)


@pytest.mark.parametrize(
    "ways",
    [
        DepositorWays(seals=1, detaches=1),
        DepositorWays(rechecks=1, wipes=0, detaches=1),
        DepositorWays(lock_flags=5),
        DepositorWays(trusts=0, detaches=1),
        DepositorWays(awaits=1, lock_flags=4),
        DepositorWays(polls=1, farewell=1, detaches=1),
    ],
    ids=str,
)
def test_it_lives_undisturbed_with_any_of_its_ways(ways):
    scene, verdict, _, _ = played(Column.SEV_TIO, ways=ways, device_scrubs=True)
    victim = scene.host.guests["victim"]
    assert (verdict.outcome, victim.state, victim.faults) == (Outcome.BLOCKED, GuestState.RUNNING, 0)
    assert victim.vcpus[0].registers.r13 == (2 if ways.detaches else ROUNDS + 1)
