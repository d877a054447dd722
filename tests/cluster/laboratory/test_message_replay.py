"""Row 62: firmware's count stops a message that comes again, the guest kernel's an old answer; each alone."""

import pytest

from cluster.laboratory.protection import Column
from cluster.laboratory.scene import Setting, act_out
from cluster.oracle.transcript import Entry
from cluster.oracle.verdict import Outcome, judge
from node.operations import HostRead, PspAnswer, PspCommand
from node.platform import Platform, Protection
from psp.commands import SnpCommand
from psp.status import Status
from workloads.attacks.message_replay import send_again, serve_old_answer
from workloads.attacks.target import LET_IT_RUN

NO_COUNT = Platform(disabled=frozenset({Protection.MESSAGE_SEQUENCE}))


def played(attack, **changes):
    return act_out(Setting(Column.SEV_SNP, "Milan", victim="petitioner", **changes), attack)


@pytest.mark.parametrize(
    ("attack", "changes", "outcome"),
    [
        (send_again, {}, Outcome.BLOCKED),
        (send_again, {"platform": NO_COUNT}, Outcome.CORRUPTED),
        (send_again, {"checks_answers": False}, Outcome.BLOCKED),
        (serve_old_answer, {}, Outcome.BLOCKED),
        (serve_old_answer, {"platform": NO_COUNT}, Outcome.BLOCKED),
        (serve_old_answer, {"checks_answers": False}, Outcome.CORRUPTED),
    ],
)
def test_each_side_stops_what_is_its_own_to_stop(attack, changes, outcome):
    found = judge(*played(attack, **changes))
    assert found.outcome is outcome, found


def test_the_firmware_says_why():
    _, transcript = played(send_again)
    asked = [
        one.answer.status
        for one in transcript.entries
        if isinstance(one, Entry) and isinstance(one.operation, PspCommand) and isinstance(one.answer, PspAnswer)
        if one.operation.command == SnpCommand.GUEST_REQUEST
    ]
    assert asked.count(Status.AEAD_OFLOW) == 2
    assert asked.count(Status.SUCCESS) == len(asked) - 2 > 2, "the victim's own go on"


def test_a_victim_whose_messages_are_left_alone_keeps_its_promises():
    def harmless(target):
        for _ in range(3):
            yield (HostRead(target.spare[0], 16),)
            yield LET_IT_RUN

    found = judge(*played(harmless))
    assert (found.outcome, found.evidence) == (Outcome.BLOCKED, "nothing but garbage")
