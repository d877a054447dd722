"""A relying party: asks guests for fresh reports, judges them, and gives each that it believes its disk key.

It runs where its owner trusts the machine. A guest's nonce is good for one answer; that answer
is kept, and sent again to a guest that did not hear it. Memory, private:

    books   a page and the evidence for each guest, at a place that its address gives, or the next free one
    then    the memory of the network card's driver
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace

from node import guest_nic
from node.agent_digest import agent_digest
from node.agent_messages import floor_data
from node.guest_nic import GuestNic
from node.laboratory_roots import LABORATORY_ROOTS
from node.operations import Answer, Await, Compute, GuestOperation, GuestWork, Read, Write
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from node.swiotlb import BounceArea
from psp.certificate_table import CertificateKind, CertificateTableError, agent_report_of, parsed
from psp.verifier import COMPONENTS, NONCE_BYTES, Evidence, Expectations, Rejected, higher_levels, reports_judged
from workloads.block_outcome import FAULTED, faulted, with_devices
from workloads.keyed_content import KeyedContent
from workloads.parameters import (
    MOST_INSTRUCTIONS,
    PAGE_BYTES,
    WorkloadParameterError,
    check_placement,
    parameters_from,
    text,
    whole,
)
from workloads.release_messages import MOST_EVIDENCE_BYTES, MOST_PIECES, PIECE_BYTES, Kind, Message, parse
from workloads.secret_channel import KEY_BYTES
from workloads.secret_release import Release

NAME = "relying-party"
FORMAT_RIP, OPEN_RIP, SERVE_RIP = 0x40_0000, 0x40_1000, 0x40_2000
DISK_KEY_BYTES = 32
REPORT_BYTES = 0x4A0
EVIDENCE_HEAD_BYTES = KEY_BYTES + REPORT_BYTES
_FOR_EVER_NS = 10**17
_BOOKS = struct.Struct("<6sHIIIIH254s")
_RECORD_BYTES = PAGE_BYTES + -(-MOST_EVIDENCE_BYTES // PAGE_BYTES) * PAGE_BYTES
_FREE, _ASKED, _BELIEVED, _REFUSED = range(4)
_ALL = (1 << MOST_PIECES) - 1
_FROM_2026 = 1_767_225_600
LABORATORY = "laboratory"

DEMAND = Demand(
    "judge",
    instructions_per_cycle=2.0,
    llc_misses_per_kilo_instruction=0.2,
    tlb_misses_per_kilo_instruction=0.1,
    memory_level_parallelism=2.0,
)
"""Big numbers, in cache. The laboratory's choice: not published."""


