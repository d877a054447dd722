"""A migration handler: code of a guest's SVSM, at VMPL0, that moves the guest's memory itself while the guest runs.

The same image runs at the target, launched as an initial migration image (IMI) with nothing else. The two show each
other an attestation report with a key of X25519 in it that is new for every move. The source believes whose launch is
measured as its own image was (its firmware tells it that of itself, in an export that leaves it running); the target
believes who has a report of a certified chip, and becomes only the guest that this report is of. Pages, save areas and
identity are sealed for that peer, each under a number of its own: the hypervisors carry ciphertext, and what they leave
out, repeat, exchange or change ends the move. Firmware hands the identity over: EXPORT at the source, ABSORB at the
target, which both handlers ask for with their VMPCK0.

A guest that was launched with a migration agent firmware lets do neither: its agent does both, with its own peer. That
agent can have all of the guest's keys at any time, so its handler takes its word for which image is its own and which
agent that may be launched with, once a report of the one agent that its own report names vouches for it. Relying
parties may believe such a guest, for whatever became it by itself has no agent that they know.

What is sealed is kept until it is used once. From then on the source's save areas are none any more, so that its
hypervisor cannot run the guest; ``resumes_on_word`` says who can undo that.

A handler keeps all it knows in a page of its own, which its guest cannot reach. What it is told in msgpack is its
hypervisor's word, which may be a lie. Sources: SNP firmware ABI, 7.5 to 7.9, has the messages; what handlers say to
each other no text defines, and this is the laboratory's. No product ships one; coconut-svsm names it as a goal.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from node import operations as op
from node.agent_messages import (
    KEY_BYTES,
    AgentRefusal,
    Carry,
    Hello,
    Voucher,
    ask_firmware,
    asked_report,
    believe,
    fresh_key,
    tcb_floor,
)
from node.packing import packed
from node.svsm import grant
from node.svsm_call import ENTRY_BYTES, entry_words
from node.svsm_memory import BOOK_GPA, BOOK_RECORD, HANDLER_MARK, POOL_GPA, POOL_PAGES, SECRETS_GPA, SVSM
from node.vm_state import Packet
from psp.exported_context import EXPORTED_BYTES, EXPORTED_VERSION, ExportedContext
from psp.guest_context import NO_MIGRATION_AGENT
from psp.guest_message import MessageType
from psp.migration_messages import (
    EXPORT_IMI_EN,
    ExportRequest,
    ExportResponse,
    ImportRequest,
    StatusResponse,
)
from psp.secret_packet import PacketHeader
from psp.status import Status
from psp.system_bus import PAGE_BYTES
from psp.verifier import Expectations, Report
from psp.verifier.reasons import Trail
from psp.verifier.report import parse_report

STATE_GPA = SVSM.gpa + 0x5000
"""Its page, behind those that firmware launches."""
OWN = SVSM.gpa, STATE_GPA + PAGE_BYTES - SVSM.gpa
"""What of its guest's memory is there at the target already, or is no part of the guest."""
BOOKS = tuple(range(BOOK_GPA, STATE_GPA, PAGE_BYTES))
"""Of that, what the SVSM remembers of its guest."""
_HEADER = struct.Struct(f"<16sQ{PacketHeader.SIZE - 24}x")
"""Tag and number of a sealed page."""
_LENGTH = struct.Struct("<H")
_AREA, _PAGE = b"save area", b"page"
_ANOTHER = "the peer is not the guest that it hands over"
_AT_ONCE = 64
_NOBODYS = frozenset({NO_MIGRATION_AGENT})
"""Whose agent a peer's may be: whoever has one has lent it all of its keys, and a report of it proves nothing."""
_LARGEST = 1 << 64

Range = tuple[int, int]
Pieces = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Walk:
    """Look through memory of its own for pages that somebody wrote: their GPAs. Stands for reading all of it."""

    ranges: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class EnterLoop:
    """Each vCPU's VMPL0 is past its boot, and goes on where the SVSM serves calls."""


Step = Generator[tuple[op.GuestOperation, ...] | Carry | Walk | EnterLoop, object, object]
_Steps = Generator[tuple[op.GuestOperation, ...] | Carry, object, None]


