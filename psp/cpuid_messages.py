"""MSG_CPUID_REQ: a running guest has firmware look at values of CPUID that its hypervisor gave it.

The table is that of a CPUID page, without its end, and the rules are the same (``psp.cpuid_check``). That an answer
to values that are not allowed is INVALID_PARAM with those that are is taken from what firmware does to such a page;
the message's own text could not be read (SEV-SNP firmware ABI, section 7.1).
"""

from __future__ import annotations

from psp.cpuid_check import corrected
from psp.guest_requests import Request
from psp.launch_pages import CPUID_MOST_ENTRIES
from psp.status import PspError, Status
from psp.system_bus import SystemBus

CPUID_HEADER_BYTES, CPUID_ENTRY_BYTES = 0x10, 48
"""COUNT and what is reserved, then entries; the answer has its status before COUNT."""


class CpuidMessages:
    """Answers them."""

    def __init__(self, bus: SystemBus) -> None:
        self._bus = bus

    def answer(self, request: Request) -> bytes:
        """The response's payload. Raises PspError(INVALID_PARAM) for a table that is not as long as it says."""
        table = request.payload
        count = int.from_bytes(table[:4], "little")
        if len(table) < CPUID_HEADER_BYTES or len(table) != CPUID_HEADER_BYTES + count * CPUID_ENTRY_BYTES:
            raise PspError(Status.INVALID_PARAM)
        if count > CPUID_MOST_ENTRIES or any(table[4:CPUID_HEADER_BYTES]):
            return _response(Status.INVALID_PARAM, 0, b"")
        allowed = corrected(table, self._bus.cpuid_facts)
        status = Status.SUCCESS if allowed == table else Status.INVALID_PARAM
        return _response(status, count, allowed[CPUID_HEADER_BYTES:])


def _response(status: Status, count: int, entries: bytes) -> bytes:
    return status.to_bytes(4, "little") + count.to_bytes(4, "little") + bytes(8) + entries