@dataclass(frozen=True, slots=True)
class RelyingParameters:
    """Parameters of ``relying-party``; the defaults fit 4 MiB and are the laboratory's choice.

    Empty texts are not looked at. A guest that may be debugged, or that does not ask from the VMPL
    expected, is refused in any case.
    """

    measurement: str = text("", 96)
    """The launch digest of its guests, in hexadecimal: what ``sevfleet measure`` prints."""
    min_tcb: str = text("", 128)
    """The lowest TCB, as ``bootloader=3,snp=8,microcode=115``; with ``migration_agent`` that of the launch as well."""
    pinned_tcb: str = text("", 128)
    """Levels that must be those reported, written the same way: no other firmware is taken, newer or older; with
    ``migration_agent`` none is taken that launched a guest under a lower one."""
    vmpl: int = whole(0, 0, 3)
    """Whose reports it takes: above an SVSM a guest's kernel is at 2."""
    migration_agent: str = text("", 96)
    """Whose guests it believes though they may be moved: the launch digest of migration agents, in hexadecimal, or
    ``laboratory`` for those that hosts here have. An agent proves itself with a report of its own, by the same chip,
    and what is demanded of the guest's firmware, at its launch too, is demanded of the agent's. That is enough where
    all firmware that a guest has been under is honest. Empty: a guest that may be moved is refused."""
    migration_agent_floor: str = text("", 128)
    """The floor that those agents must have for the firmware that guests come from, as their hosts say it, written as
    ``min_tcb`` and not below that. Empty: agents with any floor, and with none, are believed. Those take guests in from
    forged firmware too, and let them claim no launch above the TCB that it was forged under: what ``min_tcb`` and
    ``pinned_tcb`` demand they do not reach."""
    crl_demanded: int = whole(1, 0, 1)
    """1: certificates come with the list of those revoked, which a host could keep to itself otherwise."""
    roots: str = text("", 512)
    """SHA-256 of the roots' keys that it trusts, as ``Milan=HEX,Genoa=HEX``. Default: those of laboratory 0."""
    starts_at: int = whole(_FROM_2026 + 86_400, 0, 1 << 40)
    """The time by which certificates are judged, in seconds since 1970; it does not pass."""
    most_guests: int = whole(64, 1, 4096)
    instructions_per_report: int = whole(3_000_000, 0, MOST_INSTRUCTIONS)
    """Beside verifying, whose time is the cost table's."""

    def __post_init__(self) -> None:
        if self.measurement and not _is_hex(self.measurement, 48):
            raise WorkloadParameterError("measurement", "96 hexadecimal digits")
        if self.migration_agent not in {"", LABORATORY} and not _is_hex(self.migration_agent, 48):
            raise WorkloadParameterError("migration_agent", f"{LABORATORY}, or 96 hexadecimal digits")
        for name in ("min_tcb", "pinned_tcb", "migration_agent_floor"):
            levels = _levels(getattr(self, name)) or {}
            if not all(component in COMPONENTS and level < 256 for component, level in levels.items()):
                raise WorkloadParameterError(name, f"levels such as snp=8 of {', '.join(COMPONENTS)}")
        floor = _levels(self.migration_agent_floor)
        if floor is not None and not self.migration_agent:
            raise WorkloadParameterError("migration_agent_floor", "none without migration_agent")
        if floor is not None and any(floor.get(name, 0) < low for name, low in (_levels(self.min_tcb) or {}).items()):
            raise WorkloadParameterError("migration_agent_floor", "no level below that of min_tcb")
        if not all(_is_hex(digest, 32) for digests in self.trusted.values() for digest in digests):
            raise WorkloadParameterError("roots", "product lines and 64 hexadecimal digits, such as Milan=00...")

    @property
    def trusted(self) -> Mapping[str, frozenset[str]]:
        """Roots by product line."""
        pairs = _pairs(self.roots)
        return {line: frozenset({digest.lower()}) for line, digest in pairs} if pairs else LABORATORY_ROOTS

    @property
    def agents(self) -> bytes | None:
        """Launch digest of the migration agents whose guests it believes."""
        if not self.migration_agent:
            return None
        return agent_digest() if self.migration_agent == LABORATORY else bytes.fromhex(self.migration_agent)

    @property
    def expected(self) -> Expectations:
        """What it expects of every guest."""
        agents, lowest, agents_lowest = self.agents, _levels(self.min_tcb), _levels(self.migration_agent_floor)
        floor = None if agents_lowest is None else floor_data(agents_lowest)
        pinned = _levels(self.pinned_tcb)
        any_guest = Expectations(
            min_tcb=lowest,
            # Who may be moved may have come from elsewhere. No agent sends a guest to older firmware, so that where it
            # was launched is the oldest that it has seen.
            min_launch_tcb=None if agents is None else higher_levels(lowest, pinned),
            pinned_tcb=pinned,
            crl_demanded=bool(self.crl_demanded),
        )
        return replace(
            any_guest,
            measurement=bytes.fromhex(self.measurement) or None,
            vmpl=self.vmpl,
            migration_agent=None if agents is None else replace(any_guest, measurement=agents, host_data=floor),
        )

    @property
    def private_bytes(self) -> int:
        """The books, and what the network card's driver needs."""
        return self.most_guests * _RECORD_BYTES + guest_nic.PRIVATE_BYTES

    @property
    def shared_bytes(self) -> int:
        """The card's queues and bounce buffers."""
        return guest_nic.SHARED_BYTES

    @property
    def disk_bytes(self) -> int:
        """None."""
        return 0


@dataclass(frozen=True, slots=True)
class _Record:
    """What is known of one guest. ``nonces`` counts those that it was given, ``pieces`` has a bit for each."""

    mac: bytes
    state: int
    number: int
    nonces: int
    pieces: int
    total: int
    answer: bytes

    def pack(self) -> bytes:
        return _BOOKS.pack(
            self.mac, self.state, self.number, self.nonces, self.pieces, self.total, len(self.answer), self.answer
        )

    @classmethod
    def parse(cls, data: bytes) -> _Record:
        mac, state, number, nonces, pieces, total, length, answer = _BOOKS.unpack_from(data)
        return cls(mac, state, number, nonces, pieces, total, answer[:length])