@dataclass(frozen=True, slots=True)
class Kept:
    """What a handler's page holds."""

    private: bytes = field(default=b"", repr=False)
    peer: bytes = b""
    is_source: bool = False
    handed_over: bool = False
    areas: tuple[int, ...] = ()
    """Save areas that are none any more."""
    report: bytes = b""
    """The peer's."""
    by_agent: bool = False
    """Whether its agent hands its identity over."""

    def pack(self) -> bytes:
        """As bytes."""
        body = packed(
            (self.private, self.peer, self.is_source, self.handed_over, self.areas, self.report, self.by_agent)
        )
        return _LENGTH.pack(len(body)) + body

    @classmethod
    def parse(cls, page: bytes) -> Kept:
        """Back from its page, which nobody else can write."""
        (length,) = _LENGTH.unpack_from(page)
        return cls(*msgpack.unpackb(page[_LENGTH.size : _LENGTH.size + length], use_list=False))


@dataclass(frozen=True, slots=True)
class MigrationHandler:
    """One handler. ``roots`` are the roots of chips that it trusts; ``now`` is when it looks at certificates, seconds.

    ``resumes_on_word``: a guest that was handed over goes on at its source when its hypervisor says that it is to.
    Firmware does not keep two apart here, as it does with agents: the context that is exported to be absorbed runs on
    (IMI_EN), so that a move that fails loses nothing. A hypervisor that lies has two of the guest then. Without, none
    ever goes on there again, and a target that crashes takes the guest with it. What AMD means to happen is not
    published.
    """

    roots: Mapping[str, frozenset[str]]
    now: int
    resumes_on_word: bool = True

    def serve(self, order: bytes) -> Step:
        """One order; its result as a msgpack-able value. Raises AgentRefusal."""
        try:
            asked = msgpack.unpackb(order, use_list=False)
        except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
            asked = None
        match asked:
            case ("hello",):
                return (yield from self._hello())
            case ("meet", int(gctx), bytes(peer), bool(is_source), bytes(voucher)) if 0 <= gctx < _LARGEST:
                return (yield from self._meet(gctx, peer, voucher, is_source=is_source))
            case ("out", int(gctx), tuple(ranges)) if 0 <= gctx < _LARGEST and _are_ranges(ranges, 2):
                return (yield from self._out(gctx, ranges))
            case ("in", tuple(packets), tuple(areas), bytes(identity), tuple(pieces)) if _are_ranges(pieces, 3):
                return (yield from self._in((*areas, *packets), len(areas), identity, pieces))
            case ("stays",):
                return (yield from self._stays())
        raise AgentRefusal("no such order")

    # Two handlers meet.

    def _hello(self) -> Step:
        kept = yield from self._kept(fresh=True)
        if kept.handed_over:
            raise AgentRefusal("the guest was handed over")
        private = X25519PrivateKey.from_private_bytes((yield from fresh_key()))
        hello = Hello(_public(private), b"")
        report = yield from asked_report(SECRETS_GPA, hello.bound_by(HANDLER_MARK))
        yield from _keep(Kept(private.private_bytes_raw()))
        return Hello(hello.public_key, report).pack()

    def _meet(self, gctx: int, peer: bytes, voucher: bytes, *, is_source: bool) -> Step:
        kept = yield from self._kept()
        if not kept.private or kept.peer:
            raise AgentRefusal("no greeting is open")
        hello, measurement, floor = Hello.parse(peer), None, None
        own = _parsed((yield from asked_report(SECRETS_GPA, bytes(64))))
        by_agent = own.report_id_ma != NO_MIGRATION_AGENT
        # What it becomes its own agent has from one that that believes.
        agents = None if by_agent else _NOBODYS
        if is_source:
            floor = tcb_floor(own)
            if by_agent:
                said = self._vouched(voucher, own, X25519PrivateKey.from_private_bytes(kept.private))
                measurement, agents = said.imd, frozenset({said.peer_id})
            else:
                measurement = (yield from self._export(gctx)).imd
        expected = Expectations(
            measurement=measurement, report_data=hello.bound_by(HANDLER_MARK), migration_allowed=True, min_tcb=floor,
            migration_agents=agents,
        )
        believe(hello, expected, self.now, self.roots)
        yield from _keep(Kept(kept.private, hello.public_key, is_source, report=hello.report, by_agent=by_agent))
        return None

    def _vouched(self, voucher: bytes, own: Report, private: X25519PrivateKey) -> Voucher:
        """What its own agent says, proved by the report of the agent that its own report names. Raises AgentRefusal."""
        said, key = Voucher.parse(voucher), _public(private)
        expected = Expectations(report_data=said.bound_to(own.report_id, key), min_tcb=tcb_floor(own))
        believe(Hello(key, said.report, said.certificates), expected, self.now, self.roots)
        if _parsed(said.report).report_id != own.report_id_ma:
            raise AgentRefusal("another agent than its own vouches for the peer")
        return said

    def _export(self, gctx: int) -> Generator[tuple[op.GuestOperation, ...] | Carry, object, ExportedContext]:
        """Its own context, which runs on; firmware lets it name no other."""
        answer = yield from ask_firmware(SECRETS_GPA, MessageType.EXPORT_REQ, ExportRequest(gctx, EXPORT_IMI_EN))
        head = ExportResponse.parse(answer)
        if head.status != Status.SUCCESS or head.exported_bytes != EXPORTED_BYTES:
            raise AgentRefusal(f"EXPORT: {Status(head.status).name}")
        return ExportedContext.parse(answer[ExportResponse.SIZE :])

    # Out.

    def _out(self, gctx: int, ranges: tuple[Range, ...]) -> Step:
        """Everything of a guest that stands still: (pages, save areas, identity), sealed."""
        kept = yield from self._kept()
        if not kept.peer or not kept.is_source or kept.handed_over:
            raise AgentRefusal("there is nobody to hand the guest to")
        areas = yield from _save_areas()
        # Before a word of it leaves no VMRUN of the guest succeeds any more.
        yield from _must([op.RmpAdjust(area, PAGE_BYTES, large=False, target=1, permissions=0) for area in areas])
        yield from _keep(Kept(is_source=True, handed_over=True, areas=areas))
        exported = b"" if kept.by_agent else (yield from self._export(gctx)).pack()
        written = yield Walk(ranges)
        assert isinstance(written, tuple)
        # The number of the last message counts, wherever the guest goes on, and stands in the secrets page.
        pages = sorted({*written, *BOOKS, SECRETS_GPA} - set(areas))
        channel, number = self._channel(kept), 0
        sealed: list[list[Packet]] = [[], []]
        for which, kind, wanted in ((0, _AREA, list(areas)), (1, _PAGE, pages)):
            for at in range(0, len(wanted), _AT_ONCE):
                some = wanted[at : at + _AT_ONCE]
                for gpa, data in zip(some, (yield from _read(some)), strict=True):
                    name = len(sealed[0]) if kind is _AREA else gpa
                    sealed[which].append(_sealed(channel, kind, name, number, data))
                    number += 1
        identity = packed((exported, ranges, areas, len(pages)))
        return tuple(sealed[1]), tuple(sealed[0]), channel.encrypt(_nonce(number), identity, b"identity")

    def _stays(self) -> Step:
        """The guest goes on here after all, if it was handed over."""
        kept = yield from self._kept(fresh=True)
        if not kept.handed_over:
            yield from _keep(Kept())
            return None
        if not self.resumes_on_word:
            raise AgentRefusal("the guest was handed over")
        yield from _must([_as_save_area(area) for area in kept.areas])
        yield from _keep(Kept())
        return None

    # In.

    def _in(self, sealed: tuple[Any, ...], areas: int, identity: bytes, pieces: Pieces) -> Step:
        """Become the guest that came: its save areas, by vCPU. ``pieces`` say how large its memory's entries are."""
        kept = yield from self._kept()
        if not kept.peer or kept.is_source:
            raise AgentRefusal("there is nobody to have a guest from")
        yield from _keep(Kept())
        channel = self._channel(kept)
        try:
            opened = channel.decrypt(_nonce(len(sealed)), identity, b"identity")
            pages = [_opened(channel, _AREA if at < areas else _PAGE, at, one) for at, one in enumerate(sealed)]
        except (InvalidTag, ValueError, TypeError, AttributeError, OverflowError, struct.error):
            raise AgentRefusal("what came is not all that the peer sealed, in its order") from None
        exported, ranges, places = _identity(opened, areas, len(pages) - areas)
        _agree(ranges, pieces)
        if not kept.by_agent:
            yield from self._absorb(exported, _parsed(kept.report))
        for gpa, length, large in pieces:
            answer = yield (op.PValidate(gpa, length, bool(large)),)
            if answer != (op.PValidateResult(0, unchanged=False),):
                raise AgentRefusal(f"memory at {gpa:#x} was validated before, or is none")
        places_of = [*places, *[name for name, _ in pages[areas:]]]
        yield from _must([op.Write(gpa, data) for gpa, (_, data) in zip(places_of, pages, strict=True)])
        if kept.by_agent:
            yield from _has_become(_parsed(kept.report))
        own_end = SVSM.gpa + SVSM.length
        shown = [one for one in pieces if not SVSM.gpa <= one[0] < own_end]
        yield from _must([grant(gpa, length, bool(large)) for gpa, length, large in shown])
        # What the guest lent to its SVSM, or made a save area of, it has no rights to.
        lent = [*places, *_deposited(dict(pages[areas:]).get(POOL_GPA, bytes(PAGE_BYTES)))]
        yield from _must([grant(gpa, PAGE_BYTES, rights=0) for gpa in lent if not SVSM.gpa <= gpa < own_end])
        yield from _must([_as_save_area(area) for area in places])
        yield EnterLoop()
        return places

    def _absorb(self, exported: bytes, report: Report) -> _Steps:
        """ABSORB_NOMA of the guest that the peer's report is of, and of no other."""
        if len(exported) != EXPORTED_BYTES:
            raise AgentRefusal("the peer has sealed something else")
        found = ExportedContext.parse(exported)
        if (found.digest, found.report_id, found.policy) != (report.measurement, report.report_id, report.policy):
            raise AgentRefusal(_ANOTHER)
        asked = ImportRequest(0, EXPORTED_BYTES, EXPORTED_VERSION, exported)
        answer = yield from ask_firmware(SECRETS_GPA, MessageType.ABSORB_NOMA_REQ, asked)
        status = StatusResponse.parse(answer).status
        if status != Status.SUCCESS:
            raise AgentRefusal(f"ABSORB: {Status(status).name}")

    # What it knows.

    def _channel(self, kept: Kept) -> AESGCM:
        private = X25519PrivateKey.from_private_bytes(kept.private)
        both = (_public(private), kept.peer) if kept.is_source else (kept.peer, _public(private))
        shared = private.exchange(X25519PublicKey.from_public_bytes(kept.peer))
        return AESGCM(HKDF(SHA256(), KEY_BYTES, None, HANDLER_MARK + b"".join(both)).derive(shared))

    def _kept(self, *, fresh: bool = False) -> Generator[tuple[op.GuestOperation, ...], object, Kept]:
        """What its page holds; ``fresh`` takes the page where it has none yet."""
        if fresh:
            answers = yield (op.PValidate(STATE_GPA, PAGE_BYTES, large=False),)
            assert isinstance(answers, tuple)
            if answers == (op.PValidateResult(0, unchanged=False),):
                yield from _keep(Kept())
        (page,) = yield from _read([STATE_GPA])
        return Kept.parse(page)


