"""The victim: a server that keeps a secret, rewrites values, and serves an answer.

A round reads everything back, its code too, copies the answer page to the shared outbox,
copies the shared inbox to a private request page, and writes the two values and
the status beside the request anew. Both boxes are bounce buffers, in a plain VM too. It compares
nothing: whatever notices an attack, it is not this program. A fault ends it that its kernel does not take.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from node.operations import Read, Sleep, Write
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from node.swiotlb import SLOT_BYTES, BounceArea, BounceFault
from workloads.block_outcome import FAULTED, faulted

CONTENT_BYTES = 64
PAGE_BYTES = 4096
SECRET, VALUE, OTHER, ANSWER, REQUEST, CODE = range(6)
"""Pages from the beginning of the placement's private range."""
STATUS_OFFSET = CONTENT_BYTES
"""Where the status lies in the page of the request: next to it."""
INBOX, OUTBOX = range(2)
"""Bounce buffers from the beginning of its shared range."""
OPEN_RIP, ROUND_RIP = 0x40_0000, 0x40_1000
REST = Sleep(1_000_000_000)


@dataclass(frozen=True, slots=True)
class Vault:
    """R13 counts the rounds, and with it the version that each value has."""

    placement: Placement

    entry = OPEN_RIP
    demands: tuple[Demand, ...] = ()

    @classmethod
    def build(cls, _: ProgramSpec, placement: Placement) -> Vault:
        """The program of a specification, which has no parameters."""
        return cls(placement)

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {OPEN_RIP: self._open, ROUND_RIP: self._round}

    def private(self, page: int) -> int:
        """GPA of a private page."""
        return self.placement.base_gpa + page * PAGE_BYTES

    def shared(self, box: int) -> int:
        """GPA of a bounce buffer."""
        return self.placement.shared_gpa + box * SLOT_BYTES

    @property
    def status(self) -> int:
        """GPA of the status."""
        return self.private(REQUEST) + STATUS_OFFSET

    def content(self, page: int, version: int = 0, part: str = "") -> bytes:
        """What the program writes to a private page, or to a part of it."""
        name = f"{self.placement.seed} {self.placement.vm} {page} {version} {part}"
        return hashlib.shake_128(name.encode()).digest(CONTENT_BYTES)

    def _open(self, registers: Registers) -> Block:
        pages, area = (SECRET, VALUE, OTHER, ANSWER, REQUEST, CODE), self._area
        try:
            yield from area.open()
            inbox = yield from area.map_from_device(self.private(REQUEST), CONTENT_BYTES)
            outbox = yield from area.map_from_device(self.private(ANSWER), CONTENT_BYTES)
        except BounceFault:
            return FAULTED
        assert (inbox, outbox) == (self.shared(INBOX), self.shared(OUTBOX))
        answers = yield (
            *[Write(self.private(page), self.content(page)) for page in pages],
            Write(self.status, self.content(REQUEST, 0, "status")),
        )
        if faulted(answers):
            return FAULTED
        registers.rip = ROUND_RIP
        return REST

    def _round(self, registers: Registers) -> Block:
        for gpa in (*map(self.private, (SECRET, VALUE, OTHER, REQUEST, CODE)), self.status):
            answers = yield (Read(gpa, CONTENT_BYTES),)
            if faulted(answers):
                return FAULTED
        area = self._area
        try:
            yield from area.copy_to_device(self.private(ANSWER), self.shared(OUTBOX), CONTENT_BYTES)
            yield from area.copy_from_device(self.shared(INBOX), self.private(REQUEST), CONTENT_BYTES)
        except BounceFault:
            return FAULTED
        registers.r13 += 1
        answers = yield (
            Write(self.status, self.content(REQUEST, registers.r13, "status")),
            Write(self.private(VALUE), self.content(VALUE, registers.r13)),
            Write(self.private(OTHER), self.content(OTHER, registers.r13)),
        )
        return FAULTED if faulted(answers) else REST

    @property
    def _area(self) -> BounceArea:
        place = self.placement
        return BounceArea(place.shared_gpa, place.shared_length, place.book_gpa)
