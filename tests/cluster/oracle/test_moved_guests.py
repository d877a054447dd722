"""What the judge makes of migration agents and of firmware that takes pages in: who noticed, and who only refused."""

import pytest

from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Transcript
from cluster.oracle.verdict import Outcome, judge
from node.actor import HYPERVISOR
from node.operations import AgentCall, PspAnswer, PspCommand
from node.packing import packed
from psp.commands import SnpCommand
from psp.status import Status
from psp.swap_buffers import SnpPageSwapIn

CONTEXT, OTHER = 0x10_0000, 0x20_0000
REFUSED, DONE = packed(("refused", "why not")), packed(("done", None))


def outcome(*steps):
    book, transcript = Ledger(), Transcript()
    book.keep("victim", "canary", bytes(range(64)))
    for operation, answer in steps:
        transcript.observe(HYPERVISOR, (operation,), (answer,))
    return judge(book, transcript).outcome


def order(*what):
    return AgentCall("migration agent", packed(what), 0, 0, 0, 0)


def swap_in(context, status, command=SnpCommand.PAGE_SWAP_IN):
    return PspCommand(command, 0, SnpPageSwapIn(context, 0, 0, 0, 0).pack()), PspAnswer(status, b"")


IMPORTED = order("import", "victim", CONTEXT, b""), DONE


def test_an_agent_that_does_not_believe_its_peer_has_noticed_it():
    assert outcome((order("meet", "victim", b"", False), REFUSED)) is Outcome.DETECTED


@pytest.mark.parametrize(
    "asked", [("meet", "tenant", b"", False), ("import", "victim", CONTEXT, b""), ("export", "victim", CONTEXT), ("?",)]
)
def test_an_agent_that_refuses_anything_else_or_for_another_guest_has_only_refused(asked):
    assert outcome((order(*asked), REFUSED)) is Outcome.BLOCKED


def test_an_order_and_an_answer_that_are_none_are_nothing():
    garbage = AgentCall("migration agent", b"\xc1", 0, 0, 0, 0)
    assert outcome((garbage, b"\xc1"), (garbage, None)) is Outcome.BLOCKED


def test_a_tag_that_does_not_fit_is_noticed_for_the_guest_that_an_agent_has_put_there():
    wrong = swap_in(CONTEXT, Status.BAD_MEASUREMENT)
    assert outcome(IMPORTED, wrong) is Outcome.DETECTED
    assert outcome(wrong, IMPORTED) is Outcome.BLOCKED
    assert outcome(IMPORTED, swap_in(OTHER, Status.BAD_MEASUREMENT)) is Outcome.BLOCKED
    assert outcome((order("import", "tenant", CONTEXT, b""), DONE), wrong) is Outcome.BLOCKED
    assert outcome((IMPORTED[0], REFUSED), wrong) is Outcome.BLOCKED


@pytest.mark.parametrize("status", [Status.INVALID_MDATA_ENTRY, Status.INVALID_GUEST, Status.POLICY_FAILURE])
def test_an_order_that_firmware_does_not_carry_out_is_only_refused(status):
    assert outcome(IMPORTED, swap_in(CONTEXT, status)) is Outcome.BLOCKED