def _keep(kept: Kept) -> Generator[tuple[op.GuestOperation, ...], object, None]:
    # All of it, or what is longer than what is kept now would stay behind it.
    yield from _must([op.Write(STATE_GPA, kept.pack().ljust(PAGE_BYTES, b"\0"))])


def _has_become(peer: Report) -> _Steps:
    """Its agent has had it absorb the guest that the peer's report is of: firmware knows it by that guest's key now."""
    found = _parsed((yield from asked_report(SECRETS_GPA, bytes(64))))
    if (found.measurement, found.report_id, found.policy) != (peer.measurement, peer.report_id, peer.policy):
        raise AgentRefusal(_ANOTHER)


def _must(batch: Iterable[op.GuestOperation]) -> Generator[tuple[op.GuestOperation, ...], object, None]:
    answers = yield tuple(batch)
    assert isinstance(answers, tuple)
    for answer in answers:
        if answer not in (None, 0):
            raise AgentRefusal(f"its memory is not as it should be: {answer!r}")


def _read(gpas: list[int]) -> Generator[tuple[op.GuestOperation, ...], object, list[bytes]]:
    answers = yield tuple([op.Read(gpa, PAGE_BYTES) for gpa in gpas])
    assert isinstance(answers, tuple)
    found = [one for one in answers if isinstance(one, bytes)]
    if len(found) != len(gpas):
        raise AgentRefusal("its memory is not as it should be")
    return found


