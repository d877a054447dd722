"""Messages that make, keep and end sessions (DSP0274, 10.14 to 10.22)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tio.spdm.codes import Request, Response
from tio.spdm.message_layout import Message, counted, number, octets

RANDOM_BYTES = 32
SIGNATURE_INCLUDED = 0x01
"""Param1 of FINISH."""
TERMINATION_POLICY = 0x01
KEEP_NEGOTIATED_STATE, CLEAR_NEGOTIATED_STATE = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyExchange(Message):
    """KEY_EXCHANGE."""

    CODE: ClassVar[int] = Request.KEY_EXCHANGE
    summary: int = number(1)
    slot: int = number(1)
    session_id: int = number(2)
    policy: int = number(1)
    random: bytes = octets(RANDOM_BYTES, before=1)
    exchange_data: bytes = octets("exchange_bytes")
    opaque: bytes = counted()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyExchangeResponse(Message):
    """KEY_EXCHANGE_RSP; verify data is missing where the handshake is in the clear."""

    CODE: ClassVar[int] = Response.KEY_EXCHANGE_RSP
    heartbeat_s: int = number(1)
    session_id: int = number(2, before=1)
    mutual: int = number(1)
    slot: int = number(1)
    """Of the requester's certificates; 0 without mutual authentication."""
    random: bytes = octets(RANDOM_BYTES)
    exchange_data: bytes = octets("exchange_bytes")
    summary_hash: bytes = octets("summary_bytes")
    opaque: bytes = counted()
    signature: bytes = octets("signature_bytes")
    verify_data: bytes = octets("verify_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish(Message):
    """FINISH, without a requester's signature: nobody here authenticates requesters."""

    CODE: ClassVar[int] = Request.FINISH
    attributes: int = number(1)
    slot: int = number(1)
    verify_data: bytes = octets("hash_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishResponse(Message):
    """FINISH_RSP; verify data is there only where the handshake is in the clear."""

    CODE: ClassVar[int] = Response.FINISH_RSP
    verify_data: bytes = octets("verify_bytes", before=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class PskExchange(Message):
    """PSK_EXCHANGE."""

    CODE: ClassVar[int] = Request.PSK_EXCHANGE
    summary: int = number(1)
    policy: int = number(1)
    session_id: int = number(2)
    hint_bytes: int = number(2)
    context_size: int = number(2)
    opaque_bytes: int = number(2)
    hint: bytes = octets("hint_bytes")
    context: bytes = octets("context_size")
    opaque: bytes = octets("opaque_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class PskExchangeResponse(Message):
    """PSK_EXCHANGE_RSP."""

    CODE: ClassVar[int] = Response.PSK_EXCHANGE_RSP
    heartbeat_s: int = number(1)
    session_id: int = number(2, before=1)
    context_size: int = number(2, before=2)
    opaque_bytes: int = number(2)
    summary_hash: bytes = octets("summary_bytes")
    context: bytes = octets("context_size")
    opaque: bytes = octets("opaque_bytes")
    verify_data: bytes = octets("hash_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class PskFinish(Message):
    """PSK_FINISH."""

    CODE: ClassVar[int] = Request.PSK_FINISH
    verify_data: bytes = octets("hash_bytes", before=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class PskFinishResponse(Message):
    """PSK_FINISH_RSP."""

    CODE: ClassVar[int] = Response.PSK_FINISH_RSP


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(Message):
    """HEARTBEAT."""

    CODE: ClassVar[int] = Request.HEARTBEAT


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatAck(Message):
    """HEARTBEAT_ACK."""

    CODE: ClassVar[int] = Response.HEARTBEAT_ACK


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUpdate(Message):
    """KEY_UPDATE."""

    CODE: ClassVar[int] = Request.KEY_UPDATE
    operation: int = number(1)
    tag: int = number(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUpdateAck(KeyUpdate):
    """KEY_UPDATE_ACK."""

    CODE: ClassVar[int] = Response.KEY_UPDATE_ACK


@dataclass(frozen=True, slots=True, kw_only=True)
class EndSession(Message):
    """END_SESSION."""

    CODE: ClassVar[int] = Request.END_SESSION
    attributes: int = number(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndSessionAck(Message):
    """END_SESSION_ACK."""

    CODE: ClassVar[int] = Response.END_SESSION_ACK
