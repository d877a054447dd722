"""A program that starts when a relying party has believed its guest, and released a disk key to it.

It asks for a nonce, has firmware put that and a fresh channel key into a report, shows report and certificates, and
opens what comes back; then its card is quiet again and the program proper begins, in registers as at reset. In a SEV
or SEV-ES guest the owner has seen the launch and sent the key with it. Its last pages, private and shared, are its own;
the rest is the program's. A guest that cannot prove anything, as the PLAIN twin of a comparison, begins at once.

    private, behind the program's   the disk key; the nonce; the evidence; the memory of the network card's driver
    shared, behind the program's    request and response pages, and room for certificates
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace

from node import guest_nic
from node.guest_memory_map import Range
from node.guest_messages import GuestMessages, MessageRefused, MessagesBusy
from node.guest_nic import GuestNic
from node.mac_address import mac_of
from node.operations import Answer, Await, GuestOperation, Read, ReadSevStatus, Shutdown, Sleep, Write
from node.owned_launch import LAUNCH_SECRET_GPA
from node.program import Block, Demand, Placement, Program, ProgramSpec, Registers
from node.sev_status import SEV
from node.swiotlb import BounceArea
from psp.guest_message import MessageType
from psp.report_messages import ReportRequest, ReportResponse
from psp.status import Status
from psp.verifier import NONCE_BYTES, bound_report_data
from workloads.block_outcome import FAULTED, NOBODY_ANSWERED, faulted, with_devices
from workloads.parameters import PAGE_BYTES
from workloads.proper_programs import PROPER
from workloads.release_messages import MOST_EVIDENCE_BYTES, Kind, Message, parse, pieces
from workloads.relying_party import DISK_KEY_BYTES
from workloads.secret_channel import ChannelError, ChannelKey

NAME = "attested-start"
RELYING_PARTY, WORKLOAD = "relying_party", "workload"
"""Parameters: the name of the virtual machine that is asked, and of the program proper; others are that program's."""
REFUSED = Shutdown(6)
"""The relying party did not believe it, or no report is to be had."""
BEGIN_RIP, HELLO_RIP, NONCE_RIP, REPORT_RIP, SHOW_RIP, KEY_RIP = range(0x10_0000, 0x10_6000, 0x1000)
LAUNCH_SECRET_BYTES = 64
TIMEOUT_NS = 1_000_000_000
MOST_TRIES = 600
_NAP, _LATER = Sleep(100_000_000), Sleep(1_000_000_000)
"""Until another vCPU has its answer; until the host has its certificates."""

_ROOM_BYTES = 4 * PAGE_BYTES
_REQUEST, _RESPONSE, _ROOM = 0, PAGE_BYTES, 2 * PAGE_BYTES
MESSAGE_BYTES = _ROOM + _ROOM_BYTES
SHARED_BYTES = MESSAGE_BYTES + guest_nic.SHARED_BYTES
_STATE = struct.Struct(f"<{NONCE_BYTES}sI")
_KEY_AT, _STATE_AT, _EVIDENCE_AT = 0, 256, PAGE_BYTES
_NIC_AT = _EVIDENCE_AT + -(-MOST_EVIDENCE_BYTES // PAGE_BYTES) * PAGE_BYTES
PRIVATE_BYTES = _NIC_AT + guest_nic.PRIVATE_BYTES

_Sending = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], None]