def _save_areas() -> Generator[tuple[op.GuestOperation, ...], object, tuple[int, ...]]:
    """Those of the guest's vCPUs, as the SVSM's book has them."""
    (book,) = yield from _read([BOOK_GPA])
    areas = [BOOK_RECORD.unpack_from(book, at)[1] for at in range(0, PAGE_BYTES // 2, BOOK_RECORD.size)]
    while areas and not areas[-1]:
        areas.pop()
    if not all(areas):
        raise AgentRefusal("a vCPU was not started yet")
    return tuple(areas)


def _deposited(pool: bytes) -> Iterable[int]:
    """The pages in the SVSM's book of those that its guest lent to it."""
    end = ENTRY_BYTES * (1 + min(POOL_PAGES, int.from_bytes(pool[:ENTRY_BYTES], "little")))
    return entry_words(pool[ENTRY_BYTES:end])


def _as_save_area(gpa: int) -> op.RmpAdjust:
    return op.RmpAdjust(gpa, PAGE_BYTES, large=False, target=1, permissions=0, vmsa=True)


def _sealed(channel: AESGCM, kind: bytes, name: int, number: int, data: bytes) -> Packet:
    sealed = channel.encrypt(_nonce(number), data, kind + name.to_bytes(8, "little"))
    return name, _HEADER.pack(sealed[PAGE_BYTES:], number), sealed[:PAGE_BYTES]


def _opened(channel: AESGCM, kind: bytes, number: int, packet: Any) -> tuple[int, bytes]:
    name, header, body = packet
    tag, _ = _HEADER.unpack(header)
    return name, channel.decrypt(_nonce(number), body + tag, kind + name.to_bytes(8, "little"))


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "little")


def _public(private: X25519PrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _parsed(report: bytes) -> Report:
    return parse_report(report, Trail())


def _are_ranges(found: tuple[object, ...], width: int) -> bool:
    return all(
        isinstance(one, tuple) and len(one) == width and all(type(value) in (int, bool) and value >= 0 for value in one)
        for one in found
    )


def _identity(opened: bytes, areas: int, pages: int) -> tuple[bytes, tuple[Range, ...], tuple[int, ...]]:
    """Context, memory and save areas of a guest, as whoever has a report may have sealed them. Raises AgentRefusal."""
    try:
        match msgpack.unpackb(opened, use_list=False):
            case (bytes(exported), tuple(ranges), tuple(places), int(count)) if (
                _are_ranges(ranges, 2) and (len(places), count) == (areas, pages)
                and all(type(place) is int and 0 <= place < _LARGEST for place in places)
            ):
                return exported, ranges, places
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
        pass
    raise AgentRefusal("the peer has sealed something else")


def _agree(ranges: tuple[Range, ...], pieces: Pieces) -> None:
    """Pieces are the ranges, cut. Raises AgentRefusal."""
    joined: list[list[int]] = []
    for gpa, length, _ in pieces:
        if joined and joined[-1][0] + joined[-1][1] == gpa:
            joined[-1][1] += length
        else:
            joined.append([gpa, length])
    wanted: list[list[int]] = []
    for gpa, length in ranges:
        if wanted and wanted[-1][0] + wanted[-1][1] == gpa:
            wanted[-1][1] += length
        else:
            wanted.append([gpa, length])
    if joined != wanted:
        raise AgentRefusal("its memory is another than the guest's was")
