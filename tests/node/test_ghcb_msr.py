"""The GHCB MSR protocol: values as the specification lays them, and nothing else is a message."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import ghcb_msr as msr

WORD = st.integers(0, (1 << 64) - 1)

# Values put together by hand from the table of the GHCB specification (2.3): request, response.
EXCHANGES = [
    (msr.SevInfoRequest(), 0x002, msr.SevInfo(2, 1, 51), 0x0002_0001_3300_0001),
    (msr.CpuidRequest(0x8000_001F, 1), 0x8000_001F_4000_0004, msr.CpuidValue(0x12F, 1), 0x0000_012F_4000_0005),
    (msr.ApResetHoldRequest(), 0x006, msr.ApResetHold(1), 0x1007),
    (msr.PreferredGhcbRequest(), 0x010, msr.PreferredGhcb(msr.NO_PREFERENCE), 0xFFFF_FFFF_FFFF_F011),
    (msr.RegisterGhcbRequest(0x809), 0x80_9012, msr.RegisteredGhcb(0x809), 0x80_9013),
    (msr.PageStateRequest(0x809, 2), 0x0020_0000_0080_9014, msr.PageStateResult(0), 0x015),
    (msr.PageStateRequest((1 << 40) - 1, 1), 0x001F_FFFF_FFFF_F014, msr.PageStateResult(7), 0x7_0000_0015),
    (msr.RunVmplRequest(2), 0x2_0000_0016, msr.RunVmplResult(0), 0x017),
    (msr.FeaturesRequest(), 0x080, msr.Features(3), 0x3081),
]


@pytest.mark.parametrize(("request_", "asked", "response", "answered"), EXCHANGES)
def test_messages_lie_where_the_specification_puts_them(request_, asked, response, answered):
    assert request_.value == asked
    assert msr.parse_request(asked) == request_
    assert response.value == answered
    assert msr.parse_response(request_, answered) == response


def test_a_termination_names_its_reason():
    request = msr.TerminateRequest(msr.ReasonSet.LINUX, msr.LinuxReason.PVALIDATE)
    assert request.value == 0x2_1100
    assert msr.parse_request(0x2_1100) == request


def test_a_value_without_a_code_is_the_address_of_a_page():
    assert msr.parse_request(0x80_9000) == msr.GhcbPageAt(0x809)


UNKNOWN = [0x001, 0x003, 0x005, 0x017, 0x018, 0x081, 0x101, 0xF00, 0xF03, 0xFFF]
RESERVED = [0x1002, 1 << 63 | 2, 1 << 12 | 4, 1 << 56 | 0x014, 1 << 40 | 0x016, 1 << 12 | 0x080, 1 << 24 | 0x100]


@pytest.mark.parametrize("value", [*UNKNOWN, *RESERVED])
def test_what_is_no_request_or_has_a_reserved_bit_is_refused(value):
    with pytest.raises(msr.GhcbMsrError):
        msr.parse_request(value)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (msr.SevInfoRequest(), 0x002),  # left as it was
        (msr.SevInfoRequest(), 0x0002_0001_3300_1001),
        (msr.CpuidRequest(1, 0), msr.CpuidValue(5, 1).value),
        (msr.RegisterGhcbRequest(9), msr.RegisteredGhcb(8).value),
        (msr.RegisterGhcbRequest(9), msr.RegisteredGhcb(msr.NO_PREFERENCE).value),
        (msr.PageStateRequest(9, 1), msr.RunVmplResult(0).value),
        (msr.FeaturesRequest(), 0),
    ],
)
def test_a_guest_takes_no_answer_to_another_question(request_, answer):
    with pytest.raises(msr.GhcbMsrError):
        msr.parse_response(request_, answer)


@given(WORD)
def test_every_value_is_one_request_or_refused(value):
    try:
        request = msr.parse_request(value)
    except msr.GhcbMsrError:
        return
    assert request.value == value


@given(WORD, st.sampled_from([one[0] for one in EXCHANGES]))
def test_every_value_is_one_response_or_refused(value, request_):
    try:
        response = msr.parse_response(request_, value)
    except msr.GhcbMsrError:
        return
    assert response.value == value


def test_a_field_too_wide_is_the_callers_mistake():
    with pytest.raises(msr.GhcbMsrError, match=r"CpuidRequest\.register: expected 2 bits"):
        assert msr.CpuidRequest(0, 4).value
