"""A responder, sans I/O: packets in, packets out (DSP0274; DSP0277 for what comes in sessions).

Whatever it is sent, it answers: with what was asked for, or with the standard's error. A request that is refused
changes nothing but the log of measurements, which any other request ends. A record that does not open ends the session
that it names: whoever sent it is not its requester, or has lost count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tio.spdm import identity, sessions, set_up
from tio.spdm.binding import Binding, Packet
from tio.spdm.capabilities import ANY_PSK, Capability
from tio.spdm.chunking import ChunkAssembly, ChunkedMessage
from tio.spdm.codes import SKIPS_CHALLENGE, ErrorCode, Request, Version
from tio.spdm.connection import Connection, Deferred, Place, Stage
from tio.spdm.connection_messages import (
    EARLY_ERROR,
    ChunkGet,
    ChunkResponse,
    ChunkResponseFirst,
    ChunkSend,
    ChunkSendAck,
    ChunkSendFirst,
    GetVersion,
    RespondIfReady,
    VendorDefinedRequest,
    VendorDefinedResponse,
    pack_error,
)
from tio.spdm.device_personality import Personality, ResponderSettings, VendorSession
from tio.spdm.faults import MalformedMessage, RecordRejected, Refused
from tio.spdm.key_agreement import Random
from tio.spdm.message_layout import HEADER_BYTES
from tio.spdm.secured_message import Direction, session_id_of
from tio.spdm.session import Phase, Session

_RDT_EXPONENT, _RDT_MULTIPLIER = 10, 2
_CHUNK_ACK_BYTES = 6
_Handler = Callable[[Connection, bytes, Session | None], bytes]
_NO_CAPABILITY = Capability(0)
_OUTSIDE = frozenset({Place.OUTSIDE})
_IN_SESSION = frozenset({Place.APPLICATION})
_ANYWHERE = frozenset({Place.OUTSIDE, Place.APPLICATION})
_HANDSHAKE = frozenset({Place.HANDSHAKE})
_EVERYWHERE = frozenset(Place)


@dataclass(frozen=True, slots=True)
class _Row:
    """Where a request may come, from which stage on, and what it needs of the responder and of both sides."""

    handler: _Handler
    places: frozenset[Place]
    needs: Capability = _NO_CAPABILITY
    """Any of these at the responder."""
    both: Capability = _NO_CAPABILITY
    """Any of these at both sides."""
    stage: Stage = Stage.NEGOTIATED


class Responder:
    """One requester's view of a device. ``random`` hands in randomness."""

    def __init__(
        self, personality: Personality, settings: ResponderSettings, binding: Binding, random: Random
    ) -> None:
        self.connection = Connection(personality, settings, binding, random)
        self._parts = (personality, settings, binding, random)
        self._rows = _ROWS | {
            Request.VENDOR_DEFINED: _Row(_vendor_defined, _ANYWHERE),
            Request.RESPOND_IF_READY: _Row(self._respond_if_ready, _EVERYWHERE, stage=Stage.VERSION),
            Request.CHUNK_SEND: _Row(self._chunk_send, _EVERYWHERE, both=Capability.CHUNK),
            Request.CHUNK_GET: _Row(self._chunk_get, _EVERYWHERE, both=Capability.CHUNK),
        }

    def answer(self, packet: Packet, now_ns: int = 0) -> Packet:
        """The answer to a packet. ``now_ns`` is when it came, for sessions that must be heard of."""
        self.connection.now_ns = now_ns
        self._expire(now_ns)
        return self._secured(packet.payload, now_ns) if packet.secured else Packet(self._plain(packet.payload))

    def close(self) -> None:
        """The transport is gone, and every session with it."""
        for session_id in list(self.connection.sessions):
            self.connection.drop(session_id)

    def _expire(self, now_ns: int) -> None:
        connection = self.connection
        for session_id in [one.session_id for one in connection.sessions.values() if one.silent_at(now_ns)]:
            connection.drop(session_id)

    # Packets.

    def _plain(self, data: bytes) -> bytes:
        return self._answer(data, Place.OUTSIDE, None)

    def _secured(self, record: bytes, now_ns: int) -> Packet:
        connection = self.connection
        session_id = session_id_of(record)
        session = None if session_id is None else connection.sessions.get(session_id)
        if session is None:
            return Packet(pack_error(connection.version, ErrorCode.DECRYPT_ERROR))
        try:
            content = session.requests.open(record, connection.binding.excess_bytes)
        except RecordRejected:
            connection.drop(session_id)
            return Packet(pack_error(connection.version, ErrorCode.DECRYPT_ERROR))
        session.heard_ns = now_ns
        seals, phase = session.responses, session.phase
        try:
            message = connection.binding.disclose(content)
        except MalformedMessage:
            answer = pack_error(connection.version, ErrorCode.INVALID_REQUEST)
        else:
            answer = self._answer(message, _place_of(session), session)
        if phase is Phase.APPLICATION:
            # New response keys count from their own acknowledgement on; those of a handshake are used up by its end.
            seals = session.responses
        return self._sealed(session, seals, connection.binding.enclose(answer))

    def _sealed(self, session: Session, direction: Direction, content: bytes) -> Packet:
        most = self.connection.binding.random_bytes
        padding = b""
        if most and direction.encrypts:
            padding = self.connection.random(self.connection.random(1)[0] % (most + 1))
        try:
            return Packet(direction.seal(session.session_id, content, padding), secured=True)
        except RecordRejected:
            self.connection.drop(session.session_id)
            return Packet(pack_error(self.connection.version, ErrorCode.DECRYPT_ERROR))

    # Requests.

    def _answer(self, data: bytes, place: Place, session: Session | None) -> bytes:
        before = self.connection
        try:
            answer = self._serve(data, place, session)
        except Refused as refused:
            answer = pack_error(self._spoken(data), refused.code, refused.data, refused.extended)
        except MalformedMessage:
            answer = pack_error(self._spoken(data), ErrorCode.INVALID_REQUEST)
        else:
            return self._fitted(answer, session)
        if self.connection is before:
            (before.log if session is None else session.log).clear()
        return answer

    def _spoken(self, data: bytes) -> int:
        """The version of an error: the connection's, or before it has one what the request speaks."""
        connection = self.connection
        if connection.stage is Stage.VERSION and data[:1] in {bytes((one,)) for one in connection.settings.versions}:
            return data[0]
        return connection.version

    def _serve(self, data: bytes, place: Place, session: Session | None, *, again: bool = False) -> bytes:
        connection = self.connection
        if len(data) < HEADER_BYTES:
            raise Refused(ErrorCode.INVALID_REQUEST)
        code = data[1]
        if code not in _KNOWN:
            raise Refused(ErrorCode.UNSUPPORTED_REQUEST, code)
        if len(data) > connection.settings.data_transfer_bytes + connection.padding and not again:
            raise Refused(ErrorCode.REQUEST_TOO_LARGE)
        self._check_version(data[0], Request(code))
        row = self._rows.get(Request(code))
        if row is None:
            raise Refused(ErrorCode.UNSUPPORTED_REQUEST, code)
        if connection.stage < row.stage:
            raise Refused(ErrorCode.UNEXPECTED_REQUEST)
        self._check_place(row, Request(code), place, session)
        if code != Request.GET_MEASUREMENTS:
            (connection.log if session is None else session.log).clear()
        if code in SKIPS_CHALLENGE and not connection.authenticated:
            connection.transcript.forget_identity()
        if code == Request.GET_VERSION:
            GetVersion.parse(data, padding=connection.padding)
            self.close()
            connection = self.connection = Connection(*self._parts)
        if code in connection.settings.slow and not again:
            return self._not_ready(data, place, session)
        return row.handler(connection, data, session)

    def _check_version(self, version: int, code: Request) -> None:
        connection = self.connection
        if code is Request.GET_VERSION:
            right = version == Version.V1_0
        elif code is Request.GET_CAPABILITIES and connection.stage is Stage.VERSION:
            right = version in set(connection.settings.versions)
        else:
            right = version == connection.version
        if not right and not (connection.stage is Stage.NOTHING and code is not Request.GET_VERSION):
            raise Refused(ErrorCode.VERSION_MISMATCH)

    def _check_place(self, row: _Row, code: Request, place: Place, session: Session | None) -> None:
        connection = self.connection
        if row.needs and not row.needs & connection.own:
            raise Refused(ErrorCode.UNSUPPORTED_REQUEST, code)
        if row.both and not row.both & connection.own & connection.peer:
            raise Refused(ErrorCode.UNSUPPORTED_REQUEST, code)
        places = row.places
        if code is Request.FINISH and connection.in_the_clear:
            places = _OUTSIDE if connection.clear_handshake is not None else frozenset()
        if place not in places:
            needs_session = place is Place.OUTSIDE and Place.OUTSIDE not in row.places
            in_session = needs_session and not (code is Request.FINISH and connection.in_the_clear)
            raise Refused(ErrorCode.SESSION_REQUIRED if in_session else ErrorCode.UNEXPECTED_REQUEST)
        if session is not None and session.awaits_new_key and code is not Request.KEY_UPDATE:
            raise Refused(ErrorCode.UNEXPECTED_REQUEST)

    # Answers that come later, or in pieces.

    def _not_ready(self, data: bytes, place: Place, session: Session | None) -> bytes:
        connection = self.connection
        connection.tokens = (connection.tokens + 1) & 0xFF
        session_id = None if session is None else session.session_id
        connection.deferred = Deferred(data, place, session_id, connection.tokens)
        told = bytes((_RDT_EXPONENT, data[1], connection.tokens, _RDT_MULTIPLIER))
        raise Refused(ErrorCode.RESPONSE_NOT_READY, 0, told)

    def _respond_if_ready(self, connection: Connection, data: bytes, session: Session | None) -> bytes:
        request = RespondIfReady.parse(data, padding=connection.padding if session is None else 0)
        waiting = connection.deferred
        session_id = None if session is None else session.session_id
        if waiting is None or waiting.session_id != session_id:
            raise Refused(ErrorCode.UNEXPECTED_REQUEST)
        if (request.request_code, request.token) != (waiting.request[1], waiting.token):
            raise Refused(ErrorCode.INVALID_REQUEST)
        connection.deferred = None
        return self._serve(waiting.request, waiting.place, session, again=True)

    def _chunk_send(self, connection: Connection, data: bytes, session: Session | None) -> bytes:
        """A part of a request; with the last one its answer."""
        key = None if session is None else session.session_id
        padding = connection.padding if session is None else 0
        first = data[4:6] == bytes(2)
        try:
            if first:
                head = ChunkSendFirst.parse(data, padding=padding)
                assembly = ChunkAssembly(head, connection.settings.max_message_bytes)
                connection.incoming[key] = assembly
            else:
                chunk = ChunkSend.parse(data, padding=padding)
                if key not in connection.incoming:
                    raise Refused(ErrorCode.UNEXPECTED_REQUEST)
                assembly = connection.incoming[key]
                assembly.add(chunk)
        except MalformedMessage:
            connection.incoming.pop(key, None)
            if len(data) < _CHUNK_ACK_BYTES:
                raise
            # What is wrong is said at once, in the acknowledgement, and not after the last part.
            number = int.from_bytes(data[4:6], "little")
            early = ChunkSendAck(attributes=EARLY_ERROR, handle=data[3], sequence=number).pack(connection.version)
            return early + pack_error(connection.version, ErrorCode.INVALID_REQUEST)
        message, answer = assembly.message, b""
        if message is not None:
            del connection.incoming[key]
            answer = self._whole(message, _place_of(session), session)
        ack = ChunkSendAck(handle=assembly.handle, sequence=assembly.sequence - 1).pack(connection.version)
        return ack + self._fitted(answer, session, len(ack))

    def _whole(self, message: bytes, place: Place, session: Session | None) -> bytes:
        version = self.connection.version
        if message[1:2] in (bytes((Request.CHUNK_SEND,)), bytes((Request.CHUNK_GET,)), bytes((Request.GET_VERSION,))):
            return pack_error(version, ErrorCode.INVALID_REQUEST)
        try:
            return self._serve(message, place, session, again=True)
        except Refused as refused:
            return pack_error(version, refused.code, refused.data, refused.extended)
        except MalformedMessage:
            return pack_error(version, ErrorCode.INVALID_REQUEST)

    def _chunk_get(self, connection: Connection, data: bytes, session: Session | None) -> bytes:
        key = None if session is None else session.session_id
        request = ChunkGet.parse(data, padding=connection.padding if session is None else 0)
        waiting = connection.outgoing.get(key)
        if waiting is None:
            raise Refused(ErrorCode.UNEXPECTED_REQUEST)
        if (request.handle, request.sequence) != (waiting.handle, waiting.sequence):
            del connection.outgoing[key]
            raise Refused(ErrorCode.INVALID_REQUEST)
        part = waiting.next(ChunkResponseFirst, ChunkResponse)
        if waiting.done:
            del connection.outgoing[key]
        return part.pack(connection.version)

    def _fitted(self, answer: bytes, session: Session | None, before: int = 0) -> bytes:
        """An answer behind ``before`` bytes, or where its requester takes no such long one how it may have it."""
        connection = self.connection
        if connection.stage < Stage.CAPABILITIES or before + len(answer) <= connection.peer_transfer_bytes:
            return answer
        if not connection.own & connection.peer & Capability.CHUNK or len(answer) > connection.peer_message_bytes:
            size = len(answer).to_bytes(4, "little")
            return pack_error(connection.version, ErrorCode.RESPONSE_TOO_LARGE, 0, size)
        connection.handles = (connection.handles + 1) & 0xFF
        key = None if session is None else session.session_id
        connection.outgoing[key] = ChunkedMessage(connection.handles, answer, connection.peer_transfer_bytes)
        return pack_error(connection.version, ErrorCode.LARGE_RESPONSE, 0, bytes((connection.handles,)))


