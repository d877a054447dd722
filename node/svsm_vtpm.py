"""Protocol 2 of an SVSM: a vTPM whose state lies in the SVSM's memory. One command at a time."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from node import operations as op
from node.svsm import Svsm
from node.svsm_books import Steps, must, read_books
from node.svsm_call import CallRefused, SvsmResult, VtpmCall
from node.svsm_memory import SEED_GPA, TPM_GPA
from node.svsm_request import Request
from node.tpm import SEED_BYTES, STATE_BYTES, TpmCommand, TpmState, execute
from psp.system_bus import PAGE_BYTES

SEND_COMMAND = 8
"""The only platform command, as Microsoft's reference implementation numbers it."""
_REQUEST = struct.Struct("<IBI")
_WORK: Mapping[int, str] = {
    TpmCommand.PCR_READ: "svsm.vtpm_read_ns",
    TpmCommand.PCR_EXTEND: "svsm.vtpm_extend_ns",
}
"""The cost of a command; what has none of its own costs as much as a read."""


def vtpm_service(svsm: Svsm, call: int, request: Request) -> Steps:
    """Serve a call of the vTPM protocol. Raises CallRefused."""
    if call == VtpmCall.QUERY:
        request.rcx, request.rdx = 1 << SEND_COMMAND, 0
        return
    if call != VtpmCall.CMD:
        raise CallRefused(SvsmResult.UNSUPPORTED_CALL)
    yield from _command(svsm, request.rcx)


def _command(svsm: Svsm, gpa: int) -> Steps:
    """A page's worth at ``gpa``: platform command, locality, size and a TPM command; then size and response."""
    if not gpa:
        raise CallRefused(SvsmResult.INVALID_PARAMETER)
    books = yield from read_books(svsm)
    data = yield from books.read(svsm, gpa, PAGE_BYTES)
    command, locality, size = _REQUEST.unpack_from(data)
    if command != SEND_COMMAND or locality or size > PAGE_BYTES - _REQUEST.size:
        raise CallRefused(SvsmResult.INVALID_PARAMETER)
    asked = data[_REQUEST.size : _REQUEST.size + size]
    code = int.from_bytes(asked[6:10], "big")
    before, seed, _ = yield (
        op.Read(TPM_GPA, STATE_BYTES),
        op.Read(SEED_GPA, SEED_BYTES),
        op.GuestWork(_WORK.get(code, "svsm.vtpm_read_ns")),
    )
    if not isinstance(before, bytes) or not isinstance(seed, bytes):
        raise CallRefused(SvsmResult.BUSY)
    after, response = execute(TpmState.parse(before), seed, asked)
    yield from must(
        op.Write(TPM_GPA, after.pack()),
        op.Write(gpa, struct.pack("<I", len(response)) + response),
    )
