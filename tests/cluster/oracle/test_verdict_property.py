"""Random lives of a victim among adversaries, judged also by a second judge that goes byte by byte."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.oracle.holdings import Measure
from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Transcript
from cluster.oracle.verdict import judge
from node.actor import HYPERVISOR, Actor, Role
from node.operations import (
    Cpuid,
    CpuidResult,
    Fault,
    FaultKind,
    HostRead,
    PValidate,
    PValidateResult,
    Read,
    ReadMsr,
    VirtualRead,
    Write,
)

VICTIM = Actor(Role.GUEST, "victim")
TENANT = Actor(Role.GUEST, "tenant")
DEVICE = Actor(Role.DEVICE, "00:01.0")
CANARY = bytes(range(1, 49))
"""No byte twice and none zero, so that a piece of it has one place and zeros part pieces."""
PAGE = 0x1000
BASE = PAGE - 20
ROOM = 64
MEASURE = Measure(leak_bytes=12, piece_bytes=6)

pieces = st.one_of(
    st.sampled_from([CANARY, CANARY[:24], CANARY[20:40], CANARY[5:11], CANARY[5:10]]),
    st.tuples(st.integers(0, 47), st.integers(1, 48)).map(lambda cut: CANARY[cut[0] : sum(cut)]),
)
words = st.one_of(
    st.sampled_from([CANARY[:8], CANARY[8:16], CANARY[3:11], b"\0\0\0\0" + CANARY[:4], CANARY[4:8] + b"\0\0\0\0"]),
    st.tuples(st.integers(0, 47), st.integers(0, 8)).map(lambda cut: CANARY[cut[0] : sum(cut)].ljust(8, b"\0")),
)
"""What one register holds of it."""
contents = st.one_of(pieces, st.binary(min_size=1, max_size=12))
steps = st.one_of(
    st.tuples(st.just("write"), st.integers(0, ROOM), contents),
    st.tuples(st.just("read"), st.integers(0, ROOM), contents),  # something else than it wrote, mostly
    st.tuples(st.just("read back"), st.integers(0, ROOM), st.integers(1, 24)),
    st.tuples(st.just("publish"), st.just(0), pieces),
    st.tuples(st.just("tell"), st.just(0), pieces),
    st.tuples(st.just("#VC"), st.integers(0, ROOM), st.just(b"")),
    st.tuples(st.just("stop"), st.integers(0, ROOM), st.just(b"")),
    st.tuples(st.just("serve wrongly"), st.integers(0, ROOM), pieces),
    st.tuples(st.sampled_from(["number", "CPUID", "refuse", "refuse with error"]), st.just(0), words),
    st.tuples(st.just("stop in its walk"), st.just(0), words),
    st.tuples(st.sampled_from(["validate", "fail to validate", "rescind"]), st.integers(0, 1), st.just(b"")),
    st.tuples(st.just("absent"), st.just(0), st.just(b"")),
)


class SecondJudge:
    """The definitions of the attack matrix, one byte at a time."""

    def __init__(self) -> None:
        self.memory: dict[int, int] = {}
        self.held: set[int] = set()
        self.public: set[int] = set()
        self.misread: set[int] = set()
        self.streams: dict[str, bytes] = {}
        self.complaints: set[int] = set()
        self.corrupted = self.stopped = self.refused = self.absent = False

    def places(self, octets: bytes) -> set[int]:
        """Positions of canary bytes that stand in runs long enough."""
        found: set[int] = set()
        run: list[int] = []
        for octet in [*octets, 0]:
            at = CANARY.find(octet)
            if octet and at >= 0 and (not run or at == run[-1] + 1):
                run.append(at)
                continue
            if len(run) >= MEASURE.piece_bytes:
                found |= set(run)
            run = [at] if octet and at >= 0 else []
        return found

    def take(self, kind: str, at: int, octets: bytes) -> None:
        if kind in ("#VC", "stop", "stop in its walk"):
            self.stopped = True
        elif kind in ("write", "read", "publish", "validate", "fail to validate", "rescind"):
            self.stopped = False
        if kind == "write":
            self.memory.update({BASE + at + index: octet for index, octet in enumerate(octets)})
        elif kind == "read":
            if any(self.memory.get(BASE + at + index, octet) != octet for index, octet in enumerate(octets)):
                self.misread |= self.places(octets)
                self.corrupted |= not self.complaints
        elif kind == "publish":
            self.public |= self.places(octets) - self.misread
        elif kind == "tell":
            self.held |= self.places(octets) - self.public
        elif kind in ("number", "CPUID", "refuse", "refuse with error", "stop", "stop in its walk"):
            # Those that tell an address to the hypervisor do it through one register.
            channel = "address" if kind in ("refuse", "stop", "stop in its walk") else kind
            told = (BASE + at).to_bytes(8, "little") if kind == "stop" else octets
            self.streams[channel] = self.streams.get(channel, b"") + told.ljust(16 if kind == "CPUID" else 8, b"\0")
            self.held |= self.places(self.streams[channel]) - self.public
            self.refused |= kind.startswith("refuse")
        elif kind == "#VC":
            self.complaints.add(BASE + at)
        elif kind == "validate":
            self.complaints -= {gpa for gpa in self.complaints if gpa // PAGE == at}
        elif kind == "absent":
            self.absent = True

    @property
    def outcome(self) -> str:
        if len(self.held) >= MEASURE.leak_bytes:
            return "leaked"
        if self.corrupted:
            return "corrupted"
        if self.complaints:
            return "detected"
        if self.refused:
            return "blocked"
        if self.stopped:
            return "dos"
        return "not_applicable" if self.absent else "blocked"


def expanded(life: list[tuple[str, int, bytes | int]]) -> Iterator[tuple[str, int, bytes | int]]:
    """A victim that is served wrongly wrote something else, reads a piece of its secret and hands it on."""
    for kind, at, what in life:
        if kind == "serve wrongly":
            yield from (("write", at, b"\xee" * 8), ("read", at, what), ("publish", 0, what))
        else:
            yield kind, at, what


@settings(max_examples=125, deadline=None)
@given(st.lists(steps, max_size=12))
def test_the_judge_agrees_with_one_that_goes_byte_by_byte(life: list[tuple[str, int, bytes | int]]) -> None:
    ledger, transcript, second = Ledger(), Transcript(), SecondJudge()
    ledger.keep("victim", "canary", CANARY)
    transcript.observe(HYPERVISOR, (HostRead(0, 1),), (b"\0",))
    for kind, at, what in expanded(life):
        gpa = BASE + at
        if kind == "read back":
            octets = bytes(second.memory.get(gpa + index, 0xEE) for index in range(int(what)))
            kind = "read"  # noqa: PLW2901
        else:
            octets = bytes(what)
        if kind == "absent":
            transcript.absent("C-bit")
            second.take(kind, at, octets)
            continue
        number, halves = int.from_bytes(octets, "little"), (octets[:4], octets[4:8])
        low, high = (int.from_bytes(half, "little") for half in halves)
        actor, operation, answer = {
            "write": (VICTIM, Write(gpa, octets), None),
            "read": (VICTIM, Read(gpa, len(octets)), octets),
            "publish": (VICTIM, Write(0x100_0000, octets, private=False), None),
            "tell": (HYPERVISOR, HostRead(0, len(octets) + 2), b"\0" + octets + b"\0"),
            "#VC": (VICTIM, Read(gpa, 1), Fault(FaultKind.PAGE_NOT_VALIDATED, gpa)),
            "stop": (VICTIM, Read(gpa, 1), Fault(FaultKind.NESTED_PAGE_FAULT, gpa)),
            "number": (HYPERVISOR, ReadMsr(0, 0), number),
            "CPUID": (TENANT, Cpuid(0), CpuidResult(low, high, 0, 0)),
            "refuse": (HYPERVISOR, HostRead(0, 1), Fault(FaultKind.RMP_FAULT, number)),
            "refuse with error": (DEVICE, HostRead(0, 1), Fault(FaultKind.RMP_FAULT, 0, number)),
            "stop in its walk": (VICTIM, VirtualRead(0, 1), Fault(FaultKind.NESTED_PAGE_FAULT, number)),
            "validate": (VICTIM, PValidate(at * PAGE, PAGE, False), PValidateResult(0, False)),
            "fail to validate": (VICTIM, PValidate(at * PAGE, PAGE, False), PValidateResult(6, False)),
            "rescind": (VICTIM, PValidate(at * PAGE, PAGE, False, validate=False), PValidateResult(0, False)),
        }[kind]
        transcript.observe(actor, (operation,), (answer,))
        second.take(kind, at, octets)
    assert judge(ledger, transcript, MEASURE).outcome == second.outcome
