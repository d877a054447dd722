"""Guest requests: how a hypervisor carries a guest's message to the security processor and its answer back.

The guest names two shared pages. As KVM does (arch/x86/kvm/svm/sev.c, snp_handle_guest_req), the request is copied
unread to a page of the hypervisor's own, and the answer comes by another, which is the firmware's from the first
request on until the guest goes: so no page of the guest's changes its owner. EXITINFO2 tells the guest what became
of it: the hypervisor's error in bits 63:32, the firmware's status in 31:0.

With an extended request a guest makes room for certificates; they go with requests for a report, whose number in
the message's header is all that is read of it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import IntEnum

from node import operations as op
from node.guest_memory_map import Range
from node.hypervisor_port import Answers, Batch, LaunchRefused
from node.launched_vm import LaunchedVm
from node.nae_event import GuestRequest
from psp import command_buffers as buffers
from psp.attestation_report import REPORT_BYTES
from psp.certificate_table import with_agent_report
from psp.commands import SnpCommand
from psp.system_bus import PAGE_BYTES, RmpEntry

_FIRMWARE = RmpEntry(assigned=True, immutable=True)

MESSAGE_TYPE, REPORT_REQUEST = 0x34, 5
"""Offset of the type in a message's header, and the type that asks for a report (firmware ABI, section 8.26)."""
END_OF_CERTIFICATES = bytes(24)
"""An entry of zeros ends a table of certificates (GHCB specification, section 4.1.8.1)."""


class RequestError(IntEnum):
    """The hypervisor's error of a guest request (GHCB specification, table 7)."""

    NONE = 0
    BUFFER_TOO_SMALL = 1
    """RBX then says how many pages certificates need."""
    BUSY = 2
    """Ask again, with the same message."""


class BadPage(Exception):
    """A page of a request is no memory of the guest's, or is private where it must be shared."""


@dataclass(frozen=True, slots=True)
class Requested:
    """What became of a request; ``pages_needed`` where the room for certificates did not do."""

    error: RequestError = RequestError.NONE
    status: int = 0
    pages_needed: int | None = None

    @property
    def info2(self) -> int:
        """EXITINFO2."""
        return self.error << 32 | self.status


Asking = Generator[Batch, Answers, Requested]


class GuestRequests:
    """Carries them for one hypervisor's guests. ``room`` gives a guest a frame, until the guest goes.

    ``certificates`` is a table that the host's owner gave; empty for what the host fetches.
    """

    def __init__(self, room: Callable[[LaunchedVm], int]) -> None:
        self.certificates = b""
        self.agent_report: Callable[[], Generator[Batch, Answers, bytes]] | None = None
        """Has a host's migration agent prove itself, where there is one: guests that it may move show its report."""
        self._room = room

    def ask(self, record: LaunchedVm, asked: GuestRequest, *, extended: bool) -> Asking:
        """Carry a request to the firmware. Raises BadPage, with nothing asked."""
        request_spa, response_spa = record.page_spa(asked.request_gpa), record.page_spa(asked.response_gpa)
        if request_spa is None or response_spa is None:
            raise BadPage
        # The response page is written first to see that it is the hypervisor's to write: a message that was answered
        # and got lost would cost the guest its key.
        message, laid = yield (op.HostRead(request_spa, PAGE_BYTES), op.HostWrite(response_spa, bytes(PAGE_BYTES)))
        if not isinstance(message, bytes) or laid is not None:
            raise BadPage
        if extended and message[MESSAGE_TYPE] == REPORT_REQUEST:
            (fetched,) = yield (op.FetchCertificates(),)
            table = self.certificates or (fetched if isinstance(fetched, bytes) else b"")
            if self.agent_report is not None and record.agent:
                # Every report is as long: who makes too little room hears so before an agent is asked for one.
                needed = self._more_room(asked, with_agent_report(table, bytes(REPORT_BYTES)))
                if needed is not None:
                    return Requested(RequestError.BUFFER_TOO_SMALL, pages_needed=needed)
                table = with_agent_report(table, (yield from self.agent_report()))
            needed = yield from self.lay(record, asked, table)
            if needed is not None:
                return Requested(RequestError.BUFFER_TOO_SMALL, pages_needed=needed)
        return (yield from self._exchange(record, message, response_spa))

    @staticmethod
    def lay(record: LaunchedVm, asked: GuestRequest, table: bytes) -> Generator[Batch, Answers, int | None]:
        """Put a table where the guest wants it; how many pages it takes if that is too little room."""
        needed = GuestRequests._more_room(asked, table)
        if needed is not None or not asked.data_pages:
            return needed
        table = table or END_OF_CERTIFICATES
        place = Range(asked.data_gpa, len(table))
        writes = [
            op.HostWrite(spa, table[gpa - place.gpa : gpa - place.gpa + length])
            for gpa, spa, length in record.backing(place)
        ]
        if sum(len(one.data) for one in writes) != len(table) or any((yield tuple(writes))):
            raise BadPage
        return None

    @staticmethod
    def _more_room(asked: GuestRequest, table: bytes) -> int | None:
        """How many pages a table takes if the guest made too little room for it; one without any wants no end."""
        if not table and not asked.data_pages:
            return None
        needed = -(-len(table or END_OF_CERTIFICATES) // PAGE_BYTES)
        return needed if asked.data_pages < needed else None

    def _exchange(self, record: LaunchedVm, message: bytes, response_spa: int) -> Asking:
        own = record.request_pages or (yield from self.own_pages(record))
        if own is None:
            return Requested(RequestError.BUSY)
        there, back = own
        buffer = buffers.SnpGuestRequest(gctx=record.gctx, request=there, response=back).pack()
        # One batch: what the host does between its steps is nobody's affair, and no step may be left out.
        wrote, answer, response = yield (
            op.HostWrite(there, message),
            op.PspCommand(SnpCommand.GUEST_REQUEST, record.small[0], buffer),
            op.HostRead(back, PAGE_BYTES),
        )
        if wrote is not None or not (isinstance(answer, op.PspAnswer) and isinstance(response, bytes)):
            return Requested(RequestError.BUSY)
        yield (op.HostWrite(response_spa, response),)
        return Requested(status=answer.status)

    def own_pages(self, record: LaunchedVm) -> Generator[Batch, Answers, tuple[int, int] | None]:
        """A page for requests and one for answers, for as long as the guest lives; None where there is no room."""
        try:
            there, back = self._room(record), self._room(record)
        except LaunchRefused:
            return None
        (lent,) = yield (op.RmpUpdate(back, PAGE_BYTES, _FIRMWARE),)
        if lent:
            return None
        record.firmware_pages.append(back)
        record.request_pages = there, back
        return record.request_pages
