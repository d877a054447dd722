"""A responder's part in setting a connection up: version, capabilities, algorithms (DSP0274, 10.3 to 10.5)."""

from __future__ import annotations

from tio.spdm.capabilities import Capabilities, Capability, GetCapabilities, psk_in_common
from tio.spdm.codes import ErrorCode, Version
from tio.spdm.connection import Connection, Stage
from tio.spdm.connection_messages import GetVersion, VersionList
from tio.spdm.faults import Refused
from tio.spdm.negotiation import (
    LONGEST_NEGOTIATION_BYTES,
    NegotiateAlgorithms,
    Negotiated,
    response_of,
    select,
)
from tio.spdm.session import Session


def get_version(connection: Connection, data: bytes, _: Session | None) -> bytes:
    """GET_VERSION; ``connection`` is a new one."""
    request = GetVersion.parse(data, padding=connection.padding)
    answer = VersionList.of(connection.settings.versions).pack(Version.V1_0)
    connection.transcript.negotiate(request.wire, answer)
    connection.stage = Stage.VERSION
    return answer


def get_capabilities(connection: Connection, data: bytes, _: Session | None) -> bytes:
    """GET_CAPABILITIES: the version of everything that follows is its own."""
    again = _repeated(connection, data, Stage.CAPABILITIES)
    if again is not None:
        return again
    request = GetCapabilities.parse(data, padding=connection.padding)
    if not request.acceptable:
        raise Refused(ErrorCode.INVALID_REQUEST)
    settings = connection.settings
    connection.version = Version(data[0])
    connection.peer = request.capabilities
    connection.peer_transfer_bytes = request.data_transfer_bytes
    connection.peer_message_bytes = request.max_message_bytes
    answer = Capabilities(
        ct_exponent=settings.ct_exponent,
        flags=settings.capabilities,
        data_transfer_bytes=settings.data_transfer_bytes,
        max_message_bytes=settings.max_message_bytes,
    ).pack(connection.version)
    return _went_on(connection, Stage.CAPABILITIES, request.wire, answer)


def negotiate_algorithms(connection: Connection, data: bytes, _: Session | None) -> bytes:
    """NEGOTIATE_ALGORITHMS: one of each, the strongest that both have."""
    again = _repeated(connection, data, Stage.NEGOTIATED)
    if again is not None:
        return again
    request = NegotiateAlgorithms.parse(data, padding=connection.padding)
    if request.length != len(request.wire) or request.length > LONGEST_NEGOTIATION_BYTES:
        raise Refused(ErrorCode.INVALID_REQUEST)
    chosen = select(request, connection.offer)
    if chosen is None or not _suffices(connection, chosen):
        raise Refused(ErrorCode.INVALID_REQUEST)
    answer = response_of(request, chosen).pack(connection.version)
    connection.algorithms = chosen
    _went_on(connection, Stage.NEGOTIATED, request.wire, answer)
    connection.transcript.agree(chosen.hash.value)
    return answer


def _suffices(connection: Connection, chosen: Negotiated) -> bool:
    """Whether there is an algorithm for everything that both sides can do."""
    common = connection.own & connection.peer
    if common & Capability.KEY_EX and not (chosen.dhe and chosen.aead and chosen.key_schedule and chosen.asym):
        return False
    psk = psk_in_common(connection.own, connection.peer)
    return not psk or bool(chosen.aead and chosen.key_schedule)


def _repeated(connection: Connection, data: bytes, stage: Stage) -> bytes | None:
    """The answer of before to a request that is sent again; None if it is the next one."""
    if connection.stage < stage:
        return None
    request, answer = connection.last_set_up
    if connection.stage is stage and data[: len(request)] == request and len(data) <= len(request) + connection.padding:
        return answer
    raise Refused(ErrorCode.UNEXPECTED_REQUEST)


def _went_on(connection: Connection, stage: Stage, request: bytes, answer: bytes) -> bytes:
    connection.transcript.negotiate(request, answer)
    connection.stage = stage
    connection.last_set_up = (request, answer)
    return answer
