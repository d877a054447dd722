"""Byte enables, configuration requests and completions in parts: headers by hand from the base specification."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tio.ide import CompletionStatus, IdeError, IdePort, Outcome, SubStream, Tlp, TlpError, Waiting, WaitingRequests
from tio.ide.requests import (
    completion_status,
    completions,
    configuration_read,
    configuration_write,
    is_last,
    read_bytes,
    refusal,
    remaining,
    span,
    target,
    write_bytes,
    written,
)

HOST, CARD = 0x0018, 0x0100


@pytest.mark.parametrize(
    ("address", "length", "dwords", "enables"),
    [
        (0x1000, 4, 1, 0x0F),
        (0x1001, 1, 1, 0x02),
        (0x1002, 2, 1, 0x0C),
        (0x1001, 2, 1, 0x06),
        (0x1003, 2, 2, 0x18),  # last byte of the first double word, first of the second
        (0x1000, 8, 2, 0xFF),
        (0x1001, 7, 2, 0xFE),
        (0x1000, 9, 3, 0x1F),
        (0x1FFF, 1, 1, 0x08),
    ],
)
def test_a_request_names_double_words_and_which_of_their_bytes_it_means(
    address: int, length: int, dwords: int, enables: int
) -> None:
    one = read_bytes(HOST, address, length, tag=5)
    first = address & ~3
    expected = f"20 00 {dwords:04x} {HOST:04x} 05 {enables:02x} 00000000 {first:08x}"
    assert one.header == bytes.fromhex(expected.replace(" ", ""))
    assert span(one) == (address, length)
    data = bytes(range(1, length + 1))
    write = write_bytes(HOST, address, data)
    assert write.header[0] == 0x60
    assert len(write.payload) == 4 * dwords
    assert written(write) == (address, data)


@pytest.mark.parametrize(
    "enables",
    [0x05, 0x09, 0x0B, 0x1F],
)
def test_gaps_are_refused(enables: int) -> None:
    one = read_bytes(HOST, 0x1000, 4)
    with pytest.raises(TlpError, match="byte enables"):
        span(Tlp(one.header[:7] + bytes((enables,)) + one.header[8:]))
    two = read_bytes(HOST, 0x1000, 8)
    with pytest.raises(TlpError, match="byte enables"):
        span(Tlp(two.header[:7] + b"\xf7" + two.header[8:]))


@pytest.mark.parametrize(("address", "length"), [(0xFFE, 3), (0, 0), (-1, 1), ((1 << 64) - 1, 2), (0, 4097)])
def test_what_no_request_can_be_is_refused(address: int, length: int) -> None:
    with pytest.raises(TlpError):
        read_bytes(HOST, address, length)


def test_a_read_of_no_byte_is_a_flush() -> None:
    one = read_bytes(HOST, 0x1000, 4)
    flush = Tlp(one.header[:7] + b"\0" + one.header[8:])
    assert span(flush) == (0x1000, 0)
    (answer,) = completions(CARD, flush, b"", 256)
    assert len(answer.payload) == 4


def test_configuration_requests_name_function_and_register() -> None:
    """Type 0: bus, device and function in bytes 8 and 9, the register's number in bits 11:2 of the next two."""
    read = configuration_read(HOST, CARD, 0x10E, 2, 7)
    assert read.header == bytes.fromhex("04000001 0018070c 0100010c")
    assert (target(read), span(read), read.sub_stream) == (CARD, (0x10E, 2), SubStream.NPR)
    write = configuration_write(HOST, CARD, 0x05, 0xAB, 1, 7)
    assert write.header == bytes.fromhex("44000001 00180702 01000004")
    assert write.payload == bytes.fromhex("00ab0000")
    for offset, width in ((1, 2), (0, 8), (4096, 4), (-4, 4)):
        with pytest.raises(TlpError):
            configuration_read(HOST, CARD, offset, width)


def test_a_read_is_answered_up_to_borders_and_each_part_says_what_is_to_come() -> None:
    """2.3.1.1: parts end at borders; byte count counts down; the lower address is where a part begins."""
    request = read_bytes(CARD, 0x10F5, 600, tag=9)
    data = bytes(range(256)) * 3
    parts = list(completions(HOST, request, data[:600], 256))
    assert [remaining(one) for one in parts] == [600, 600 - 11, 600 - 11 - 256, 600 - 11 - 512]
    assert [one.header[11] for one in parts] == [0x75, 0, 0, 0]
    assert [is_last(one) for one in parts] == [False, False, False, True]
    assert {(one.requester, one.tag) for one in parts} == {(CARD, 9)}
    waiting = Waiting(request, tee=True)
    for one in parts:
        assert waiting.outcome is Outcome.MISSING
        waiting.take(one, tee=True)
    assert (waiting.outcome, waiting.data) == (Outcome.ANSWERED, data[:600])


def test_4096_bytes_are_counted_as_zero() -> None:
    (answer, *_) = completions(HOST, read_bytes(CARD, 0x1000, 4096), bytes(4096), 4096)
    assert (int.from_bytes(answer.header[6:8], "big"), remaining(answer)) == (0, 4096)
    assert is_last(answer)


def test_a_refusal_has_no_data_and_is_the_last() -> None:
    one = refusal(HOST, read_bytes(CARD, 0x1000, 64, tag=3))
    assert one.header == bytes.fromhex("0a000000 00182000 01000300")
    assert completion_status(one) == CompletionStatus.UNSUPPORTED_REQUEST
    assert is_last(one)
    waiting = Waiting(read_bytes(CARD, 0x1000, 64, tag=3), tee=False)
    waiting.take(one, tee=False)
    assert waiting.outcome is Outcome.REFUSED


def test_more_requests_than_there_are_tags_are_an_error_and_none_is_sent() -> None:
    port = IdePort()
    waiting = WaitingRequests(port)
    with pytest.raises(IdeError, match="free tag"):
        waiting.ask([lambda tag: read_bytes(CARD, 0x1000, 4, tag)] * 257, lambda _: None, tee=False)
    assert port.free_tag() == 0


def test_what_is_not_answered_has_timed_out_when_everything_was_carried() -> None:
    port = IdePort(tag_fence=True)
    waiting = WaitingRequests(port)
    (one,) = waiting.ask([lambda tag: read_bytes(CARD, 0x1000, 4, tag)], lambda _: None, tee=False)
    assert one.outcome is Outcome.MISSING
    assert port.free_tag() == 1  # fenced


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 4095), st.integers(1, 4096), st.sampled_from((64, 128, 256, 512)))
def test_parts_of_any_read_come_together_again(at: int, length: int, most_bytes: int) -> None:
    length = min(length, 4096 - at)
    data = bytes(number * 7 & 0xFF for number in range(length))
    request = read_bytes(CARD, 0x7000 + at, length)
    waiting = Waiting(request, tee=False)
    for one in completions(HOST, request, data, most_bytes):
        assert len(one.checked().payload) <= most_bytes
        waiting.take(one, tee=False)
    assert waiting.data == data
