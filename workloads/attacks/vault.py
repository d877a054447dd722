"""The victim: a server that keeps a secret, rewrites values, and serves an answer.

A round reads everything back, copies the answer page to the shared outbox,
copies the shared inbox to a private request page, and writes the two values and
the status beside the request anew. It compares nothing: whatever notices an attack, it is not this program.
A fault ends it, unless it has the habit of validating a page again that turns
out not to be validated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from node.operations import Answer, Fault, FaultKind, PValidate, Read, Sleep, Write
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from workloads.block_outcome import FAULTED, faulted

CONTENT_BYTES = 64
PAGE_BYTES = 4096
SECRET, VALUE, OTHER, ANSWER, REQUEST = range(5)
"""Pages from the beginning of the placement's private range."""
STATUS_OFFSET = CONTENT_BYTES
"""Where the status lies in the page of the request: next to it."""
INBOX, OUTBOX = range(2)
"""Pages from the beginning of its shared range."""
VALIDATES_AGAIN = "validates_again"
"""The parameter of a guest that keeps no book of what it validated (COCONUT-SVSM issue 114)."""
OPEN_RIP, ROUND_RIP = 0x40_0000, 0x40_1000
REST = Sleep(1_000_000_000)


@dataclass(frozen=True, slots=True)
class Vault:
    """R13 counts the rounds, and with it the version that each value has."""

    placement: Placement
    validates_again: bool = False

    entry = OPEN_RIP
    demands: tuple[Demand, ...] = ()

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> Vault:
        """The program of a specification, whose only parameter is the habit."""
        return cls(placement, bool(dict(spec.parameters).get(VALIDATES_AGAIN, False)))

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
        name = f"{self.placement.seed} {self.placement.vm} {page} {version} {part}"
        return hashlib.shake_128(name.encode()).digest(CONTENT_BYTES)

    def _open(self, registers: Registers) -> Block:
        pages = (SECRET, VALUE, OTHER, ANSWER, REQUEST)
        answers = yield (
            *[Write(self.private(page), self.content(page)) for page in pages],
            Write(self.status, self.content(REQUEST, 0, "status")),
        )
        if faulted(answers):
            return FAULTED
        registers.rip = ROUND_RIP
        return REST

    def _round(self, registers: Registers) -> Block:
        for gpa in (*map(self.private, (SECRET, VALUE, OTHER, REQUEST)), self.status):
            answers = yield (Read(gpa, CONTENT_BYTES),)
            if self.validates_again and _not_validated(answers):
                yield (PValidate(gpa // PAGE_BYTES * PAGE_BYTES, PAGE_BYTES, large=False),)
                answers = yield (Read(gpa, CONTENT_BYTES),)
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
            Write(self.private(VALUE), self.content(VALUE, registers.r13)),
            Write(self.private(OTHER), self.content(OTHER, registers.r13)),
        )
        return FAULTED if faulted(answers) else REST


def _not_validated(answers: tuple[Answer, ...]) -> bool:
    return any(isinstance(one, Fault) and one.kind is FaultKind.PAGE_NOT_VALIDATED for one in answers)
