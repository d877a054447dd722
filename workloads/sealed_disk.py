"""A tenant that keeps the key of its disk sealed: what firmware derives for this guest on this chip opens it again.

It draws a disk key, seals it with a derived key (MSG_KEY_REQ), and keeps what comes of it in the first block of its
part of the disk. From then on it opens the key again and again, as after restarts of its kernel. Whether it still can
after an update of the firmware is decided by what it has derived, and by what it remembers.

The disk is the host's, who may change what lies there: it gets nothing by it but a guest that ends.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from node.guest_disk import GuestDisk
from node.guest_messages import GuestMessages, MessageRefused, MessagesBusy
from node.operations import BLOCK_BYTES, Answer, Compute, GuestOperation, Read, Shutdown, Sleep, Write
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from psp.attestation_report import SIGNED_BYTES, AttestationReport
from psp.guest_message import MessageType
from psp.installed_firmware import tcb_at_most
from psp.key_messages import (
    KEY_REQUEST_BYTES,
    SELECT_MEASUREMENT,
    SELECT_POLICY,
    SELECT_TCB,
    KeyRequest,
    KeyResponse,
)
from psp.report_messages import ReportRequest, ReportResponse
from psp.status import Status
from workloads.attesting import REFUSED
from workloads.block_outcome import FAULTED, WRONG_ANSWER, faulted, with_devices
from workloads.keyed_content import KeyedContent
from workloads.parameters import MOST_INSTRUCTIONS, PAGE_BYTES, check_placement, parameters_from, whole

SEAL_RIP, OPEN_RIP, REST_RIP = 0x40_0000, 0x40_1000, 0x40_2000
LOST = Shutdown(7)
"""What is derived now does not open what lies on the disk."""
DISK_KEY_BYTES = 32
_SEALED = struct.Struct("<Q12s48s")
"""The TCB version that it was sealed to, 0 for none; nonce; key and tag."""
_REQUEST, _RESPONSE, _MESSAGE_BYTES = 0, PAGE_BYTES, 2 * PAGE_BYTES
_NAP = Sleep(1_000_000)
_NS_PER_S = 1_000_000_000

DEMAND = Demand(
    "work",
    instructions_per_cycle=1.5,
    llc_misses_per_kilo_instruction=0.5,
    tlb_misses_per_kilo_instruction=0.2,
    memory_level_parallelism=2.0,
)
"""What it does with its disk open. The laboratory's choice: not published."""

_Asking = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], int]
_Deriving = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], AESGCM]


