"""The DSM's side of TDISP: requests of a session in, answers out.

Source: PCI Express base specification 6.x, 11.3. A request outside of a session has no answer; who calls here has one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tio.ide.key_responder import KeyResponder
from tio.ide.stream import IdeStream
from tio.tdisp.interface import Tdi
from tio.tdisp.messages import (
    NONCE_BYTES,
    VERSION,
    Capabilities,
    ErrorCode,
    InterfaceId,
    LockRequest,
    Message,
    Request,
    Response,
    TdispError,
    TdiState,
    error_payload,
    parse_message,
    report_range,
    report_response,
)
from tio.tdisp.report import RANGE, MmioRange

_Handler = Callable[[int, Tdi, bytes], bytes]


@dataclass(frozen=True, slots=True)
class _Row:
    """How a request is answered: the length of its payload, and by what.

    ``owned``: of a TDI that is locked it counts from the session alone that locked it.
    """

    payload_bytes: int
    response: Response
    handler: _Handler
    owned: bool = True


class TdispResponder:
    """Answers for the TDIs of a device. ``port_index`` is the port on which their streams end."""

    def __init__(
        self,
        tdis: Mapping[InterfaceId, Tdi],
        keys: KeyResponder,
        streams: Mapping[int, IdeStream],
        port_index: int = 0,
    ) -> None:
        self._tdis = {one.pack(): tdi for one, tdi in tdis.items()}
        self._keys = keys
        self._streams = streams
        self._port_index = port_index
        # What is not here, a vendor's own among it, is unsupported. States are the TDI's to judge.
        self._rows: dict[int, _Row] = {
            Request.GET_TDISP_VERSION: _Row(0, Response.TDISP_VERSION, self._version, owned=False),
            Request.GET_TDISP_CAPABILITIES: _Row(4, Response.TDISP_CAPABILITIES, self._capabilities, owned=False),
            Request.LOCK_INTERFACE_REQUEST: _Row(20, Response.LOCK_INTERFACE_RESPONSE, self._lock, owned=False),
            Request.GET_DEVICE_INTERFACE_REPORT: _Row(4, Response.DEVICE_INTERFACE_REPORT, self._report),
            Request.GET_DEVICE_INTERFACE_STATE: _Row(0, Response.DEVICE_INTERFACE_STATE, self._state, owned=False),
            Request.START_INTERFACE_REQUEST: _Row(NONCE_BYTES, Response.START_INTERFACE_RESPONSE, self._start),
            Request.STOP_INTERFACE_REQUEST: _Row(0, Response.STOP_INTERFACE_RESPONSE, self._stop),
            Request.BIND_P2P_STREAM_REQUEST: _Row(1, Response.BIND_P2P_STREAM_RESPONSE, self._bind_p2p),
            Request.UNBIND_P2P_STREAM_REQUEST: _Row(1, Response.UNBIND_P2P_STREAM_RESPONSE, self._unbind_p2p),
            Request.SET_MMIO_ATTRIBUTE_REQUEST: _Row(
                RANGE.size, Response.SET_MMIO_ATTRIBUTE_RESPONSE, self._set_mmio_attribute
            ),
        }

    def answer(self, session_id: int, data: bytes) -> bytes:
        """The answer to a message of a session; an error changes nothing."""
        try:
            asked = parse_message(data)
        except TdispError as error:
            return Message(Response.TDISP_ERROR, bytes(12), error_payload(error.code, error.data)).pack()
        try:
            code, payload = self._serve(session_id, asked)
        except TdispError as error:
            code, payload = Response.TDISP_ERROR, error_payload(error.code, error.data)
        # Also VERSION_MISMATCH bears the version of the request, as DMTF's sample device has it.
        return Message(code, asked.interface, payload, asked.version).pack()

    def end_session(self, session_id: int) -> None:
        """A session is over."""
        for tdi in self._tdis.values():
            tdi.session_ended(session_id)

    def _serve(self, session_id: int, asked: Message) -> tuple[Response, bytes]:
        if asked.version != VERSION:
            raise TdispError(ErrorCode.VERSION_MISMATCH, f"version {asked.version:#x}")
        row = self._rows.get(asked.code)
        if row is None:
            raise TdispError(ErrorCode.UNSUPPORTED_REQUEST, "an unknown request", asked.code)
        tdi = self._tdis.get(asked.interface)
        if tdi is None:
            raise TdispError(ErrorCode.INVALID_INTERFACE, "no interface of this device")
        if len(asked.payload) != row.payload_bytes:
            raise TdispError(ErrorCode.INVALID_REQUEST, f"expected {row.payload_bytes} bytes of payload")
        lock = tdi.lock
        # One in ERROR anybody may stop: the session that locked it may be gone.
        if row.owned and lock is not None and lock.session_id != session_id and tdi.state is not TdiState.ERROR:
            raise TdispError(ErrorCode.INVALID_REQUEST, "locked by another session")
        return row.response, row.handler(session_id, tdi, asked.payload)

    def _version(self, _: int, __: Tdi, ___: bytes) -> bytes:
        return bytes((1, VERSION))

    def _capabilities(self, _: int, tdi: Tdi, __: bytes) -> bytes:
        return Capabilities(frozenset(map(Request, self._rows)), tdi.supported).pack()

    def _lock(self, session_id: int, tdi: Tdi, payload: bytes) -> bytes:
        request = LockRequest.of(payload)
        return tdi.lock_interface(session_id, request, self._stream(session_id, request.stream_id))

    def _report(self, _: int, tdi: Tdi, payload: bytes) -> bytes:
        whole, (offset, length) = tdi.report().pack(), report_range(payload)
        if offset >= len(whole) or not length:
            raise TdispError(ErrorCode.INVALID_REQUEST, "a portion that is not in the report")
        portion = whole[offset : offset + length]
        return report_response(portion, len(whole) - offset - len(portion))

    def _state(self, _: int, tdi: Tdi, __: bytes) -> bytes:
        return bytes((tdi.state,))

    def _start(self, _: int, tdi: Tdi, payload: bytes) -> bytes:
        tdi.start(payload)
        return b""

    def _stop(self, _: int, tdi: Tdi, __: bytes) -> bytes:
        tdi.stop()
        return b""

    def _bind_p2p(self, session_id: int, tdi: Tdi, payload: bytes) -> bytes:
        tdi.bind_p2p(self._stream(session_id, payload[0]), payload[0])
        return b""

    def _unbind_p2p(self, _: int, tdi: Tdi, payload: bytes) -> bytes:
        tdi.unbind_p2p(payload[0])
        return b""

    def _set_mmio_attribute(self, _: int, tdi: Tdi, payload: bytes) -> bytes:
        tdi.set_mmio_attribute(MmioRange(*RANGE.unpack(payload)))
        return b""

    def _stream(self, session_id: int, stream_id: int) -> IdeStream | None:
        """A stream that has all its keys from a session."""
        complete = self._keys.complete_for(session_id, self._port_index, stream_id)
        return self._streams.get(stream_id) if complete else None
