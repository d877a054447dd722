"""Messages about who a device is and what it runs: digests, certificates, challenge, measurements (10.6 to 10.11)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tio.spdm.codes import Request, Response
from tio.spdm.message_layout import Message, counted, number, octets

NONCE_BYTES = 32
CONTEXT_BYTES = 8
"""RequesterContext, from 1.3 on."""

SLOT_MASK = 0x0F
SLOTS = 8
SLOT_SIZE_REQUESTED = 0x01
"""Attribute of GET_CERTIFICATE, from 1.3 on."""
WHOLE_CHAIN = 0xFFFF

SIGNATURE_REQUESTED = 0x01
RAW_BIT_STREAM_REQUESTED = 0x02
NEW_MEASUREMENT_REQUESTED = 0x04


@dataclass(frozen=True, slots=True, kw_only=True)
class GetDigests(Message):
    """GET_DIGESTS."""

    CODE: ClassVar[int] = Request.GET_DIGESTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests(Message):
    """DIGESTS: one for each provisioned slot, in ascending order."""

    CODE: ClassVar[int] = Response.DIGESTS
    supported_mask: int = number(1)
    slot_mask: int = number(1)
    digests: bytes = octets("digests_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class GetCertificate(Message):
    """GET_CERTIFICATE."""

    CODE: ClassVar[int] = Request.GET_CERTIFICATE
    slot: int = number(1)
    attributes: int = number(1)
    offset: int = number(2)
    length: int = number(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate(Message):
    """CERTIFICATE: a portion of a slot's chain."""

    CODE: ClassVar[int] = Response.CERTIFICATE
    slot: int = number(1)
    information: int = number(1)
    """0 but in multi-key connections."""
    portion_bytes: int = number(2)
    remainder_bytes: int = number(2)
    portion: bytes = octets("portion_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge(Message):
    """CHALLENGE."""

    CODE: ClassVar[int] = Request.CHALLENGE
    slot: int = number(1)
    summary: int = number(1)
    nonce: bytes = octets(NONCE_BYTES)
    context: bytes = octets("context_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengeAuth(Message):
    """CHALLENGE_AUTH."""

    CODE: ClassVar[int] = Response.CHALLENGE_AUTH
    slot: int = number(1)
    """Bit 7 asks for mutual authentication, which nobody here does."""
    slot_mask: int = number(1)
    chain_hash: bytes = octets("hash_bytes")
    nonce: bytes = octets(NONCE_BYTES)
    summary_hash: bytes = octets("summary_bytes")
    opaque: bytes = counted()
    context: bytes = octets("context_bytes")
    signature: bytes = octets("signature_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class GetMeasurements(Message):
    """GET_MEASUREMENTS; nonce and slot are there if a signature is requested."""

    CODE: ClassVar[int] = Request.GET_MEASUREMENTS
    attributes: int = number(1)
    operation: int = number(1)
    nonce: bytes = octets("nonce_bytes")
    slot: bytes = octets("slot_bytes")
    context: bytes = octets("context_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements(Message):
    """MEASUREMENTS; the nonce is always there."""

    CODE: ClassVar[int] = Response.MEASUREMENTS
    total_count: int = number(1)
    slot: int = number(1)
    """Bits 5:4: whether content changed since measurements were last asked for."""
    block_count: int = number(1)
    record_bytes: int = number(3)
    record: bytes = octets("record_bytes")
    nonce: bytes = octets(NONCE_BYTES)
    opaque: bytes = counted()
    context: bytes = octets("context_bytes")
    signature: bytes = octets("signature_bytes")
