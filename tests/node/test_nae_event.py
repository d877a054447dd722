"""Non-automatic exits: what each must show, what its words may hold, and the reason when they do not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import nae_event as nae
from node.ghcb_page import BadInput, GhcbExit, GhcbRefused, Scratch, build_exit, parse_exit
from node.nae_event import NaeEvent

GPA, PAGE = 0x80_9000, 0x100_0000
BUFFER = GPA + 0x800


def ask(code, info1=0, info2=0, version=2, **registers):
    registers = {"SW_SCRATCH" if name == "SCRATCH" else name: value for name, value in registers.items()}
    return nae.parse_request(parse_exit(build_exit(code, info1, info2, registers, version=version), GPA))


GOOD = [
    (NaeEvent.CPUID, {"RAX": 0x8000_001F, "RCX": 0}, nae.CpuidQuery(0x8000_001F, 0, 0, 0)),
    (NaeEvent.CPUID, {"RAX": 0xD, "RCX": 0, "XCR0": 7}, nae.CpuidQuery(0xD, 0, 7, 0)),
    (NaeEvent.CPUID, {"RAX": 0xD, "RCX": 1, "XCR0": 7, "XSS": 9}, nae.CpuidQuery(0xD, 1, 7, 9)),
    (NaeEvent.MSR, {"RCX": 0xC001_0131}, nae.MsrRequest(False, 0xC001_0131, 0)),
    (NaeEvent.MSR, {"info1": 1, "RCX": 0x10, "RAX": 5, "RDX": 6}, nae.MsrRequest(True, 0x10, 6 << 32 | 5)),
    # IN of a byte, OUT of two, and a repeated string of four bytes thrice: bits of the specification.
    (NaeEvent.IOIO, {"info1": 0x3F8 << 16 | 1 << 4 | 1}, nae.IoRequest(False, 0x3F8, 1, 0, None)),
    (NaeEvent.IOIO, {"info1": 0x80 << 16 | 1 << 5, "RAX": 0x12345}, nae.IoRequest(True, 0x80, 2, 0x2345, None)),
    (
        NaeEvent.IOIO,
        {"info1": 0x510 << 16 | 1 << 6 | 1 << 2 | 1 << 3 | 1, "info2": 3, "SCRATCH": BUFFER},
        nae.IoRequest(False, 0x510, 4, 0, Scratch(BUFFER, 12, 0x800)),
    ),
    (
        NaeEvent.MMIO_READ,
        {"info1": 0xFEC0_0000, "info2": 4, "SCRATCH": BUFFER},
        nae.MmioRequest(False, 0xFEC0_0000, 4, Scratch(BUFFER, 4, 0x800)),
    ),
    (
        NaeEvent.MMIO_WRITE,
        {"info1": 0xFEC0_0000, "info2": 8, "SCRATCH": PAGE},
        nae.MmioRequest(True, 0xFEC0_0000, 8, Scratch(PAGE, 8, None)),
    ),
    (NaeEvent.PAGE_STATE_CHANGE, {"SCRATCH": BUFFER}, nae.PageStateRequest(Scratch(BUFFER, 2032, 0x800))),
    (NaeEvent.PAGE_STATE_CHANGE, {"SCRATCH": BUFFER + 2016}, nae.PageStateRequest(Scratch(BUFFER + 2016, 16, 0xFE0))),
    (NaeEvent.PAGE_STATE_CHANGE, {"SCRATCH": PAGE}, nae.PageStateRequest(Scratch(PAGE, 2032, None))),
    (NaeEvent.GUEST_REQUEST, {"info1": PAGE, "info2": PAGE + 4096}, nae.GuestRequest(PAGE, PAGE + 4096)),
    (
        NaeEvent.EXTENDED_GUEST_REQUEST,
        {"info1": PAGE, "info2": PAGE + 4096, "RAX": 8192, "RBX": 4},
        nae.GuestRequest(PAGE, PAGE + 4096, 8192, 4),
    ),
    (
        NaeEvent.AP_CREATION,
        {"info1": 3 << 32 | 1, "info2": PAGE + 4096, "RAX": 1},
        nae.ApCreation(nae.ApCreationKind.CREATE, 0, 3, PAGE + 4096, 1),
    ),
    (NaeEvent.AP_CREATION, {"info1": 3 << 32 | 2}, nae.ApCreation(nae.ApCreationKind.DESTROY, 0, 3, 0, 0)),
    (NaeEvent.RUN_VMPL, {"info1": 2}, nae.RunVmpl(2)),
    (NaeEvent.TERMINATION, {"info1": 0x21}, nae.Termination(1, 2)),
    (NaeEvent.HYPERVISOR_FEATURES, {}, nae.InfoRequest(0, 0)),
    (NaeEvent.VMMCALL, {"RAX": 7, "CPL": 0}, nae.RegistersRequest({"RAX": 7, "CPL": 0})),
]


@pytest.mark.parametrize(("code", "shown", "request_"), GOOD)
def test_an_event_is_parsed_from_what_it_must_show(code, shown, request_):
    assert ask(code, **shown) == request_


@pytest.mark.parametrize(
    ("code", "shown", "missing"),
    [(code, shown, name) for code, shown, _ in GOOD for name in shown if name not in ("info1", "info2")],
)
def test_each_missing_input_is_refused(code, shown, missing):
    with pytest.raises(GhcbRefused) as refused:
        ask(code, **{name: value for name, value in shown.items() if name != missing})
    assert refused.value.reason is BadInput.MISSING_INPUT


INVALID = {
    "I/O without a width": (NaeEvent.IOIO, {"info1": 1}),
    "I/O of two widths": (NaeEvent.IOIO, {"info1": 0x31}),
    "I/O with a reserved bit": (NaeEvent.IOIO, {"info1": 0x13}),
    "I/O past the ports": (NaeEvent.IOIO, {"info1": 1 << 32 | 0x11}),
    "I/O repeated no time": (NaeEvent.IOIO, {"info1": 0x1D, "info2": 0, "SCRATCH": BUFFER}),
    "MSR neither read nor write": (NaeEvent.MSR, {"info1": 2, "RCX": 0}),
    "MMIO of 3 bytes": (NaeEvent.MMIO_READ, {"info2": 3, "SCRATCH": BUFFER}),
    "MMIO of nothing": (NaeEvent.MMIO_WRITE, {"info2": 0, "SCRATCH": BUFFER}),
    "MMIO past the end": (NaeEvent.MMIO_READ, {"info1": (1 << 52) - 4, "info2": 8, "SCRATCH": BUFFER}),
    "request page not aligned": (NaeEvent.GUEST_REQUEST, {"info1": PAGE + 8, "info2": PAGE + 4096}),
    "response page not aligned": (NaeEvent.GUEST_REQUEST, {"info1": PAGE, "info2": PAGE + 4097}),
    "one page for both": (NaeEvent.GUEST_REQUEST, {"info1": PAGE, "info2": PAGE}),
    "data not aligned": (NaeEvent.EXTENDED_GUEST_REQUEST, {"info1": PAGE, "info2": 4096, "RAX": 1, "RBX": 1}),
    "endless data": (NaeEvent.EXTENDED_GUEST_REQUEST, {"info1": PAGE, "info2": 4096, "RAX": 0, "RBX": 1 << 63}),
    "AP of no kind": (NaeEvent.AP_CREATION, {"info1": 3, "info2": PAGE, "RAX": 1}),
    "AP at VMPL 4": (NaeEvent.AP_CREATION, {"info1": 4 << 16, "info2": PAGE, "RAX": 1}),
    "AP with a reserved bit": (NaeEvent.AP_CREATION, {"info1": 1 << 20 | 1, "info2": PAGE, "RAX": 1}),
    "AP with another": (NaeEvent.AP_CREATION, {"info1": 1 << 31 | 1, "info2": PAGE, "RAX": 1}),
    "AP without a save area": (NaeEvent.AP_CREATION, {"info1": 1, "info2": 0, "RAX": 1}),
    "AP with a save area across pages": (NaeEvent.AP_CREATION, {"info1": 1, "info2": PAGE + 1, "RAX": 1}),
    "VMPL 4": (NaeEvent.RUN_VMPL, {"info1": 4}),
    "a reason too wide": (NaeEvent.TERMINATION, {"info1": 1 << 12}),
}


@pytest.mark.parametrize(("code", "shown"), INVALID.values(), ids=INVALID)
def test_words_that_mean_nothing_are_refused(code, shown):
    with pytest.raises(GhcbRefused) as refused:
        ask(code, **shown)
    assert refused.value.reason is BadInput.INVALID_INPUT


@pytest.mark.parametrize("info2", [513 * 4, 1 << 40, (1 << 64) - 1])
def test_a_string_longer_than_its_scratch_is_refused(info2):
    with pytest.raises(GhcbRefused) as refused:
        ask(NaeEvent.IOIO, info1=0x1D, info2=info2, SCRATCH=BUFFER)
    assert refused.value.reason is BadInput.BAD_SCRATCH


RESERVED = [0, 1, 0x26, 0x71, 0x73, 0x8000_0000, 0x8000_0006, 0x8000_0019, 0x8000_001B, 0x8000_0022, 0x8000_FFFC]


@pytest.mark.parametrize("code", [*RESERVED, (1 << 64) - 1, 1 << 32 | 0x72])
def test_an_exit_code_of_no_event_is_refused(code):
    with pytest.raises(GhcbRefused) as refused:
        ask(code, RAX=0, RCX=0)
    assert refused.value.reason is BadInput.INVALID_EVENT


SETTLED = {
    0x27, 0x37, 0x6E, 0x6F, 0x72, 0x76, 0x7B, 0x7C, 0x81, 0x87, 0x89, 0x8A, 0x8B, *range(0x8000_0001, 0x8000_0006),
    *range(0x8000_0010, 0x8000_0019), 0x8000_001A, 0x8000_0020, 0x8000_0021, 0x8000_FFFD, 0x8000_FFFE, 0x8000_FFFF,
}  # fmt: skip
"""Codes of the GHCB sheet, section 4.2, whose inputs are known; those of TIO come from patches."""


def test_every_other_exit_code_is_reserved():
    refusals = {BadInput.INVALID_EVENT: set(), None: set()}
    for code in (*range(0x500), *range(0x8000_0000, 0x8000_0100), *range(0x8000_FF00, 0x8001_0000)):
        try:
            ask(code, RAX=0, RBX=0, RCX=0, RDX=0, CPL=0, SCRATCH=BUFFER)
        except GhcbRefused as refused:
            refusals.get(refused.reason, refusals[None]).add(code)
        else:
            refusals[None].add(code)
    assert refusals[None] == SETTLED


def test_events_of_version_2_are_none_under_version_1():
    assert ask(NaeEvent.CPUID, version=1, RAX=0, RCX=0) == nae.CpuidQuery(0, 0, 0, 0)
    for code in (NaeEvent.PAGE_STATE_CHANGE, NaeEvent.GUEST_REQUEST, NaeEvent.AP_CREATION):
        with pytest.raises(GhcbRefused) as refused:
            ask(code, version=1, SCRATCH=BUFFER)
        assert refused.value.reason is BadInput.INVALID_EVENT


WORD = st.integers(0, (1 << 64) - 1) | st.integers(0, 64) | st.sampled_from((BUFFER, PAGE, PAGE + 4096, GPA))


@given(st.sampled_from(sorted(nae.EVENTS)), st.dictionaries(
    st.sampled_from(("RAX", "RBX", "RCX", "RDX", "SW_SCRATCH", "XCR0", "XSS")), WORD
), WORD, WORD)  # fmt: skip
def test_any_exit_is_a_request_or_refused_with_a_reason(code, registers, info1, info2):
    fields = {**registers, "SW_EXITCODE": code, "SW_EXITINFO1": info1, "SW_EXITINFO2": info2}
    try:
        nae.parse_request(GhcbExit(GPA, 2, fields, bytes(2032)))
    except GhcbRefused as refused:
        assert refused.reason in BadInput


def test_every_event_has_a_row_and_its_outputs_are_fields():
    assert set(nae.EVENTS) == set(NaeEvent)
