"""A tenant that proves what it is: it asks the security processor for a report, and shows that to whoever looks.

It asks with an extended request, so that its hypervisor may add certificates. Report and certificates go into its
shared memory, for both are nobody's secret: a record of lengths, the report, then what came of certificates.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from node.guest_memory_map import Range
from node.guest_messages import GuestMessages, MessageRefused, MessagesBusy
from node.operations import Shutdown, Sleep, Write
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from psp.guest_message import MessageType
from psp.report_messages import ReportRequest, ReportResponse
from workloads.block_outcome import FAULTED, faulted
from workloads.parameters import PAGE_BYTES, WorkloadParameterError

ASK_RIP, REST_RIP = 0x40_0000, 0x40_1000
REPORT_DATA, VMPL, KEY_SELECTION = "report_data", "vmpl", "key_selection"
"""Parameters: 64 bytes in hexadecimal that go into the report, the VMPL that it is for, and which key is to sign."""
REFUSED = Shutdown(5)
"""The firmware said no, or nobody answered: the vCPU ends."""
HEADER = struct.Struct("<III")
"""At the beginning of its outbox: the status in the firmware's answer, bytes of the report, bytes of certificates."""
ROOM_BYTES = 4 * PAGE_BYTES
_REQUEST, _RESPONSE, _ROOM, _OUTBOX = 0, PAGE_BYTES, 2 * PAGE_BYTES, 2 * PAGE_BYTES + ROOM_BYTES
OUTBOX_BYTES = ROOM_BYTES + PAGE_BYTES
_NAP = Sleep(1_000_000)
_REST = Sleep(3_600_000_000_000)


@dataclass(frozen=True, slots=True)
class Attesting:
    """The program of one vCPU. R13 counts its reports."""

    placement: Placement
    report_data: bytes
    vmpl: int
    key_selection: int

    entry = ASK_RIP
    demands: tuple[Demand, ...] = ()

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> Attesting:
        """The program of a specification. Raises WorkloadParameterError."""
        given = dict(spec.parameters)
        data = bytes.fromhex(str(given.get(REPORT_DATA, "")))
        own = 0 if placement.messages is None else placement.messages.vmpl
        if placement.shared_length < _OUTBOX + OUTBOX_BYTES:
            raise WorkloadParameterError("memory", f"at least {_OUTBOX + OUTBOX_BYTES} shared bytes for each vCPU")
        return cls(placement, data, int(given.get(VMPL, own)), int(given.get(KEY_SELECTION, 0)))

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {ASK_RIP: self._ask, REST_RIP: self._rest}

    @property
    def outbox(self) -> Range:
        """Where it shows what it has."""
        return Range(self.placement.shared_gpa + _OUTBOX, OUTBOX_BYTES)

    def _ask(self, registers: Registers) -> Block:
        place = self.placement
        if place.messages is None:
            return REFUSED
        messages = GuestMessages(place.messages, place.shared_gpa + _REQUEST, place.shared_gpa + _RESPONSE)
        request = ReportRequest(self.report_data, self.vmpl, self.key_selection).pack()
        room = Range(place.shared_gpa + _ROOM, ROOM_BYTES)
        try:
            answered = yield from messages.ask(MessageType.REPORT_REQ, request, room=room)
        except MessagesBusy:
            return _NAP
        except MessageRefused:
            return REFUSED
        said = ReportResponse.parse(answered.payload)
        report = answered.payload[ReportResponse.SIZE : ReportResponse.SIZE + said.report_bytes]
        shown = HEADER.pack(said.status, len(report), len(answered.certificates)) + report + answered.certificates
        if faulted((yield (Write(self.outbox.gpa, shown, private=False),))):
            return FAULTED
        registers.r13 += 1
        registers.rip = REST_RIP
        return _REST

    def _rest(self, _: Registers) -> Block:
        return _REST
        yield ()
