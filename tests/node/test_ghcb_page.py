"""The GHCB page: offsets of the specification, valid bits, scratch memory, and replies that a guest may trust."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import ghcb_page as ghcb
from node.ghcb_page import BadInput, GhcbRefused, GhcbUntrusted

GPA = 0x80_9000


def poke(page, offset, value, width):
    page[offset : offset + width] = value.to_bytes(width, "little")


def by_hand(fields, bits, version=2, usage=0):
    """A page from offsets alone, without the table under test."""
    page = bytearray(4096)
    for offset, value in fields.items():
        poke(page, offset, value, 8)
    poke(page, 0x3F0, sum(1 << bit for bit in bits), 16)
    poke(page, 0xFFA, version, 2)
    poke(page, 0xFFC, usage, 4)
    return bytes(page)


GOOD = by_hand({0x390: 0x72, 0x1F8: 1, 0x308: 0}, {114, 115, 116, 63, 97})

# Offset and bit of each field, from the table of the specification as edk2's Ghcb.h has it.
FIELDS = {
    "CPL": (0x0CB, 25), "XSS": (0x140, 40), "DR7": (0x160, 44), "RIP": (0x178, 47), "RSP": (0x1D8, 59),
    "RAX": (0x1F8, 63), "RCX": (0x308, 97), "RDX": (0x310, 98), "RBX": (0x318, 99), "RBP": (0x328, 101),
    "RSI": (0x330, 102), "RDI": (0x338, 103), **{f"R{8 + n}": (0x340 + 8 * n, 104 + n) for n in range(8)},
    "SW_EXITCODE": (0x390, 114), "SW_EXITINFO1": (0x398, 115), "SW_EXITINFO2": (0x3A0, 116),
    "SW_SCRATCH": (0x3A8, 117), "XCR0": (0x3E8, 125),
}  # fmt: skip


@pytest.mark.parametrize(("name", "place"), FIELDS.items())
def test_each_field_and_its_valid_bit_lie_where_the_specification_puts_them(name, place):
    offset, bit = place
    page = bytearray(GOOD)
    poke(page, offset, 0xA5, 1)
    held = int.from_bytes(page[0x3F0:0x400], "little")
    poke(page, 0x3F0, held & ~(1 << bit) | 7 << 114, 16)
    if name not in ghcb.ALWAYS:
        assert name not in ghcb.parse_exit(bytes(page), GPA).fields
    poke(page, 0x3F0, held | 1 << bit, 16)
    assert ghcb.parse_exit(bytes(page), GPA).fields[name] & 0xFF == 0xA5
    assert len(FIELDS) == len(ghcb.GHCB_FIELDS)


def test_a_guest_builds_what_was_put_together_by_hand():
    assert ghcb.build_exit(0x72, registers={"RAX": 1, "RCX": 0}) == GOOD
    page = ghcb.build_exit(0x7B, buffer=b"data", version=1)
    assert (page[0x800:0x804], page[0xFFA:0xFFC], page[0xFFC:]) == (b"data", b"\1\0", bytes(4))


BAD = {
    "usage of a hypervisor's own": (by_hand({}, {114, 115, 116}, usage=1), BadInput.INVALID_USAGE),
    "usage in its second byte": (by_hand({}, {114, 115, 116}, usage=0x100), BadInput.INVALID_USAGE),
    "usage in its last byte": (by_hand({}, {114, 115, 116}, usage=1 << 24), BadInput.INVALID_USAGE),
    "version 0": (by_hand({}, {114, 115, 116}, version=0), ghcb.BAD_VERSION),
    "version 3": (by_hand({}, {114, 115, 116}, version=3), ghcb.BAD_VERSION),
    "no exit code": (by_hand({}, {115, 116}), BadInput.MISSING_INPUT),
    "no information 1": (by_hand({}, {114, 116}), BadInput.MISSING_INPUT),
    "no information 2": (by_hand({}, {114, 115}), BadInput.MISSING_INPUT),
    "nothing": (bytes(4096), ghcb.BAD_VERSION),
    "all ones": (b"\xff" * 4096, BadInput.INVALID_USAGE),
}


@pytest.mark.parametrize(("page", "reason"), BAD.values(), ids=BAD)
def test_a_malformed_page_gets_the_reason_of_the_specification(page, reason):
    with pytest.raises(GhcbRefused) as refused:
        ghcb.parse_exit(page, GPA)
    assert refused.value.reason is reason


def scratch(gpa, length):
    page = by_hand({0x3A8: gpa}, {114, 115, 116, 117})
    return ghcb.parse_exit(page, GPA).scratch(length)


@pytest.mark.parametrize(
    ("gpa", "length", "offset"),
    [
        (GPA + 0x800, 1, 0x800),
        (GPA + 0x800, 2032, 0x800),
        (GPA + 0xFEF, 1, 0xFEF),
        (GPA - 8, 8, None),
        (GPA + 4096, 65536, None),
        (0x1000, 8, None),
        ((1 << 64) - 8, 8, None),
    ],
)
def test_scratch_lies_in_the_buffer_or_outside_of_the_page(gpa, length, offset):
    assert scratch(gpa, length) == ghcb.Scratch(gpa, length, offset)


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (0, 8),
        (GPA, 8),
        (GPA + 0x7FF, 2),
        (GPA + 0xFEF, 2),
        (GPA + 0xFF0, 1),
        (GPA + 0x800, 2033),
        (GPA - 1, 2),
        (GPA + 4095, 2),
        (GPA - 8, 4096 + 16),
        (0x1000, 0),
        (0x1000, -1),
        (0x100_0000, 65537),
        ((1 << 64) - 8, 9),
    ],
)
def test_scratch_anywhere_else_is_refused(gpa, length):
    with pytest.raises(GhcbRefused) as refused:
        scratch(gpa, length)
    assert refused.value.reason is BadInput.BAD_SCRATCH


@given(st.integers(0, (1 << 64) - 1), st.integers(-10, 70000))
def test_scratch_never_covers_what_the_page_says_of_itself(gpa, length):
    try:
        found = scratch(gpa, length)
    except GhcbRefused:
        return
    covered = range(found.gpa, found.gpa + found.length)
    assert not range(max(covered.start, GPA), min(covered.stop, GPA + 0x800))
    assert not range(max(covered.start, GPA + 0xFF0), min(covered.stop, GPA + 0x1000))
    assert 0 < found.length <= 65536


def test_what_the_guest_did_not_show_is_not_known():
    asked = ghcb.parse_exit(by_hand({0x1F8: 7}, {114, 115, 116}), GPA)
    assert "RAX" not in asked.fields
    with pytest.raises(GhcbRefused, match="RAX"):
        asked.require(("RAX",))


def test_one_copy_is_taken_and_every_check_is_made_on_it():
    page = bytearray(GOOD)
    asked = ghcb.parse_exit(bytes(page), GPA)
    page[:] = b"\xff" * 4096
    assert (asked.code, asked.fields["RAX"], asked.buffer) == (0x72, 1, bytes(2032))


def replied(info1, info2, registers=None):
    return bytes(ghcb.build_reply(info1, info2, registers or {})).ljust(4096, b"\0")


def test_a_reply_clears_every_bit_but_its_own():
    assert replied(0, 5, {"RAX": 9})[0x3F0:0x400] == (1 << 115 | 1 << 116 | 1 << 63).to_bytes(16, "little")
    reply = ghcb.parse_reply(replied(0, 5, {"RAX": 9, "RBX": 3}), ("RAX",))
    assert (reply.info2, reply.registers, reply.exception) == (5, {"RAX": 9}, None)


UNTRUSTED = {
    "an output is missing": replied(0, 0),
    "malformed input": ghcb.refusal(BadInput.INVALID_EVENT).ljust(4096, b"\0"),
    "an outcome of no meaning": replied(3, 0),
    "no outcome": by_hand({}, {116, 63}),
    "no second word": by_hand({}, {115, 63}),
    "an interrupt": replied(1, 1 << 31 | 0x80),
    "a software interrupt": replied(1, 1 << 31 | 4 << 8 | 13),
    "an exception that is neither #GP nor #UD": replied(1, ghcb.exception_event(14)),
    "a #VC": replied(1, ghcb.exception_event(29)),
    "an exception that is not valid": replied(1, ghcb.exception_event(13) & ~(1 << 31)),
    "reserved bits": replied(1, ghcb.exception_event(13) | 1 << 12),
}


@pytest.mark.parametrize("page", UNTRUSTED.values(), ids=UNTRUSTED)
def test_a_guest_does_not_go_on_with_any_other_reply(page):
    with pytest.raises(GhcbUntrusted):
        ghcb.parse_reply(page, ("RAX",))


def test_a_hypervisor_may_ask_for_gp_and_ud():
    assert ghcb.exception_event(13, 0) == 0x8000_0B0D
    assert ghcb.parse_reply(replied(1, 0x8000_0B0D), ("RAX",)).exception == 13
    reply = ghcb.parse_reply(replied(1, 0x8000_0306), ())
    assert (reply.exception, reply.error_code) == (6, None)


def test_upper_bits_of_the_outcome_are_not_looked_at():
    assert ghcb.parse_reply(replied(1 << 32, 5), ()).info2 == 5


MOSTLY_PAGES = st.builds(
    lambda noise, start, version, usage: by_hand({}, {114, 115, 116}, version, usage)[:start]
    + noise[: 4096 - start]
    + by_hand({}, {114, 115, 116}, version, usage)[start + len(noise[: 4096 - start]) :],
    st.binary(max_size=64),
    st.integers(0x300, 0x400),
    st.sampled_from((0, 1, 2, 3)),
    st.sampled_from((0, 0, 0, 1)),
)


@given(MOSTLY_PAGES)
def test_any_page_is_an_exit_or_refused(page):
    try:
        asked = ghcb.parse_exit(page, GPA)
    except GhcbRefused:
        return
    assert set(ghcb.ALWAYS) <= set(asked.fields) <= set(FIELDS)


@given(MOSTLY_PAGES)
def test_any_page_is_a_reply_or_not_trusted(page):
    try:
        reply = ghcb.parse_reply(page, ("RAX",))
    except GhcbUntrusted:
        return
    assert reply.exception in (6, 13) or set(reply.registers) == {"RAX"}


def test_another_size_is_the_callers_mistake():
    for parse in (lambda page: ghcb.parse_exit(page, GPA), lambda page: ghcb.parse_reply(page, ())):
        with pytest.raises(ValueError, match="expected 4096 bytes"):
            parse(bytes(4095))
    with pytest.raises(ValueError, match="at most 2032"):
        ghcb.build_exit(1, buffer=bytes(2033))


def test_a_credulous_kernel_takes_whatever_lies_in_the_page_and_still_knows_a_page():
    page = bytearray(ghcb.GHCB_BYTES)
    for name, value in (("SW_EXITINFO2", 7), ("RAX", 1 << 63), ("RBX", 5)):
        page[ghcb.GHCB_FIELDS[name][0] : ghcb.GHCB_FIELDS[name][0] + 8] = value.to_bytes(8, "little")
    assert ghcb.take_reply(bytes(page), ("RAX",)) == ghcb.GhcbReply(7, {"RAX": 1 << 63})
    for other in (page[:-1], page + b"\0", b""):
        with pytest.raises(ValueError, match="expected 4096 bytes"):
            ghcb.take_reply(bytes(other), ())


def test_a_buffer_may_be_full():
    full = bytes(range(1, 255)) * 8
    assert ghcb.build_exit(0x7B, buffer=full)[0x800:0xFF0] == full
    with pytest.raises(ValueError, match="expected at most 2032"):
        ghcb.build_exit(0x7B, buffer=full + b"\0")