@dataclass(frozen=True, slots=True)
class AttestedStart:
    """The program. Until the other begins, RBX counts what went unanswered, R12 the numbers used."""

    relying_party: str
    inner: Program
    placement: Placement

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> AttestedStart:
        """The program of a specification that ``wrapped`` made."""
        relying_party, inner = unwrapped(spec)
        rest = replace(
            placement,
            length=placement.length - PRIVATE_BYTES,
            shared_length=placement.shared_length - MESSAGE_BYTES,
        )
        return cls(relying_party, PROPER[inner.name](inner, rest), placement)

    @property
    def entry(self) -> int:
        """RIP of the first block."""
        return BEGIN_RIP

    @property
    def demands(self) -> tuple[Demand, ...]:
        """Those of the program proper."""
        return self.inner.demands

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP: its own below, the program's above."""
        return {
            **self.inner.blocks,
            BEGIN_RIP: lambda registers: with_devices(self._begin(registers)),
            HELLO_RIP: lambda registers: with_devices(self._hello(registers)),
            NONCE_RIP: lambda registers: with_devices(self._hear_nonce(registers)),
            REPORT_RIP: self._get_report,
            SHOW_RIP: lambda registers: with_devices(self._show(registers)),
            KEY_RIP: lambda registers: with_devices(self._hear_answer(registers)),
        }

    @property
    def key_gpa(self) -> int:
        """Where the disk key is from then on."""
        return self._own_gpa + _KEY_AT

    def _begin(self, registers: Registers) -> Block:
        if self.placement.messages is None:
            return (yield from self._begin_without_reports(registers))
        yield from self._nic.area.open()
        yield from self._nic.start()
        registers.rip = HELLO_RIP
        return None

    def _begin_without_reports(self, registers: Registers) -> Block:
        """In a SEV or SEV-ES guest the key is there already, if its owner saw the launch that it expected."""
        (status,) = yield (ReadSevStatus(),)
        if isinstance(status, int) and status & SEV:
            (secret,) = yield (Read(LAUNCH_SECRET_GPA, LAUNCH_SECRET_BYTES),)
            if not isinstance(secret, bytes):
                return FAULTED
            key = secret[:DISK_KEY_BYTES]
            if secret != launch_secret(key):
                return REFUSED
            if faulted((yield (Write(self.key_gpa, key), Write(LAUNCH_SECRET_GPA, bytes(LAUNCH_SECRET_BYTES))))):
                return FAULTED
        self._go_on(registers)
        return None

    def _hello(self, registers: Registers) -> Block:
        yield from self._nic.send([self._message(registers, Kind.HELLO).pack()])
        registers.rip = NONCE_RIP
        return Await(TIMEOUT_NS)

    def _hear_nonce(self, registers: Registers) -> Block:
        for message in (yield from self._heard(registers)):
            if message.kind is Kind.NONCE and len(message.data) == NONCE_BYTES:
                if faulted((yield (Write(self._own_gpa + _STATE_AT, _STATE.pack(message.data, 0)),))):
                    return FAULTED
                registers.rbx, registers.rip = 0, REPORT_RIP
                return None
        return self._again(registers, HELLO_RIP)

    def _get_report(self, registers: Registers) -> Block:
        """Ask firmware; certificates are the host's, which may have to fetch them first."""
        place = self.placement.messages
        assert place is not None
        state, vmpck = yield (Read(self._own_gpa + _STATE_AT, _STATE.size), Read(place.key_gpa, 32))
        if not isinstance(state, bytes) or not isinstance(vmpck, bytes):
            return FAULTED
        nonce, _ = _STATE.unpack(state)
        channel = self._channel(registers, vmpck)
        request = ReportRequest(bound_report_data(nonce, channel.public), place.vmpl).pack()
        shared = self._shared_gpa
        messages = GuestMessages(place, shared + _REQUEST, shared + _RESPONSE)
        try:
            answered = yield from messages.ask(
                MessageType.REPORT_REQ, request, room=Range(shared + _ROOM, _ROOM_BYTES)
            )
        except MessagesBusy:
            return _NAP
        except MessageRefused:
            return REFUSED
        said = ReportResponse.parse(answered.payload)
        report = answered.payload[ReportResponse.SIZE :][: said.report_bytes]
        evidence = channel.public + report + answered.certificates
        if said.status != Status.SUCCESS or len(evidence) > MOST_EVIDENCE_BYTES:
            return REFUSED
        if not any(answered.certificates):
            registers.rbx += 1
            return REFUSED if registers.rbx > MOST_TRIES else _LATER
        kept = Write(self._own_gpa + _STATE_AT, _STATE.pack(nonce, len(evidence)))
        if faulted((yield (kept, Write(self._own_gpa + _EVIDENCE_AT, evidence)))):
            return FAULTED
        registers.rbx, registers.rip = 0, SHOW_RIP
        return None

    def _show(self, registers: Registers) -> Block:
        state, evidence = yield (
            Read(self._own_gpa + _STATE_AT, _STATE.size), Read(self._own_gpa + _EVIDENCE_AT, MOST_EVIDENCE_BYTES)
        )  # fmt: skip
        if not isinstance(state, bytes) or not isinstance(evidence, bytes):
            return FAULTED
        _, length = _STATE.unpack(state)
        frames = pieces(self._message(registers, Kind.PIECE), evidence[:length])
        for at in range(0, len(frames), guest_nic.MOST_AT_ONCE):
            yield from self._nic.send(frames[at : at + guest_nic.MOST_AT_ONCE])
        registers.rip = KEY_RIP
        return Await(TIMEOUT_NS)

    def _hear_answer(self, registers: Registers) -> Block:
        for message in (yield from self._heard(registers)):
            if message.kind is Kind.REFUSED:
                return REFUSED
            if message.kind is Kind.KEY:
                place = self.placement.messages
                assert place is not None
                (vmpck,) = yield (Read(place.key_gpa, 32),)
                if not isinstance(vmpck, bytes):
                    return FAULTED
                try:
                    key = self._channel(registers, vmpck).open(message.data)
                except ChannelError:
                    continue  # Anybody can send such a message.
                if faulted((yield (Write(self.key_gpa, key),))):
                    return FAULTED
                yield from self._nic.stop()
                self._go_on(registers)
                return None
        return self._again(registers, SHOW_RIP)

    def _go_on(self, registers: Registers) -> None:
        registers.reset(self.inner.entry)

    def _again(self, registers: Registers, rip: int) -> Await | Shutdown | None:
        """Nothing that counts was there: wait on after the first time, then ask anew."""
        registers.rbx += 1
        if registers.rbx > 2 * MOST_TRIES:
            return NOBODY_ANSWERED
        if registers.rbx % 2:
            return Await(TIMEOUT_NS)
        registers.rip = rip
        return None

    def _heard(
        self, registers: Registers
    ) -> Generator[tuple[GuestOperation, ...], tuple[Answer, ...], list[Message]]:
        """Messages of the relying party to this guest, with its number."""
        frames = yield from self._nic.receive(guest_nic.MOST_AT_ONCE)
        sent = self._message(registers, Kind.HELLO)
        found = [message for message in map(parse, frames) if message is not None]
        return [one for one in found if (one.to, one.sender, one.number) == (sent.sender, sent.to, sent.number)]

    def _message(self, registers: Registers, kind: Kind) -> Message:
        own, theirs = mac_of(self.placement.vm, self.placement.vcpu), mac_of(self.relying_party, 0)
        return Message(theirs, own, registers.r12 + 1, kind)

    def _channel(self, registers: Registers, vmpck: bytes) -> ChannelKey:
        """A key that follows from what only this launch of the guest and the firmware know."""
        seed = b"channel %d %d" % (self.placement.vcpu, registers.r12)
        return ChannelKey(hashlib.sha256(vmpck + seed).digest())

    # Its places.

    @property
    def _own_gpa(self) -> int:
        return self.placement.base_gpa + self.placement.length - PRIVATE_BYTES

    @property
    def _shared_gpa(self) -> int:
        return self.placement.shared_gpa + self.placement.shared_length - MESSAGE_BYTES

    @property
    def _nic(self) -> GuestNic:
        pool = replace(self.placement, shared_length=self.placement.shared_length - MESSAGE_BYTES)
        return GuestNic(BounceArea.of(pool), self.placement.vcpu, self._own_gpa + _NIC_AT)


def proper_name(spec: ProgramSpec) -> str:
    """What a specification's program does once it has begun."""
    return unwrapped(spec)[1].name if spec.name == NAME else spec.name


def launch_secret(key: bytes) -> bytes:
    """A disk key as LAUNCH_SECRET brings it; a guest sees that it is one."""
    return key + hashlib.sha256(b"disk key" + key).digest()


def wrapped(relying_party: str, inner: ProgramSpec) -> ProgramSpec:
    """The specification of a program that starts when a relying party lets it."""
    own = ((RELYING_PARTY, relying_party), (WORKLOAD, inner.name))
    return ProgramSpec(NAME, own + inner.parameters)


def unwrapped(spec: ProgramSpec) -> tuple[str, ProgramSpec]:
    """The relying party, and the program proper."""
    (_, relying_party), (_, name), *parameters = spec.parameters
    return str(relying_party), ProgramSpec(str(name), tuple(parameters))