class _Faulted(Exception):
    """The machine does not do what it must."""


_Storing = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], None]
_Loading = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], bytes]
_Finding = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], tuple[int, _Record] | None]
_Answering = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], Message | None]


@dataclass(frozen=True, slots=True)
class RelyingParty:
    """The program. R12 counts records cleared, R13 keys released, RBX reports refused, RCX reports judged."""

    parameters: RelyingParameters
    placement: Placement
    content: KeyedContent

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> RelyingParty:
        """Rebuild the program whole."""
        parameters = parameters_from(RelyingParameters, spec.parameters)
        check_placement(parameters, placement)
        return cls(parameters, placement, KeyedContent.of(placement, spec.name))

    @property
    def entry(self) -> int:
        """RIP of the first block."""
        return FORMAT_RIP

    @property
    def demands(self) -> tuple[Demand, ...]:
        """One steady phase."""
        return (replace(DEMAND, written_set_bytes=PAGE_BYTES),)

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {
            FORMAT_RIP: self._format,
            OPEN_RIP: lambda registers: with_devices(self._open(registers)),
            SERVE_RIP: lambda registers: with_devices(self._serve(registers)),
        }

    def _format(self, registers: Registers) -> Block:
        """Know nobody."""
        stop = min(registers.r12 + 64, self.parameters.most_guests)
        empty = bytes(_BOOKS.size)
        answers = yield tuple(Write(self._record_gpa(place), empty) for place in range(registers.r12, stop))
        if faulted(answers):
            return FAULTED
        registers.r12 = stop
        if stop == self.parameters.most_guests:
            registers.rip = OPEN_RIP
        return None

    def _open(self, registers: Registers) -> Block:
        """Set the network card up."""
        yield from self._nic.area.open()
        yield from self._nic.start()
        registers.rip = SERVE_RIP
        return None

    def _serve(self, registers: Registers) -> Block:
        """Answer what has come, else wait for more."""
        frames = yield from self._nic.receive(guest_nic.MOST_AT_ONCE)
        if not frames:
            return Await(_FOR_EVER_NS)
        judged, answers = registers.rcx, []
        try:
            for message in map(parse, frames):
                answer = None if message is None else (yield from self._answer(registers, message))
                if answer is not None:
                    answers.append(answer.pack())
        except _Faulted:
            return FAULTED
        if answers:
            yield from self._nic.send(answers)
        instructions = self.parameters.instructions_per_report * (registers.rcx - judged)
        return Compute(0, instructions) if instructions else None

    def _answer(self, registers: Registers, message: Message) -> _Answering:
        if message.kind not in {Kind.HELLO, Kind.PIECE}:
            return None
        found = yield from self._find(message.sender, insert=message.kind is Kind.HELLO)
        if found is None:
            return None  # A stranger, or there is no room for one more.
        place, record = found
        if message.kind is Kind.HELLO:
            return (yield from self._ask(place, record, message))
        if message.number != record.number or record.state == _FREE:
            return None
        if record.state == _ASKED:
            record = yield from self._take_piece(place, record, message)
            if not _is_whole(record):
                return None
            record = yield from self._judge(registers, place, record)
        elif message.offset:
            return None  # Its answer goes out once for each time that it sends all.
        return message.answered(Kind.KEY if record.state == _BELIEVED else Kind.REFUSED, record.answer)

    def _ask(self, place: int, record: _Record, message: Message) -> _Answering:
        """The nonce again, if the guest has not answered it; a fresh one for everybody else."""
        if record.state != _ASKED or record.number != message.number:
            record = _Record(message.sender, _ASKED, message.number, record.nonces + 1, 0, 0, b"")
            yield from self._keep(place, record)
        return message.answered(Kind.NONCE, self._nonce(place, record))

    def _take_piece(
        self, place: int, record: _Record, message: Message
    ) -> Generator[tuple[GuestOperation, ...], tuple[Answer, ...], _Record]:
        if message.total != record.total:
            record = replace(record, pieces=0, total=message.total)
        yield from self._store(self._evidence_gpa(place) + message.offset, message.data)
        record = replace(record, pieces=record.pieces | 1 << message.offset // PIECE_BYTES)
        yield from self._keep(place, record)
        return record

    def _judge(
        self, registers: Registers, place: int, record: _Record
    ) -> Generator[tuple[GuestOperation, ...], tuple[Answer, ...], _Record]:
        evidence = yield from self._load(self._evidence_gpa(place), record.total)
        shown = _evidence(evidence)
        reports = reports_judged(shown, self.parameters.expected)
        yield GuestWork("attest.verify_chain_ns"), *[GuestWork("attest.verify_report_ns")] * reports
        registers.rcx += 1
        try:
            box = self._release(record.mac).answer(
                shown, self._nonce(place, record), evidence[:KEY_BYTES], self.parameters.starts_at,
                self.content.octets(b"ephemeral key", place, record.nonces, KEY_BYTES),
            )  # fmt: skip
            record = replace(record, state=_BELIEVED, answer=box)
            registers.r13 += 1
        except Rejected as rejected:
            record = replace(record, state=_REFUSED, answer=rejected.reason.name.encode())
            registers.rbx += 1
        yield from self._keep(place, record)
        return record

    def _release(self, mac: bytes) -> Release:
        return Release(disk_key(self.content, mac), self.parameters.expected, self.parameters.trusted)

    def _nonce(self, place: int, record: _Record) -> bytes:
        return self.content.octets(b"nonce", place, record.nonces, NONCE_BYTES)

    # The books.

    def _find(self, mac: bytes, *, insert: bool) -> _Finding:
        """A guest's place and record; a free place for one that is not known yet. None where there is none."""
        most = self.parameters.most_guests
        first = int.from_bytes(mac, "little") % most
        for step in range(most):
            place = (first + step) % most
            record = _Record.parse((yield from self._load(self._record_gpa(place), _BOOKS.size)))
            if record.state == _FREE:
                return (place, replace(record, mac=mac)) if insert else None
            if record.mac == mac:
                return place, record
        return None

    def _keep(self, place: int, record: _Record) -> _Storing:
        yield from self._store(self._record_gpa(place), record.pack())

    def _load(self, gpa: int, length: int) -> _Loading:
        (data,) = yield (Read(gpa, length),)
        if not isinstance(data, bytes):
            raise _Faulted
        return data

    def _store(self, gpa: int, data: bytes) -> _Storing:
        if faulted((yield (Write(gpa, data),))):
            raise _Faulted

    def _record_gpa(self, place: int) -> int:
        return self.placement.base_gpa + place * _RECORD_BYTES

    def _evidence_gpa(self, place: int) -> int:
        return self._record_gpa(place) + PAGE_BYTES

    @property
    def _nic(self) -> GuestNic:
        return GuestNic(
            BounceArea.of(self.placement), self.placement.vcpu, self._record_gpa(self.parameters.most_guests)
        )


def disk_key(content: KeyedContent, mac: bytes) -> bytes:
    """The key of a guest's disk, by its network card's address, as a relying party makes it up."""
    return content.octets(b"disk key", int.from_bytes(mac, "little"), 0, DISK_KEY_BYTES)


def _is_whole(record: _Record) -> bool:
    count = -(-record.total // PIECE_BYTES)
    return record.total > 0 and record.pieces == _ALL >> MOST_PIECES - count


def _evidence(data: bytes) -> Evidence:
    """What a guest sent; what is not there, or not to be read, the verifier finds missing."""
    try:
        table, agent = parsed(data[EVIDENCE_HEAD_BYTES:]), agent_report_of(data[EVIDENCE_HEAD_BYTES:])
    except CertificateTableError:
        table, agent = {}, None
    leaf = table.get(CertificateKind.VCEK, table.get(CertificateKind.VLEK))
    report = data[KEY_BYTES:EVIDENCE_HEAD_BYTES]
    crl = table.get(CertificateKind.CRL)
    lists = () if crl is None else (crl,)
    ark, ask = table.get(CertificateKind.ARK), table.get(CertificateKind.ASK)
    return Evidence(report, ark, ask, leaf, lists, agent_report=agent)


def _levels(words: str) -> Mapping[str, int] | None:
    """A TCB's levels by component; 256 for what is none."""
    pairs = _pairs(words)
    return {name: int(level) if _is_level(level) else 256 for name, level in pairs} if pairs else None


def _pairs(words: str) -> list[tuple[str, str]]:
    parts = [part.partition("=") for part in words.split(",")]
    return [(name.strip(), value.strip()) for name, _, value in parts if name]


def _is_level(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= 3


def _is_hex(word: str, size: int) -> bool:
    try:
        return len(bytes.fromhex(word)) == size
    except ValueError:
        return False
