"""A responder's answers about who it is and what it runs (DSP0274, 10.6 to 10.11)."""

from __future__ import annotations

from tio.spdm.capabilities import ANY_MEAS, Capability
from tio.spdm.codes import ErrorCode, Version
from tio.spdm.connection import Connection
from tio.spdm.faults import Refused
from tio.spdm.identity_messages import (
    NEW_MEASUREMENT_REQUESTED,
    NONCE_BYTES,
    RAW_BIT_STREAM_REQUESTED,
    SIGNATURE_REQUESTED,
    SLOT_MASK,
    SLOT_SIZE_REQUESTED,
    SLOTS,
    Certificate,
    Challenge,
    ChallengeAuth,
    Digests,
    GetCertificate,
    GetDigests,
    GetMeasurements,
    Measurements,
)
from tio.spdm.session import Session
from tio.spdm.signing import CHALLENGE_CONTEXT, MEASUREMENTS_CONTEXT

_CERTIFICATE_HEAD_BYTES = 8
_COUNT, _ALL = 0x00, 0xFF


def get_digests(connection: Connection, data: bytes, session: Session | None) -> bytes:
    """GET_DIGESTS; outside of sessions what was asked about identity before is void."""
    request = GetDigests.parse(data, padding=_padding(connection, session))
    slots = sorted(connection.slots)
    mask = sum([1 << slot for slot in slots])
    digests = b"".join([connection.chain_hash(slot) for slot in slots])
    supported = mask if connection.version >= Version.V1_3 else 0
    answer = Digests(supported_mask=supported, slot_mask=mask, digests=digests).pack(connection.version)
    if session is None:
        connection.transcript.forget_identity()
        connection.transcript.identify(request.wire, answer)
    return answer


def get_certificate(connection: Connection, data: bytes, session: Session | None) -> bytes:
    """GET_CERTIFICATE: a portion, no longer than what the requester takes in one piece."""
    request = GetCertificate.parse(data, padding=_padding(connection, session))
    slot = _slot(request.slot)
    chain = connection.chain(slot)
    if connection.version >= Version.V1_3 and request.attributes & SLOT_SIZE_REQUESTED:
        portion, remainder = b"", len(chain)
    elif request.offset >= len(chain) or not request.length:
        raise Refused(ErrorCode.INVALID_REQUEST)
    else:
        most = connection.peer_transfer_bytes - _CERTIFICATE_HEAD_BYTES
        portion = chain[request.offset : request.offset + min(request.length, most)]
        remainder = len(chain) - request.offset - len(portion)
    answer = Certificate(
        slot=slot, portion_bytes=len(portion), remainder_bytes=remainder, portion=portion
    ).pack(connection.version)
    if session is None:
        connection.transcript.identify(request.wire, answer)
    return answer


def challenge(connection: Connection, data: bytes, _: Session | None) -> bytes:
    """CHALLENGE: a signature over all that was said of identity, and the nonces of both."""
    request = Challenge.parse(data, connection.shape(), connection.padding)
    slot = _slot(request.slot)
    answer = ChallengeAuth(
        slot=slot,
        slot_mask=sum([1 << one for one in connection.slots]),
        chain_hash=connection.chain_hash(slot),
        nonce=connection.random(NONCE_BYTES),
        summary_hash=connection.summary(request.summary),
        context=request.context,
    ).pack(connection.version)
    signed = connection.transcript.challenge(request.wire, answer)
    connection.transcript.forget_identity()
    connection.authenticated = True
    return answer + connection.sign(slot, CHALLENGE_CONTEXT, signed)


def get_measurements(connection: Connection, data: bytes, session: Session | None) -> bytes:
    """GET_MEASUREMENTS: how many there are, one, or all; signed over all that was answered since the last signature."""
    signs = len(data) > 2 and bool(data[2] & SIGNATURE_REQUESTED)
    shape = connection.shape(nonce_bytes=NONCE_BYTES * signs, slot_bytes=int(signs))
    request = GetMeasurements.parse(data, shape, _padding(connection, session))
    known = SIGNATURE_REQUESTED | RAW_BIT_STREAM_REQUESTED
    if connection.version >= Version.V1_3:
        known |= NEW_MEASUREMENT_REQUESTED
    measurement_hash = connection.chosen.measurement_hash
    if request.attributes & ~known or measurement_hash is None or not connection.own & ANY_MEAS:
        raise Refused(ErrorCode.INVALID_REQUEST)
    if signs and not connection.own & Capability.MEAS_SIG:
        raise Refused(ErrorCode.UNSUPPORTED_REQUEST, data[1])
    slot = _slot(request.slot[0]) if signs else 0
    if signs:
        connection.chain(slot)
    every = sorted(connection.personality.measurements(), key=lambda one: one.index)
    chosen = every if request.operation == _ALL else [one for one in every if one.index == request.operation]
    if not chosen and request.operation not in (_COUNT, _ALL):
        raise Refused(ErrorCode.INVALID_REQUEST)
    raw = bool(request.attributes & RAW_BIT_STREAM_REQUESTED)
    record = b"".join([one.pack(measurement_hash.value, raw=raw) for one in chosen])
    answer = Measurements(
        total_count=len(every) if request.operation == _COUNT else 0,
        slot=slot,
        block_count=len(chosen),
        record_bytes=len(record),
        record=record,
        nonce=connection.random(NONCE_BYTES),
        context=request.context,
    ).pack(connection.version)
    log = connection.log if session is None else session.log
    log.add(request.wire, answer)
    if signs:
        answer += connection.sign(slot, MEASUREMENTS_CONTEXT, log.digest())
        log.clear()
    return answer


def _slot(value: int) -> int:
    slot = value & SLOT_MASK
    if slot >= SLOTS:
        raise Refused(ErrorCode.INVALID_REQUEST)
    return slot


def _padding(connection: Connection, session: Session | None) -> int:
    """Inside of a session sizes are exact."""
    return connection.padding if session is None else 0
