"""What an agent or handler takes for its firmware's answer: the one to the message that it has just sent."""

import pytest

from node.agent_messages import MOST_TRIES, AgentRefusal, Carry, ask_firmware
from node.message_place import COUNT_BYTES, VMPCK_BYTES
from node.operations import Read, Write
from psp.guest_message import MessageHeader, MessageKey, MessageType
from psp.report_messages import ReportRequest

KEY = bytes(range(VMPCK_BYTES))
LAST, ANSWER = 6, b"what firmware says" * 4
ASKED = MessageType.REPORT_REQ


def answered(*pages):
    """What comes of answers to message 7, which is sent again as it was after all but the last: the payload.

    Its number is used up once.
    """
    asking = ask_firmware(0x1000, ASKED, ReportRequest(bytes(64)))
    assert [type(one) for one in next(asking)] == [Read, Read]
    carried = asking.send((KEY, LAST.to_bytes(COUNT_BYTES, "little")))
    assert isinstance(carried, Carry)
    assert MessageHeader.checked(carried.message).sequence == LAST + 1
    for page in pages[:-1]:
        assert asking.send(page) == carried
    (kept,) = asking.send(pages[-1])
    assert isinstance(kept, Write)
    assert int.from_bytes(kept.data, "little") == LAST + 2
    with pytest.raises(StopIteration) as done:
        asking.send((None,))
    return done.value.value


def sealed(sequence=LAST + 2, kind=ASKED + 1, key=KEY):
    return MessageKey(key).seal(0, sequence, kind, 1, ANSWER)


def test_the_answer_to_its_message_is_taken_and_both_numbers_are_used_up():
    assert answered(sealed()) == ANSWER


@pytest.mark.parametrize("wrong", [sealed(sequence=LAST), bytes(4096)])
def test_firmware_that_did_not_answer_is_asked_the_same_again(wrong):
    assert answered(wrong, sealed()) == answered(wrong, wrong, sealed()) == ANSWER


@pytest.mark.parametrize(
    ("page", "line"),
    [
        (sealed(sequence=LAST), "the answer to another message"),
        (sealed(sequence=LAST + 4), "the answer to another message"),
        (sealed(kind=ASKED), "the answer to another message"),
        (sealed(kind=MessageType.EXPORT_REQ + 1), "the answer to another message"),
        (sealed(key=KEY[::-1]), "no answer of the firmware's"),
        (sealed()[:-1], "no answer of the firmware's"),
        (bytes(4096), "no answer of the firmware's"),
    ],
)
def test_an_older_a_later_and_anybody_else_s_answer_is_refused(page, line):
    with pytest.raises(AgentRefusal, match=line):
        answered(*[page] * MOST_TRIES)
