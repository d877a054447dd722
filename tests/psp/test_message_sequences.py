"""Any order of messages, good and bad, against a model of four counters: what is answered, and what refusals leave."""

from asking_guest import RESPONSE, opened, running, sealed, submit
from cryptography.exceptions import InvalidTag
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_machine import PAGE, context

from psp.guest_message import MessageType
from psp.status import Status

KINDS = {MessageType.TSC_INFO_REQ: bytes(128), MessageType.REPORT_REQ: bytes(64) + b"\3" + bytes(31), 0x7F: bytes(8)}
MACHINE = running()
messages = st.tuples(
    st.integers(0, 3),
    st.sampled_from([1, 1, 1, 1, 0, -1, 2, 3]),
    st.sampled_from(sorted(KINDS)),
    st.sampled_from([0, 0, 0, 0, 1]),
)
"""VMPCK, how far from the last number, what, and whether somebody changes it on its way."""


@settings(max_examples=40, deadline=None)
@given(st.lists(messages, max_size=8))
def test_firmware_answers_what_comes_next_and_nothing_else(sent):
    counts = list(context(MACHINE).message_counts)
    for vmpck, step, kind, changed in sent:
        key = context(MACHINE).vmpck(vmpck)
        sequence = counts[vmpck] + step
        if sequence < 0:
            continue
        message = bytearray(sealed(key, sequence, kind, KINDS[kind], vmpck))
        message[-1] ^= changed
        status = submit(MACHINE, bytes(message))
        if step != 1:
            assert status == Status.AEAD_OFLOW
        elif changed or kind == 0x7F:
            assert status == Status.INVALID_PARAM
        else:
            assert status == Status.SUCCESS
            counts[vmpck] += 2
            answer = MACHINE.bus.read(RESPONSE, PAGE)
            assert opened(key, answer)[:2] == (counts[vmpck], kind + 1)
            for other in {0, 1, 2, 3} - {vmpck}:
                try:
                    opened(context(MACHINE).vmpck(other), answer)
                except InvalidTag:
                    continue
                raise AssertionError(other)
        assert list(context(MACHINE).message_counts) == counts
