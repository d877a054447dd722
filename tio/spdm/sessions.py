"""A responder's part in making, keeping and ending sessions (DSP0274, 10.14 to 10.22)."""

from __future__ import annotations

from tio.spdm.capabilities import Capability, psk_in_common
from tio.spdm.codes import ErrorCode, KeyUpdateOperation
from tio.spdm.connection import Connection
from tio.spdm.faults import MalformedMessage, Refused
from tio.spdm.identity_messages import SLOT_MASK, SLOTS
from tio.spdm.key_agreement import ephemeral
from tio.spdm.message_layout import HEADER_BYTES
from tio.spdm.opaque_data import LONGEST_OPAQUE_BYTES, choose_version, selected_version
from tio.spdm.session import Phase, Session
from tio.spdm.session_messages import (
    RANDOM_BYTES,
    SIGNATURE_INCLUDED,
    EndSession,
    EndSessionAck,
    Finish,
    FinishResponse,
    Heartbeat,
    HeartbeatAck,
    KeyExchange,
    KeyExchangeResponse,
    KeyUpdate,
    KeyUpdateAck,
    PskExchange,
    PskExchangeResponse,
    PskFinish,
    PskFinishResponse,
)
from tio.spdm.signing import KEY_EXCHANGE_CONTEXT
from tio.spdm.transcript import MeasurementLog, SessionTranscript

_SESSION_NUMBERS = 0xFFFF


def key_exchange(connection: Connection, data: bytes, _: Session | None) -> bytes:
    """KEY_EXCHANGE: a session in its handshake, whose keys nobody has who does not hold the device's key."""
    chosen = connection.chosen
    if chosen.dhe is None or not chosen.opaque_format_1:
        raise Refused(ErrorCode.INVALID_REQUEST)
    group = chosen.dhe.value
    shape = connection.shape(exchange_bytes=group.exchange_bytes)
    request = KeyExchange.parse(data, shape, connection.padding)
    slot = request.slot & SLOT_MASK
    if request.slot >= SLOTS:
        raise Refused(ErrorCode.INVALID_REQUEST)
    chain_hash, summary = connection.chain_hash(slot), connection.summary(request.summary)
    version = _record_version(request.opaque)
    key = ephemeral(group, connection.random)
    shared = key.agree(request.exchange_data)
    transcript = SessionTranscript(connection.transcript, chain_hash)
    session, number = _new_session(connection, request.session_id, transcript, uses_psk=False)
    answer = KeyExchangeResponse(
        heartbeat_s=session.heartbeat_s,
        session_id=number,
        random=connection.random(RANDOM_BYTES),
        exchange_data=key.public,
        summary_hash=summary,
        opaque=selected_version(version),
    ).pack(connection.version)
    signature = connection.sign(slot, KEY_EXCHANGE_CONTEXT, transcript.add(request.wire, answer))
    th1 = transcript.add(signature)
    session.begin(shared, th1)
    connection.sessions[session.session_id] = session
    if connection.in_the_clear:
        connection.clear_handshake = session.session_id
        return answer + signature
    proof = session.responder_proof(th1)
    transcript.add(proof)
    return answer + signature + proof


def finish(connection: Connection, data: bytes, session: Session | None) -> bytes:
    """FINISH: the requester proves that it has the handshake's keys; what follows is under the session's own."""
    in_the_clear = session is None
    if session is None:
        assert connection.clear_handshake is not None
        session = connection.sessions[connection.clear_handshake]
    if session.uses_psk:
        raise Refused(ErrorCode.UNEXPECTED_REQUEST)
    request = Finish.parse(data, connection.shape(), connection.padding if in_the_clear else 0)
    if request.attributes & SIGNATURE_INCLUDED:
        raise Refused(ErrorCode.INVALID_REQUEST)
    _prove(connection, session, request.wire[:HEADER_BYTES], request.verify_data)
    answer = FinishResponse().pack(connection.version)
    th2 = session.transcript.add(answer)
    if in_the_clear:
        proof = session.responder_proof(th2)
        answer += proof
        th2 = session.transcript.add(proof)
        connection.clear_handshake = None
    session.establish(th2)
    return answer


