"""What a DSM answers to a TSM, and to whoever else speaks to it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tdi_device import IDENTITY, OTHER_SESSION, RANGES, SESSION, STREAM, Device, locked, running

from tio.ide import Direction, SubStream
from tio.tdisp import (
    Capabilities,
    ErrorCode,
    InterfaceInfo,
    LockFlags,
    LockRequest,
    Message,
    MmioRange,
    RangeAttributes,
    Request,
    Response,
    Tampering,
    TdiState,
    parse_message,
    parse_report,
)
from tio.tdisp.messages import error_of, report_portion, report_request

R, E, S = Request, ErrorCode, TdiState
LOCK = LockRequest(0, STREAM).pack()


def test_a_lock_as_it_lies_on_the_wire() -> None:
    """Version, code, two reserved bytes, function id, eight reserved; flags, stream, offset, mask."""
    payload = LockRequest(LockFlags.NO_FW_UPDATE | LockFlags.LOCK_MSIX, 3, 0xD000_0000, 0).pack()
    wire = Message(R.LOCK_INTERFACE_REQUEST, IDENTITY.pack(), payload).pack()
    assert wire == bytes.fromhex(
        "10830000 00010000 00000000000000000500 03 00 000000d000000000 0000000000000000"
    )  # fmt: skip
    assert LockRequest.of(LockRequest(0, 3, -4096).pack()).mmio_reporting_offset == -4096


def test_version_capabilities_and_state_are_answered_in_any_state() -> None:
    unlocked, (held, _), run, wrong = Device(), locked(), running(), running()
    wrong.tdi.tamper(Tampering.BAR)
    for device, state in ((unlocked, S.CONFIG_UNLOCKED), (held, S.CONFIG_LOCKED), (run, S.RUN), (wrong, S.ERROR)):
        assert device.ask(R.GET_TDISP_VERSION).payload == bytes((1, 0x10))
        found = Capabilities.of(device.ask(R.GET_TDISP_CAPABILITIES, bytes(4)).payload)
        assert (found.lock_flags, R.VDM_REQUEST in found.requests, len(found.requests)) == (0x1F, False, 10)
        assert device.ask(R.GET_DEVICE_INTERFACE_STATE).payload == bytes((state,))


@pytest.mark.parametrize(
    ("code", "payload", "legal"),
    [
        (R.LOCK_INTERFACE_REQUEST, LOCK, {S.CONFIG_UNLOCKED}),
        (R.GET_DEVICE_INTERFACE_REPORT, report_request(0, 64), {S.CONFIG_LOCKED, S.RUN}),
        (R.START_INTERFACE_REQUEST, None, {S.CONFIG_LOCKED}),
        (R.STOP_INTERFACE_REQUEST, b"", set(S)),
        (R.BIND_P2P_STREAM_REQUEST, bytes((STREAM,)), {S.RUN}),
        (R.UNBIND_P2P_STREAM_REQUEST, bytes((STREAM,)), set()),  # none was bound
        (R.SET_MMIO_ATTRIBUTE_REQUEST, RANGES[3].pack(), {S.RUN}),
    ],
)
@pytest.mark.parametrize("state", list(S))
def test_a_request_that_is_not_legal_in_a_state_changes_nothing(
    code: Request, payload: bytes | None, legal: set[TdiState], state: TdiState
) -> None:
    device, nonce = Device(), bytes(32)
    device.give_keys()
    if state is not S.CONFIG_UNLOCKED:
        nonce = device.lock(LockFlags.BIND_P2P)
    if state in (S.RUN, S.ERROR):
        device.ask(R.START_INTERFACE_REQUEST, nonce)
    if state is S.ERROR:
        device.tdi.tamper(Tampering.BAR)
    refusal = device.refusal(code, nonce if payload is None else payload)
    if state in legal:
        assert refusal is None
        return
    in_run = state is S.RUN and code is R.UNBIND_P2P_STREAM_REQUEST
    assert refusal is (E.INVALID_REQUEST if in_run else E.INVALID_INTERFACE_STATE)
    assert device.tdi.state is state


def test_what_is_malformed_gets_the_error_that_the_standard_has_for_it() -> None:
    device, _ = locked()
    assert device.refusal(0x77) is E.UNSUPPORTED_REQUEST
    assert error_of(device.ask(0x77).payload).data == 0x77
    assert device.refusal(R.VDM_REQUEST) is E.UNSUPPORTED_REQUEST
    other = device.dsm.answer(SESSION, Message(R.GET_TDISP_VERSION, IDENTITY.pack(), version=0x20).pack())
    assert error_of(parse_message(other).payload).code is E.VERSION_MISMATCH
    # As the sample device of DMTF has it, which gives the version back that it was asked in.
    assert (other[0], other[4:16]) == (0x20, IDENTITY.pack())
    stranger = device.ask(R.GET_TDISP_VERSION, interface=b"\x01\x02" + bytes(10))
    assert error_of(stranger.payload).code is E.INVALID_INTERFACE
    for code in R:
        if code is not R.VDM_REQUEST:
            assert device.refusal(code, bytes(77)) is E.INVALID_REQUEST
    assert device.tdi.state is S.CONFIG_LOCKED


# LOCK and START.


@pytest.mark.parametrize(
    ("request_", "supported", "error"),
    [
        (LockRequest(1 << 5, STREAM), ~LockFlags(0), E.INVALID_REQUEST),
        (LockRequest(LockFlags.LOCK_MSIX, STREAM), LockFlags.NO_FW_UPDATE, E.INVALID_REQUEST),
        (LockRequest(0, STREAM, 0x800), ~LockFlags(0), E.INVALID_REQUEST),
        (LockRequest(0, STREAM + 1), ~LockFlags(0), E.INVALID_REQUEST),
    ],
)
def test_a_lock_that_cannot_be_leaves_the_interface_unlocked(
    request_: LockRequest, supported: LockFlags, error: ErrorCode
) -> None:
    device = Device(supported)
    device.give_keys()
    assert device.refusal(R.LOCK_INTERFACE_REQUEST, request_.pack()) is error
    assert device.tdi.state is S.CONFIG_UNLOCKED


def test_a_lock_needs_every_key_of_its_stream_from_the_same_session() -> None:
    device = Device()
    assert device.refusal(R.LOCK_INTERFACE_REQUEST, LOCK) is E.INVALID_REQUEST
    device.give_keys(OTHER_SESSION)
    assert device.refusal(R.LOCK_INTERFACE_REQUEST, LOCK) is E.INVALID_REQUEST
    assert device.refusal(R.LOCK_INTERFACE_REQUEST, LOCK, OTHER_SESSION) is None


def test_a_configuration_that_cannot_be_locked_is_said_so() -> None:
    device = Device()
    device.give_keys()
    device.card.wrong = "two BARs overlap"
    assert device.refusal(R.LOCK_INTERFACE_REQUEST, LOCK) is E.INVALID_DEVICE_CONFIGURATION
    device.card.wrong = None
    assert device.refusal(R.LOCK_INTERFACE_REQUEST, LOCK) is None


def test_a_nonce_is_good_once_for_its_own_lock() -> None:
    device, first = locked()
    assert device.refusal(R.START_INTERFACE_REQUEST, bytes(32)) is E.INVALID_NONCE
    assert device.tdi.state is S.CONFIG_LOCKED
    device.ask(R.STOP_INTERFACE_REQUEST)
    second = device.lock()
    assert second != first
    assert device.refusal(R.START_INTERFACE_REQUEST, first) is E.INVALID_NONCE
    assert device.refusal(R.START_INTERFACE_REQUEST, second) is None
    assert device.refusal(R.START_INTERFACE_REQUEST, second) is E.INVALID_INTERFACE_STATE
    assert device.card.calls == ["scrub", "begin"]


def test_another_session_can_do_nothing_to_a_locked_interface() -> None:
    device, nonce = locked()
    for code, payload in (
        (R.START_INTERFACE_REQUEST, nonce),
        (R.STOP_INTERFACE_REQUEST, b""),
        (R.GET_DEVICE_INTERFACE_REPORT, report_request(0, 64)),
    ):
        assert device.refusal(code, payload, OTHER_SESSION) is E.INVALID_REQUEST
    assert device.refusal(R.START_INTERFACE_REQUEST, nonce) is None
    for code, payload in ((R.SET_MMIO_ATTRIBUTE_REQUEST, RANGES[3].pack()), (R.STOP_INTERFACE_REQUEST, b"")):
        assert device.refusal(code, payload, OTHER_SESSION) is E.INVALID_REQUEST
    assert device.tdi.state is S.RUN
    device.dsm.end_session(SESSION)
    assert (device.tdi.state, device.tdi.why) == (S.ERROR, Tampering.SESSION_END)
    assert device.refusal(R.STOP_INTERFACE_REQUEST, b"", OTHER_SESSION) is None


# Report.


def whole_report(device: Device, step: int) -> bytes:
    out, remainder = b"", 1
    while remainder:
        portion, remainder = report_portion(
            device.ask(R.GET_DEVICE_INTERFACE_REPORT, report_request(len(out), step)).payload
        )
        out += portion
    return out


@pytest.mark.parametrize("step", [1, 64, 4096])
def test_a_report_comes_in_portions_of_any_size(step: int) -> None:
    device, _ = locked(LockFlags.LOCK_MSIX | LockFlags.NO_FW_UPDATE, offset=0xD000_0000)
    report = parse_report(whole_report(device, step))
    assert report.info == InterfaceInfo.NO_FW_UPDATE | InterfaceInfo.DMA_WITHOUT_PASID
    assert [one.first_page for one in report.ranges] == [0xD_0000 + one.first_page for one in RANGES]
    assert (report.msix_control, report.tph_control, report.specific) == (0x8003, 0x11, b"a card")


def test_msix_is_reported_only_where_it_is_locked_and_offsets_go_below_zero_too() -> None:
    device, _ = locked(offset=-0x100_0000)
    report = parse_report(whole_report(device, 64))
    assert [one.range_id for one in report.ranges] == [0, 0, 4]
    assert (report.msix_control, report.tph_control) == (0, 0)
    assert report.ranges[0].first_page == 0
    device.ask(R.STOP_INTERFACE_REQUEST)
    device.lock(offset=-0x200_0000)
    assert parse_report(whole_report(device, 64)).ranges[0].first_page == (1 << 52) - 0x1000


def test_a_portion_beyond_the_report_is_refused() -> None:
    device, _ = locked()
    size = len(whole_report(device, 4096))
    for offset, length in ((size, 1), (0xFFFF, 1), (0, 0)):
        assert device.refusal(R.GET_DEVICE_INTERFACE_REPORT, report_request(offset, length)) is E.INVALID_REQUEST


# MMIO, T bit and peers.


def test_trusted_memory_takes_trusted_packets_of_the_bound_stream_alone() -> None:
    device, nonce = locked(LockFlags.LOCK_MSIX)
    assert not device.tdi.admits(0, tee=True, stream_id=STREAM)
    assert not device.tdi.admits(0, tee=False, stream_id=None)
    device.ask(R.START_INTERFACE_REQUEST, nonce)
    for number, one in enumerate(RANGES):
        assert device.tdi.admits(number, tee=True, stream_id=STREAM)
        assert not device.tdi.admits(number, tee=True, stream_id=STREAM + 1)
        assert not device.tdi.admits(number, tee=True, stream_id=None)
        open_to_all = bool(one.attributes & RangeAttributes.IS_NON_TEE_MEM)
        assert device.tdi.admits(number, tee=False, stream_id=None) is open_to_all
    assert (device.tdi.may_send(tee=True), device.tdi.may_send(tee=False)) == (True, True)
    device.tdi.tamper(Tampering.FUNCTION_RESET)
    assert not any(device.tdi.admits(0, tee=tee, stream_id=STREAM) for tee in (True, False))
    assert (device.tdi.may_send(tee=True), device.tdi.may_send(tee=False)) == (False, False)
    device.ask(R.STOP_INTERFACE_REQUEST)
    assert device.tdi.admits(0, tee=False, stream_id=None)
    assert not device.tdi.admits(0, tee=True, stream_id=STREAM)


def test_only_a_range_that_says_so_becomes_untrusted_and_the_report_stays() -> None:
    device = running(LockFlags.LOCK_MSIX)
    before = whole_report(device, 4096)
    for wanted in (
        MmioRange(0x1000, 4, RangeAttributes.IS_NON_TEE_MEM, 0),
        MmioRange(0x3000, 4, RangeAttributes.IS_NON_TEE_MEM | RangeAttributes.IS_MEM_ATTR_UPDATABLE, 4),
        MmioRange(0x3000, 8, RangeAttributes.IS_NON_TEE_MEM, 4),
    ):
        assert device.refusal(R.SET_MMIO_ATTRIBUTE_REQUEST, wanted.pack()) is E.INVALID_REQUEST
    assert not device.tdi.admits(3, tee=False, stream_id=None)
    open_range = MmioRange(0x3000, 8, RangeAttributes.IS_NON_TEE_MEM | RangeAttributes.IS_MEM_ATTR_UPDATABLE, 4)
    assert device.refusal(R.SET_MMIO_ATTRIBUTE_REQUEST, open_range.pack()) is None
    assert device.tdi.admits(3, tee=False, stream_id=None)
    assert whole_report(device, 4096) == before


def test_a_peers_stream_is_bound_only_where_the_lock_allows_it() -> None:
    device = running()
    assert device.refusal(R.BIND_P2P_STREAM_REQUEST, bytes((STREAM,))) is E.INVALID_REQUEST
    device = running(LockFlags.BIND_P2P)
    assert device.refusal(R.BIND_P2P_STREAM_REQUEST, bytes((STREAM + 1,))) is E.INVALID_REQUEST
    assert device.refusal(R.BIND_P2P_STREAM_REQUEST, bytes((STREAM,))) is None
    assert device.refusal(R.UNBIND_P2P_STREAM_REQUEST, bytes((STREAM,))) is None
    assert device.refusal(R.UNBIND_P2P_STREAM_REQUEST, bytes((STREAM,))) is E.INVALID_REQUEST


# Tampering.


@pytest.mark.parametrize("event", list(Tampering))
@pytest.mark.parametrize("flags", [LockFlags(0), LockFlags.LOCK_MSIX, LockFlags.NO_FW_UPDATE])
def test_what_a_lock_does_not_survive(event: Tampering, flags: LockFlags) -> None:
    needs = {Tampering.MSIX: LockFlags.LOCK_MSIX, Tampering.FIRMWARE_UPDATE: LockFlags.NO_FW_UPDATE}.get(event, flags)
    for device in (locked(flags)[0], running(flags)):
        before = device.tdi.state
        device.tdi.tamper(event)
        assert device.tdi.state is (S.ERROR if needs == flags else before)
    unlocked = Device()
    unlocked.tdi.tamper(event)
    assert unlocked.tdi.state is S.CONFIG_UNLOCKED


@pytest.mark.parametrize("how", ["disable", "keys of another session", "stop"])
def test_a_stream_that_is_lost_takes_its_interfaces_with_it(how: str) -> None:
    device = running()
    if how == "disable":
        device.stream.disable()
    elif how == "stop":
        device.stream.stop(0, Direction.TX, SubStream.PR)
    else:
        device.keys.end_session(SESSION)
        device.give_keys(OTHER_SESSION)
    assert (device.tdi.state, device.tdi.why) == (S.ERROR, Tampering.STREAM)
    assert device.card.calls == ["begin", "scrub"]


def test_a_conventional_reset_unlocks_whatever_the_state_was() -> None:
    for device in (locked()[0], running()):
        device.tdi.reset()
        assert device.tdi.state is S.CONFIG_UNLOCKED
        assert device.card.calls[-1] == "scrub"


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), st.sampled_from([b"", b"\x10", *[b"\x10%c\0\0\0\1" % code + bytes(10) for code in R]]))
def test_any_bytes_are_answered(tail: bytes, head: bytes) -> None:
    device, _ = locked()
    answer = parse_message(device.dsm.answer(SESSION, head + tail))
    assert answer.code in tuple(Response)
    assert device.tdi.state is S.CONFIG_LOCKED or (head + tail)[1] == R.STOP_INTERFACE_REQUEST
