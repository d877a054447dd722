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
from psp.certificate_table import ENTRY_BYTES
from psp.guest_message import MessageType
from psp.report_messages import ReportRequest, ReportResponse
from workloads.block_outcome import FAULTED, faulted
from workloads.parameters import (
    PAGE_BYTES,
    WorkloadParameterError,
    check_placement,
    parameters_from,
    text,
    whole,
)

ASK_RIP, REST_RIP = 0x40_0000, 0x40_1000
REPORT_DATA, VMPL, KEY_SELECTION = "report_data", "vmpl", "key_selection"
"""Names of the usual parameters."""
REFUSED = Shutdown(5)
"""The firmware said no, or nobody answered: the vCPU ends."""
HEADER = struct.Struct("<III")
"""At the beginning of its outbox: the status in the firmware's answer, bytes of the report, bytes of certificates."""
ROOM_BYTES = 4 * PAGE_BYTES
_REQUEST, _RESPONSE, _ROOM, _OUTBOX = 0, PAGE_BYTES, 2 * PAGE_BYTES, 2 * PAGE_BYTES + ROOM_BYTES
OUTBOX_BYTES = ROOM_BYTES + PAGE_BYTES
_NAP_NS, _MOST_DOUBLINGS = 1_000_000, 10
_REST = Sleep(3_600_000_000_000)
_DONE = Shutdown(0)
_OWN = 4
_MOST_DATA_BYTES = 64


@dataclass(frozen=True, slots=True)
class AttestingParameters:
    """Parameters of ``attesting``."""

    report_data: str = text("", 2 * _MOST_DATA_BYTES)
    """What the report binds, in hexadecimal."""
    vmpl: int = whole(_OWN, 0, _OWN)
    """The VMPL that it is for; 4 for the guest's own."""
    key_selection: int = whole(0, 0, 3)
    """Which key is to sign: 0 the VLEK, if there is one, else the VCEK, 1 the VCEK, 2 the VLEK."""
    needs_certificates: int = whole(0, 0, 1)
    """1: ask again, after naps that double up to a second, until the host has certificates."""
    stops: int = whole(0, 0, 1)
    """1: shut down once everything is shown, so that the end of the VM says when that was."""

    def __post_init__(self) -> None:
        try:
            bytes.fromhex(self.report_data)
        except ValueError:
            raise WorkloadParameterError("report_data", "hexadecimal digits") from None

    @property
    def private_bytes(self) -> int:
        """None."""
        return 0

    @property
    def shared_bytes(self) -> int:
        """Pages for messages, room for certificates, and the outbox."""
        return _OUTBOX + OUTBOX_BYTES

    @property
    def disk_bytes(self) -> int:
        """None."""
        return 0


@dataclass(frozen=True, slots=True)
class Attesting:
    """The program of one vCPU. R13 counts its reports, R12 its naps."""

    placement: Placement
    parameters: AttestingParameters

    entry = ASK_RIP
    demands: tuple[Demand, ...] = ()

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> Attesting:
        """The program of a specification. Raises WorkloadParameterError."""
        parameters = parameters_from(AttestingParameters, spec.parameters)
        check_placement(parameters, placement)
        return cls(placement, parameters)

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
        asked = self.parameters
        vmpl = place.messages.vmpl if asked.vmpl == _OWN else asked.vmpl
        request = ReportRequest(bytes.fromhex(asked.report_data), vmpl, asked.key_selection).pack()
        room = Range(place.shared_gpa + _ROOM, ROOM_BYTES)
        try:
            answered = yield from messages.ask(MessageType.REPORT_REQ, request, room=room)
        except MessagesBusy:
            return _nap(registers)
        except MessageRefused:
            return REFUSED
        said = ReportResponse.parse(answered.payload)
        report = answered.payload[ReportResponse.SIZE : ReportResponse.SIZE + said.report_bytes]
        shown = HEADER.pack(said.status, len(report), len(answered.certificates)) + report + answered.certificates
        if faulted((yield (Write(self.outbox.gpa, shown, private=False),))):
            return FAULTED
        registers.r13 += 1
        if asked.needs_certificates and not any(answered.certificates[:ENTRY_BYTES]):
            return _nap(registers)
        registers.rip = REST_RIP
        return _DONE if asked.stops else _REST

    def _rest(self, _: Registers) -> Block:
        return _REST
        yield ()


def _nap(registers: Registers) -> Sleep:
    naps, registers.r12 = registers.r12, registers.r12 + 1
    return Sleep(_NAP_NS << min(naps, _MOST_DOUBLINGS))
