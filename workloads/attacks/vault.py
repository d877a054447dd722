"""The victim: a server that keeps a secret, rewrites values, and serves an answer.

A round reads everything back, copies the answer page to the shared outbox,
copies the shared inbox to a private request page, and writes the two values, what it has decided, and
the status beside the request anew. It compares nothing: whatever notices an attack, it is not this program.
A fault ends it, unless it has the habit of validating a page again that turns
out not to be validated. It may reach its value through page tables of its own, and it may spin instead of resting.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from node.operations import (
    Answer,
    Compute,
    Fault,
    FaultKind,
    GuestOperation,
    PValidate,
    Read,
    Sleep,
    VirtualRead,
    VirtualWrite,
    Write,
    WriteControl,
)
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from workloads.block_outcome import FAULTED, faulted

CONTENT_BYTES = 64
PAGE_BYTES = 4096
SECRET, VALUE, OTHER, ANSWER, REQUEST, DECISION = range(6)
"""Pages from the beginning of the placement's private range."""
_TABLES = (8, 9, 10, 11)
"""Pages of its own tables, the highest level first."""
VALUE_GVA = 0x7F00_1234_5000
"""Where its tables show the value."""
DECISIONS = 64
"""What it decides, round by round, is secret for so many."""
STATUS_OFFSET = CONTENT_BYTES
"""Where the status lies in the page of the request: next to it."""
INBOX, OUTBOX = range(2)
"""Pages from the beginning of its shared range."""
VALIDATES_AGAIN = "validates_again"
"""The parameter of a guest that keeps no book of what it validated (COCONUT-SVSM issue 114)."""
C_BIT, SPINS = "c_bit", "spins"
"""Parameters: the bit of its entries that says private, for a guest with tables of its own; and the spinning."""
OPEN_RIP, ROUND_RIP = 0x40_0000, 0x40_1000
REST = Sleep(1_000_000_000)
_FOREVER = 1 << 62
_PRESENT_WRITABLE = 0b11
_PAE, _LONG_MODE, _PAGING = 1 << 5, 1 << 8, 1 << 31 | 1 << 16 | 1


@dataclass(frozen=True, slots=True)
class Vault:
    """R13 counts the rounds, and with it the version that each value has."""

    placement: Placement
    validates_again: bool = False
    c_bit: int | None = None
    """None for a guest without paging, 0 for one whose entries have no C-bit."""
    spins: bool = False

    entry = OPEN_RIP
    demands: tuple[Demand, ...] = (Demand("spinning", 1.0, 0.0, 0.0, 1.0),)

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> Vault:
        """The program of a specification."""
        given = dict(spec.parameters)
        c_bit = given.get(C_BIT)
        return cls(
            placement,
            validates_again=bool(given.get(VALIDATES_AGAIN, False)),
            c_bit=None if c_bit is None else int(c_bit),
            spins=bool(given.get(SPINS, False)),
        )

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {OPEN_RIP: self._open, ROUND_RIP: self._round}

    def private(self, page: int) -> int:
        """GPA of a private page."""
        return self.placement.base_gpa + page * PAGE_BYTES

    def shared(self, page: int) -> int:
        """GPA of a shared page."""
        return self.placement.shared_gpa + page * PAGE_BYTES

    @property
    def status(self) -> int:
        """GPA of the status."""
        return self.private(REQUEST) + STATUS_OFFSET

    def content(self, page: int, version: int = 0, part: str = "") -> bytes:
        """What the program writes to a private page, or to a part of it."""
        who = self.placement.vm + (f" {self.placement.vcpu}" if self.placement.vcpu else "")
        name = f"{self.placement.seed} {who} {page} {version} {part}"
        return hashlib.shake_128(name.encode()).digest(CONTENT_BYTES)

    def decision(self, number: int) -> int:
        """What it decides in a round, counted from one: 0 or 1. Before the first it is 0."""
        name = f"{self.placement.seed} {self.placement.vm} decides".encode()
        bits = int.from_bytes(hashlib.shake_128(name).digest(DECISIONS // 8), "little")
        return bits >> (number - 1) % DECISIONS & 1 if number else 0

    def _paging(self) -> tuple[GuestOperation, ...]:
        """Build four levels of tables that show the value at ``VALUE_GVA``, and walk them from now on."""
        if self.c_bit is None:
            return ()
        tables = [self.private(page) for page in _TABLES]
        entries = [
            (table + (VALUE_GVA >> shift & 511) * 8, below | _PRESENT_WRITABLE | self.c_bit)
            for table, below, shift in zip(tables, (*tables[1:], self.private(VALUE)), (39, 30, 21, 12), strict=True)
        ]
        controls = (("CR4", _PAE), ("EFER", _LONG_MODE), ("CR3", tables[0]), ("CR0", _PAGING))
        return (
            *[Write(table, bytes(PAGE_BYTES)) for table in tables],
            *[Write(at, word.to_bytes(8, "little")) for at, word in entries],
            *[WriteControl(*one) for one in controls],
        )

    def _read(self, page: int) -> GuestOperation:
        if page == VALUE and self.c_bit is not None:
            return VirtualRead(VALUE_GVA, CONTENT_BYTES)
        return Read(self.private(page), CONTENT_BYTES)

    def _write(self, page: int, octets: bytes) -> GuestOperation:
        if page == VALUE and self.c_bit is not None:
            return VirtualWrite(VALUE_GVA, octets)
        return Write(self.private(page), octets)

    def _open(self, registers: Registers) -> Block:
        pages = (SECRET, VALUE, OTHER, ANSWER, REQUEST, DECISION)
        answers = yield (
            *[Write(self.private(page), self.content(page)) for page in pages],
            Write(self.status, self.content(REQUEST, 0, "status")),
            *self._paging(),
        )
        if faulted(answers):
            return FAULTED
        registers.rip = ROUND_RIP
        return REST

    def _round(self, registers: Registers) -> Block:
        for gpa, read in (
            *[(self.private(page), self._read(page)) for page in (SECRET, VALUE, OTHER, REQUEST)],
            (self.status, Read(self.status, CONTENT_BYTES)),
        ):
            answers = yield (read,)
            if self.validates_again and _not_validated(answers):
                yield (PValidate(gpa // PAGE_BYTES * PAGE_BYTES, PAGE_BYTES, large=False),)
                answers = yield (read,)
            if faulted(answers):
                return FAULTED
        answer, request = yield (
            Read(self.private(ANSWER), CONTENT_BYTES),
            Read(self.shared(INBOX), CONTENT_BYTES, private=False),
        )
        if not isinstance(answer, bytes) or not isinstance(request, bytes):
            return FAULTED
        registers.r13 += 1
        answers = yield (
            Write(self.shared(OUTBOX), answer, private=False),
            Write(self.private(REQUEST), request),
            Write(self.status, self.content(REQUEST, registers.r13, "status")),
            self._write(VALUE, self.content(VALUE, registers.r13)),
            Write(self.private(DECISION), self.content(DECISION, self.decision(registers.r13))),
            Write(self.private(OTHER), self.content(OTHER, registers.r13)),
        )
        if faulted(answers):
            return FAULTED
        return Compute(0, _FOREVER) if self.spins else REST


def _not_validated(answers: tuple[Answer, ...]) -> bool:
    return any(isinstance(one, Fault) and one.kind is FaultKind.PAGE_NOT_VALIDATED for one in answers)