def psk_exchange(connection: Connection, data: bytes, _: Session | None) -> bytes:
    """PSK_EXCHANGE: a session between two who share a key already."""
    request = PskExchange.parse(data, connection.shape(), connection.padding)
    summary = connection.summary(request.summary)
    size = connection.hash.value.size_bytes
    if not psk_in_common(connection.own, connection.peer):
        raise Refused(ErrorCode.UNSUPPORTED_REQUEST, data[1])
    if len(request.context) < size:
        raise Refused(ErrorCode.INVALID_REQUEST)
    secret = connection.personality.psk(request.hint)
    version = _record_version(request.opaque)
    if secret is None:
        raise Refused(ErrorCode.INVALID_REQUEST)
    transcript = SessionTranscript(connection.transcript)
    session, number = _new_session(connection, request.session_id, transcript, uses_psk=True)
    with_context = bool(connection.own & Capability.PSK_WITH_CONTEXT)
    context, opaque = connection.random(size) if with_context else b"", selected_version(version)
    answer = PskExchangeResponse(
        heartbeat_s=session.heartbeat_s,
        session_id=number,
        context_size=len(context),
        opaque_bytes=len(opaque),
        summary_hash=summary,
        context=context,
        opaque=opaque,
    ).pack(connection.version)
    th1 = transcript.add(request.wire, answer)
    session.begin(secret, th1)
    proof = session.responder_proof(th1)
    th2 = transcript.add(proof)
    if not with_context:
        session.establish(th2)
    connection.sessions[session.session_id] = session
    return answer + proof


def psk_finish(connection: Connection, data: bytes, session: Session | None) -> bytes:
    """PSK_FINISH."""
    assert session is not None
    if not session.uses_psk:
        raise Refused(ErrorCode.UNEXPECTED_REQUEST)
    request = PskFinish.parse(data, connection.shape())
    _prove(connection, session, request.wire[:HEADER_BYTES], request.verify_data)
    answer = PskFinishResponse().pack(connection.version)
    session.establish(session.transcript.add(answer))
    return answer


def heartbeat(connection: Connection, data: bytes, session: Session | None) -> bytes:
    """HEARTBEAT, also where no period was set."""
    assert session is not None
    Heartbeat.parse(data)
    return HeartbeatAck().pack(connection.version)


def key_update(connection: Connection, data: bytes, session: Session | None) -> bytes:
    """KEY_UPDATE: new keys for requests or for both ways, which the requester then shows to have."""
    assert session is not None
    request = KeyUpdate.parse(data)
    verifies = request.operation == KeyUpdateOperation.VERIFY_NEW_KEY
    if request.operation not in set(KeyUpdateOperation) or verifies is not session.awaits_new_key:
        raise Refused(ErrorCode.INVALID_REQUEST)
    session.awaits_new_key = not verifies
    if not verifies:
        session.requests = session.requests.rekeyed
    if request.operation == KeyUpdateOperation.UPDATE_ALL_KEYS:
        session.responses = session.responses.rekeyed
    return KeyUpdateAck(operation=request.operation, tag=request.tag).pack(connection.version)


def end_session(connection: Connection, data: bytes, session: Session | None) -> bytes:
    """END_SESSION; the answer is the last thing under its keys."""
    assert session is not None
    EndSession.parse(data)
    connection.drop(session.session_id)
    return EndSessionAck().pack(connection.version)


def _record_version(opaque: bytes) -> int:
    """The version of records that both have. Raises Refused and MalformedMessage."""
    if len(opaque) > LONGEST_OPAQUE_BYTES:
        raise MalformedMessage("opaque data", f"at most {LONGEST_OPAQUE_BYTES} bytes", len(opaque))
    version = choose_version(opaque)
    if version is None:
        raise Refused(ErrorCode.INVALID_REQUEST)
    return version


def _new_session(
    connection: Connection, their_number: int, transcript: SessionTranscript, *, uses_psk: bool
) -> tuple[Session, int]:
    """A session that is not yet the connection's, and our half of its number."""
    if len(connection.sessions) >= connection.settings.most_sessions:
        raise Refused(ErrorCode.SESSION_LIMIT_EXCEEDED)
    chosen = connection.chosen
    if chosen.aead is None or not chosen.key_schedule:
        raise Refused(ErrorCode.INVALID_REQUEST)
    number = connection.next_session
    while number << 16 | their_number in connection.sessions:
        number = number - 1 or _SESSION_NUMBERS
    connection.next_session = number - 1 or _SESSION_NUMBERS
    beats = connection.own & connection.peer & Capability.HBEAT
    session = Session(
        number << 16 | their_number,
        connection.schedule,
        chosen.aead.value,
        connection.record_format,
        transcript,
        MeasurementLog(connection.transcript),
        uses_psk,
        heartbeat_s=connection.settings.heartbeat_s if beats else 0,
        heard_ns=connection.now_ns,
    )
    return session, number


def _prove(connection: Connection, session: Session, head: bytes, proof: bytes) -> None:
    """Check a requester's verify data; a session whose requester has other keys is over. Raises Refused."""
    expected = session.requester_proof(session.transcript.add(head))
    if session.phase is not Phase.HANDSHAKE or not session.same(proof, expected):
        connection.drop(session.session_id)
        raise Refused(ErrorCode.DECRYPT_ERROR)
    session.transcript.add(proof)
