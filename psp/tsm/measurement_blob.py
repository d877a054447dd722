"""The blob of TIO_DEV_MEASUREMENTS, as its reader takes it apart: a request and the signed response to it.

Firmware has checked the signature; a guest that has held the blob against the digest that firmware told it believes
what is in it, and looks for its own nonce. That the blob is the two messages as they went by is the laboratory's.
"""

from __future__ import annotations

from dataclasses import dataclass

from tio.spdm.codes import Request, Response, Version
from tio.spdm.faults import MalformedMessage
from tio.spdm.identity_messages import (
    CONTEXT_BYTES,
    NONCE_BYTES,
    RAW_BIT_STREAM_REQUESTED,
    SIGNATURE_REQUESTED,
    GetMeasurements,
    Measurements,
)
from tio.spdm.measurement import MeasurementBlock, parse_record
from tio.spdm.message_layout import HEADER_BYTES, Shape

_LONGEST_SIGNATURE = 512
_SLOT_BYTES = 1


@dataclass(frozen=True, slots=True)
class MeasurementBlob:
    """What was asked and answered: ``nonce`` is the requester's, ``slot`` whose key signed."""

    nonce: bytes
    slot: int
    raw: bool
    blocks: tuple[MeasurementBlock, ...]


def parse_measurement_blob(data: bytes) -> MeasurementBlob:
    """The blob that ``data`` is. Raises MalformedMessage."""
    if len(data) < HEADER_BYTES or data[1] != Request.GET_MEASUREMENTS or not data[2] & SIGNATURE_REQUESTED:
        raise MalformedMessage("measurements", "a signed GET_MEASUREMENTS", data[:HEADER_BYTES].hex())
    context = CONTEXT_BYTES if data[0] >= Version.V1_3 else 0
    end = HEADER_BYTES + NONCE_BYTES + _SLOT_BYTES + context
    shape = Shape(nonce_bytes=NONCE_BYTES, slot_bytes=_SLOT_BYTES, context_bytes=context)
    asked = GetMeasurements.parse(data[:end], shape)
    said = data[end:]
    if said[:2] != bytes((data[0], Response.MEASUREMENTS)):
        raise MalformedMessage("measurements", "MEASUREMENTS in the request's version", said[:2].hex())
    answer = Measurements.parse(said, Shape(context_bytes=context), padding=_LONGEST_SIGNATURE)
    blocks = parse_record(answer.record, answer.block_count)
    return MeasurementBlob(asked.nonce, asked.slot[0] & 0xF, bool(asked.attributes & RAW_BIT_STREAM_REQUESTED), blocks)
