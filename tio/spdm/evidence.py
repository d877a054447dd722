"""What a verifier reads in evidence of measurements: a request and its response, as they went by (DSP0274, 10.11).

Whoever keeps evidence vouches for it by a digest; the signature in it was checked by the requester.
"""

from __future__ import annotations

from tio.spdm.codes import Request, Response, Version
from tio.spdm.faults import MalformedMessage
from tio.spdm.identity_messages import CONTEXT_BYTES, NONCE_BYTES
from tio.spdm.measurement import MeasurementBlock, parse_record

_HEAD, _SLOT = 4, 1
_COUNT, _RECORD_LENGTH, _RECORD = 4, slice(5, 8), 8


def nonce_of(evidence: bytes) -> bytes:
    """The nonce of the request, which whoever wanted the evidence chose."""
    return evidence[_HEAD : _HEAD + NONCE_BYTES]


def measured_blocks(evidence: bytes) -> tuple[MeasurementBlock, ...]:
    """The blocks that a device told of in answer to a signed request. Raises MalformedMessage."""
    if len(evidence) < _HEAD or evidence[1] != Request.GET_MEASUREMENTS:
        raise MalformedMessage("evidence", "GET_MEASUREMENTS", evidence[:2].hex())
    context = CONTEXT_BYTES if evidence[0] >= Version.V1_3 else 0
    answer = evidence[_HEAD + NONCE_BYTES + _SLOT + context :]
    if len(answer) < _RECORD or answer[1] != Response.MEASUREMENTS:
        raise MalformedMessage("evidence", "MEASUREMENTS behind it", answer[:2].hex())
    length = int.from_bytes(answer[_RECORD_LENGTH], "little")
    if len(answer) < _RECORD + length:
        raise MalformedMessage("evidence", f"a record of {length} bytes", len(answer) - _RECORD)
    return parse_record(answer[_RECORD : _RECORD + length], answer[_COUNT])