@dataclass(frozen=True, slots=True)
class SealedParameters:
    """Parameters of ``sealed-disk``."""

    binds_tcb: int = whole(1, 0, 1)
    """1: what is derived depends on a TCB version, too, and not on guest and chip alone."""
    remembers_tcb: int = whole(0, 0, 1)
    """1: it has the key derived for the version that it sealed to; 0: for what its host reports at the time."""
    seals_anew: int = whole(0, 0, 1)
    """1: once a key is open and the host reports a higher version, it is sealed to that."""
    seconds: int = whole(30, 1, 86_400)
    """That it rests before it opens its key again."""
    instructions: int = whole(3_000_000_000, 0, MOST_INSTRUCTIONS)
    """Of its work after each time that it did."""

    @property
    def private_bytes(self) -> int:
        """A block's buffer."""
        return BLOCK_BYTES

    @property
    def shared_bytes(self) -> int:
        """Pages for messages, and a bounce buffer for a block."""
        return _MESSAGE_BYTES + BLOCK_BYTES

    @property
    def disk_bytes(self) -> int:
        """A block."""
        return BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class SealedDisk:
    """The program of one vCPU. R12 counts how often it sealed its key, R13 how often it opened it."""

    parameters: SealedParameters
    placement: Placement
    content: KeyedContent

    entry = SEAL_RIP
    demands = (DEMAND,)

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> SealedDisk:
        """Rebuild the program whole. Raises WorkloadParameterError."""
        parameters = parameters_from(SealedParameters, spec.parameters)
        check_placement(parameters, placement)
        return cls(parameters, placement, KeyedContent.of(placement, spec.name))

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {
            SEAL_RIP: lambda registers: _with_firmware(with_devices(self._seal(registers))),
            OPEN_RIP: lambda registers: _with_firmware(with_devices(self._open(registers))),
            REST_RIP: self._rest,
        }

    def _seal(self, registers: Registers) -> Block:
        tcb = (yield from self._reported()) if self.parameters.binds_tcb else 0
        cipher = yield from self._derived(tcb)
        nonce = self.content.octets(b"nonce", registers.r12, 0, 12)
        sealed = _SEALED.pack(tcb, nonce, cipher.encrypt(nonce, self._disk_key, None)).ljust(BLOCK_BYTES, b"\0")
        if faulted((yield (Write(self.placement.base_gpa, sealed),))):
            return FAULTED
        if not registers.r12:
            yield from self._disk.area.open()
        if (yield from self._disk.write(self.placement.vcpu, 1, self.placement.base_gpa)):
            return FAULTED
        registers.r12 += 1
        registers.rip = OPEN_RIP
        return self._pause

    def _rest(self, registers: Registers) -> Block:
        registers.rip = OPEN_RIP
        return self._pause
        yield ()

    def _open(self, registers: Registers) -> Block:
        if (yield from self._disk.read(self.placement.vcpu, 1, self.placement.base_gpa)):
            return FAULTED
        (block,) = yield (Read(self.placement.base_gpa, _SEALED.size),)
        if not isinstance(block, bytes):
            return FAULTED
        tcb, nonce, sealed = _SEALED.unpack(block)
        parameters = self.parameters
        reported = (yield from self._reported()) if parameters.binds_tcb else 0
        cipher = yield from self._derived(tcb if parameters.remembers_tcb else reported)
        try:
            found = cipher.decrypt(nonce, sealed, None)
        except InvalidTag:
            return LOST
        if found != self._disk_key:
            return WRONG_ANSWER
        registers.r13 += 1
        registers.rip = SEAL_RIP if parameters.seals_anew and not tcb_at_most(reported, tcb) else REST_RIP
        return Compute(0, parameters.instructions) if parameters.instructions else None

    # What it asks the firmware.

    def _reported(self) -> _Asking:
        """The TCB version that its host reports."""
        messages = self._messages
        answered = yield from messages.ask(MessageType.REPORT_REQ, ReportRequest(b"", messages.place.vmpl).pack())
        if ReportResponse.parse(answered.payload).status != Status.SUCCESS:
            raise MessageRefused("no report")
        report = answered.payload[ReportResponse.SIZE :][:SIGNED_BYTES]
        return AttestationReport.parse(report).reported_tcb

    def _derived(self, tcb: int) -> _Deriving:
        """What seals: for this image and policy alone, and for a TCB version if it binds one."""
        messages = self._messages
        fields = SELECT_POLICY | SELECT_MEASUREMENT | (SELECT_TCB if self.parameters.binds_tcb else 0)
        request = KeyRequest(fields=fields, vmpl=messages.place.vmpl, tcb=tcb).pack()[: KEY_REQUEST_BYTES[1]]
        answered = yield from messages.ask(MessageType.KEY_REQ, request)
        found = KeyResponse.parse(answered.payload)
        if found.status != Status.SUCCESS:
            raise MessageRefused("no key")
        return AESGCM(found.key)

    # Its places.

    @property
    def _messages(self) -> GuestMessages:
        place, first = self.placement.messages, self.placement.shared_gpa + self._pool.shared_length
        if place is None:
            raise MessageRefused("nobody to ask")
        return GuestMessages(place, first + _REQUEST, first + _RESPONSE)

    @property
    def _pool(self) -> Placement:
        """Its shared memory without the pages for messages."""
        return replace(self.placement, shared_length=self.placement.shared_length - _MESSAGE_BYTES)

    @property
    def _disk(self) -> GuestDisk:
        return GuestDisk.of(self._pool)

    @property
    def _disk_key(self) -> bytes:
        return self.content.octets(b"disk key", 0, 0, DISK_KEY_BYTES)

    @property
    def _pause(self) -> Sleep:
        return Sleep(self.parameters.seconds * _NS_PER_S)


def _with_firmware(block: Block) -> Block:
    """A block that asks the firmware."""
    try:
        return (yield from block)
    except MessagesBusy:
        return _NAP
    except MessageRefused:
        return REFUSED
