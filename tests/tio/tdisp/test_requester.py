"""A TSM and a device that speak to each other, with somebody between them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tdi_device import IDENTITY, RANGES, SESSION, STREAM, Device

import tio.steps
from tio.device_security_module import DeviceSecurityModule, ProtocolId
from tio.ide import Direction, StreamState, SubStream
from tio.ide import key_programmer as keys
from tio.tdisp import ErrorCode, LockRequest, Message, Request, Response, TdispError, TdiState, parse_report, requester
from tio.tdisp.messages import error_payload, report_response

T = TypeVar("T")
KEYS = {(way, sub): bytes((way, sub)) * 16 for way in Direction for sub in SubStream}


def carry(steps: Generator[bytes, bytes, T], answer: Callable[[bytes], bytes | None]) -> T:
    """Bring each message to whoever answers it, and answers all."""

    def answered(message: bytes) -> bytes:
        found = answer(message)
        assert found is not None
        return found

    return tio.steps.carry(steps, answered)


class Wire:
    """A device's DSM behind a session."""

    def __init__(self) -> None:
        self.device = Device()
        self.dsm = DeviceSecurityModule(self.device.keys, self.device.dsm)

    def ide_km(self, message: bytes) -> bytes | None:
        return self._ask(ProtocolId.IDE_KM, message)

    def tdisp(self, message: bytes) -> bytes | None:
        return self._ask(ProtocolId.TDISP, message)

    def _ask(self, protocol: ProtocolId, message: bytes) -> bytes | None:
        answer = self.dsm.answer(SESSION, bytes((protocol,)) + message)
        assert answer is None or answer[0] == protocol
        return None if answer is None else answer[1:]


def test_a_device_is_given_keys_locked_read_started_and_stopped() -> None:
    wire = Wire()
    assert carry(keys.ask_for_port(0), wire.ide_km).max_port_index == 0
    carry(keys.program_keys(0, STREAM, 0, KEYS), wire.ide_km)
    carry(keys.start_keys(0, STREAM, 0), wire.ide_km)
    wire.device.stream.enable()
    assert wire.device.stream.state is StreamState.SECURE
    carry(requester.ask_version(IDENTITY), wire.tdisp)
    assert Request.LOCK_INTERFACE_REQUEST in carry(requester.ask_capabilities(IDENTITY), wire.tdisp).requests
    nonce = carry(requester.lock_interface(IDENTITY, LockRequest(0, STREAM)), wire.tdisp)
    report = parse_report(carry(requester.read_report(IDENTITY, 7), wire.tdisp))
    assert report.ranges[0].pages == RANGES[0].pages
    carry(requester.start_interface(IDENTITY, nonce), wire.tdisp)
    assert carry(requester.ask_state(IDENTITY), wire.tdisp) is TdiState.RUN
    carry(requester.set_mmio_attribute(IDENTITY, RANGES[3].pack()), wire.tdisp)
    carry(requester.stop_interface(IDENTITY), wire.tdisp)
    assert carry(requester.ask_state(IDENTITY), wire.tdisp) is TdiState.CONFIG_UNLOCKED
    carry(keys.stop_keys(0, STREAM, 0), wire.ide_km)
    assert wire.device.stream.state is StreamState.INSECURE


def test_a_refusal_comes_as_the_error_that_the_device_told() -> None:
    wire = Wire()
    with pytest.raises(TdispError) as refused:
        carry(requester.start_interface(IDENTITY, bytes(32)), wire.tdisp)
    assert refused.value.code is ErrorCode.INVALID_INTERFACE_STATE
    with pytest.raises(keys.KeyProgrammingError):
        carry(keys.program_keys(0, STREAM + 1, 0, KEYS), wire.ide_km)


def test_outside_of_a_session_a_device_does_not_answer() -> None:
    wire = Wire()
    for message in (b"\0\0\0\0", b"\1" + Message(Request.GET_TDISP_VERSION, IDENTITY.pack()).pack(), b"", b"\2\0"):
        assert wire.dsm.answer(None, message) is None
    assert wire.dsm.answer(SESSION, b"\2\0") is None
    assert wire.dsm.answer(SESSION, b"") is None


def message(code: Response, payload: bytes = b"", interface: bytes = IDENTITY.pack()) -> bytes:
    return Message(code, interface, payload).pack()


@pytest.mark.parametrize(
    ("steps", "answer"),
    [
        (requester.ask_version, message(Response.TDISP_VERSION, b"\1\x20")),
        (requester.ask_version, message(Response.TDISP_VERSION, b"\2\x10")),
        (requester.ask_version, message(Response.TDISP_CAPABILITIES, b"\1\x10")),
        (requester.ask_version, message(Response.TDISP_VERSION, b"\1\x10", bytes(12))),
        (requester.ask_state, message(Response.DEVICE_INTERFACE_STATE, b"\4")),
        (requester.ask_state, message(Response.DEVICE_INTERFACE_STATE)),
        (requester.ask_state, b"\x10\5"),
        (requester.ask_capabilities, message(Response.TDISP_CAPABILITIES, bytes(27))),
        (requester.read_report, message(Response.DEVICE_INTERFACE_REPORT, report_response(b"", 9))),
        (requester.read_report, message(Response.DEVICE_INTERFACE_REPORT, report_response(b"x", 0xFFFF))),
        (requester.read_report, message(Response.DEVICE_INTERFACE_REPORT, b"\x09\0\0\0" + bytes(8))),
        (requester.read_report, message(Response.TDISP_ERROR, error_payload(0x1234, 0))),
        (requester.read_report, message(Response.TDISP_ERROR)),
    ],
)
def test_an_answer_that_is_none_is_refused(
    steps: Callable[..., Generator[bytes, bytes, object]], answer: bytes
) -> None:
    with pytest.raises(TdispError):
        carry(steps(IDENTITY), lambda _: answer)


def test_a_report_that_never_ends_is_not_read_for_ever() -> None:
    asked = []

    def endless(request: bytes) -> bytes:
        asked.append(request)
        return message(Response.DEVICE_INTERFACE_REPORT, report_response(bytes(1024), 1))

    with pytest.raises(TdispError):
        carry(requester.read_report(IDENTITY), endless)
    assert len(asked) <= requester.MOST_REPORT_BYTES // 1024


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=64))
def test_no_answer_leads_to_another_error(answer: bytes) -> None:
    for steps, error in (
        (requester.read_report(IDENTITY), TdispError),
        (requester.ask_state(IDENTITY), TdispError),
        (keys.start_keys(0, STREAM, 0), keys.KeyProgrammingError),
        (keys.ask_for_port(0), keys.KeyProgrammingError),
    ):
        with pytest.raises(error):
            carry(steps, lambda _: answer)