def _place_of(session: Session | None) -> Place:
    if session is None:
        return Place.OUTSIDE
    return Place.HANDSHAKE if session.phase is Phase.HANDSHAKE else Place.APPLICATION


def _vendor_defined(connection: Connection, data: bytes, session: Session | None) -> bytes:
    request = VendorDefinedRequest.parse(data, padding=connection.padding if session is None else 0)
    place = None if session is None else VendorSession(session.session_id, session.requests.encrypts, session.aead)
    payload = connection.personality.vendor(place, request)
    if payload is None:
        raise Refused(ErrorCode.UNSUPPORTED_REQUEST, Request.VENDOR_DEFINED)
    return VendorDefinedResponse(
        standard=request.standard, vendor_bytes=request.vendor_bytes, vendor=request.vendor, payload=payload
    ).pack(connection.version)


_KNOWN = frozenset(Request)
_C = Capability
_ROWS = {
    Request.GET_VERSION: _Row(set_up.get_version, _OUTSIDE, stage=Stage.NOTHING),
    Request.GET_CAPABILITIES: _Row(set_up.get_capabilities, _OUTSIDE, stage=Stage.VERSION),
    Request.NEGOTIATE_ALGORITHMS: _Row(set_up.negotiate_algorithms, _OUTSIDE, stage=Stage.CAPABILITIES),
    Request.GET_DIGESTS: _Row(identity.get_digests, _ANYWHERE, _C.CERT),
    Request.GET_CERTIFICATE: _Row(identity.get_certificate, _ANYWHERE, _C.CERT),
    Request.CHALLENGE: _Row(identity.challenge, _OUTSIDE, _C.CHAL),
    Request.GET_MEASUREMENTS: _Row(identity.get_measurements, _ANYWHERE, _C.MEAS_SIG | _C.MEAS_NO_SIG),
    Request.KEY_EXCHANGE: _Row(sessions.key_exchange, _OUTSIDE, both=_C.KEY_EX),
    Request.FINISH: _Row(sessions.finish, _HANDSHAKE, both=_C.KEY_EX),
    Request.PSK_EXCHANGE: _Row(sessions.psk_exchange, _OUTSIDE, ANY_PSK),
    Request.PSK_FINISH: _Row(sessions.psk_finish, _HANDSHAKE, _C.PSK_WITH_CONTEXT),
    Request.HEARTBEAT: _Row(sessions.heartbeat, _IN_SESSION, both=_C.HBEAT),
    Request.KEY_UPDATE: _Row(sessions.key_update, _IN_SESSION, both=_C.KEY_UPD),
    Request.END_SESSION: _Row(sessions.end_session, _IN_SESSION),
}
"""What is not here is unsupported: encapsulated requests, slots that are written, events, key pairs, logs."""
