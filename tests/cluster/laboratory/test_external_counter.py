"""A counter outside of the host: a victim that was put back ends itself before it uses anything, whoever carries."""

from dataclasses import replace

import pytest

from cluster.laboratory.external_counter import ExternalCounter
from cluster.laboratory.protection import Column
from cluster.laboratory.scene import Scene, Setting, act_out
from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Transcript
from cluster.oracle.verdict import Outcome, judge
from node.guest import GuestState
from node.operations import DiskRead, HostRead
from workloads.attacks import migration
from workloads.attacks.counted import BEHIND, CounterKey
from workloads.attacks.target import LET_IT_RUN

KEY = CounterKey(bytes(range(32)))
COUNTED = Setting(Column.SEV_SNP, "Milan", moves=True, external_counter=True, victim="counted")


def test_the_counter_calls_each_number_the_newest_once():
    counter = ExternalCounter(KEY)
    asked = [KEY.question(number, rounds) for number, rounds in ((7, 1), (8, 2), (9, 2), (7, 1), (1, 5))]
    newest = [True, True, False, False, True]
    expected = [KEY.answer(one, newest=is_newest) for one, is_newest in zip(asked, newest, strict=True)]
    assert [counter.answer(one) for one in asked] == expected
    assert counter.count == 5


@pytest.mark.parametrize("question", [b"", bytes(48), CounterKey(bytes(32)).question(7, 3)])
def test_whoever_has_not_the_key_gets_no_answer_and_moves_nothing(question):
    counter = ExternalCounter(KEY)
    assert counter.answer(question) == b""
    assert counter.count == 0


def rounds(scene):
    victim = scene.host.guests["victim"]
    return victim.state, victim.vcpus[0].registers.r13


def test_a_victim_that_nobody_puts_back_goes_on():
    scene = Scene(COUNTED, Ledger(), Transcript())

    def harmless(target):
        yield (HostRead(target.spare[0], 16),)
        for _ in range(3):
            yield LET_IT_RUN

    scene.play(harmless)
    assert rounds(scene) == (GuestState.RUNNING, 4)
    assert scene.counter.count == 4


def test_an_old_answer_is_none_to_a_new_question():
    """The same number of rounds in both: only the processor's random number tells them apart."""
    scene = Scene(COUNTED, Ledger(), Transcript())
    kept = []

    def answer(question):
        kept.append(scene.counter.key.answer(question, newest=True))
        return kept[0]

    class Replaying:
        key = scene.counter.key

    Replaying.answer = staticmethod(answer)
    scene.counter = Replaying()
    scene.let_run(scene.host.guests["victim"])
    assert rounds(scene) == (GuestState.RUNNING, 1)
    scene.let_run(scene.host.guests["victim"])
    assert scene.host.guests["victim"].shutdown_code == BEHIND.code
    assert kept[0] != kept[1]


def test_one_that_was_put_back_is_behind_though_its_hypervisor_keeps_the_answer_that_it_once_had():
    class Keeping(ExternalCounter):
        """Carried by somebody who gives the first answer to a number of rounds again."""

        def __init__(self, key):
            super().__init__(key)
            self.first = {}

        def answer(self, question):
            return self.first.setdefault(self.key.rounds(question), super().answer(question))

    transcript, ledger = Transcript(), Ledger()
    scene = Scene(COUNTED, ledger, transcript)
    scene.counter = Keeping(scene.counter.key)
    scene.play(migration.roll_back)
    arrived = scene.moves.there.guests["victim"]
    assert (arrived.state, arrived.shutdown_code) == (GuestState.STOPPED, BEHIND.code)
    assert judge(ledger, transcript).outcome is Outcome.DETECTED


@pytest.mark.parametrize("way", [migration.roll_back, migration.roll_back_disk])
def test_without_the_counter_nobody_notices(way):
    assert judge(*act_out(COUNTED, way)).outcome is Outcome.DETECTED
    found = judge(*act_out(replace(COUNTED, external_counter=False), way))
    assert found.outcome is Outcome.CORRUPTED, found


def test_a_number_is_on_the_disk_before_the_round_is_over_and_goes_with_the_machine():
    scene = Scene(replace(COUNTED, external_counter=False), Ledger(), Transcript())
    numbers = []

    def move(target):
        yield LET_IT_RUN
        numbers.extend((yield (DiskRead("victim"),)))
        session = yield from migration.agree()
        stream = yield from migration.take_out()
        yield from migration.come_up(session, stream)

    scene.play(move)
    (there,) = scene.moves.there.board.execute_host((DiskRead("victim"),))
    assert [int.from_bytes(one.runs[0][1][:8], "little") for one in (*numbers, there)] == [1, 2]
