"""The victim: a server that keeps a secret, rewrites values, and serves an answer.

A round reads everything back, its code too, copies the answer page to the shared outbox,
copies the shared inbox to a private request page, and writes the two values, what it has decided (which RAX holds
while it rests), and the status beside the request anew. Both boxes are bounce buffers, in a plain VM too. It compares
nothing: whatever notices an attack, it is not this program. A fault ends it that its kernel does not take.
It may reach its value through page tables of its own; its secret is then words that look like entries of
such tables, and its code has an instruction that loads from where a register says. It may spin instead of resting.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from node.operations import (
    Compute,
    GuestOperation,
    Read,
    Sleep,
    VirtualRead,
    VirtualWrite,
    Write,
    WriteControl,
)
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from node.swiotlb import BounceArea, BounceFault
from workloads.block_outcome import FAULTED, faulted

CONTENT_BYTES = 64
PAGE_BYTES = 4096
SECRET, VALUE, OTHER, ANSWER, REQUEST, DECISION, CODE = range(7)
"""Pages from the beginning of the placement's private range."""
_TABLES = (8, 9, 10, 11)
"""Pages of its own tables, the highest level first."""
MOV_EAX_FROM_RBX = bytes.fromhex("8b03")
GADGET_OFFSET = PAGE_BYTES - len(MOV_EAX_FROM_RBX)
"""Where in its code that instruction lies: what follows it is on another page."""
ENTRY_FLAGS = 0x67
"""Of an entry in use: present, writable, for users, accessed, dirty; no large page, not global."""
_FRAME_BITS = range(12, 46)
"""The highest of them is set, so that no such address is one of a guest's."""
VALUE_GVA = 0x7F00_1234_5000
"""Where its tables show the value."""
DECISIONS = 64
"""What it decides, round by round, is secret for so many."""
STATUS_OFFSET = CONTENT_BYTES
"""Where the status lies in the page of the request: next to it."""
INBOX, OUTBOX = range(2)
"""Bounce buffers of a page each, from the beginning of its shared range."""
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
        return cls(placement, None if c_bit is None else int(c_bit), spins=bool(given.get(SPINS, False)))

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {OPEN_RIP: self._open, ROUND_RIP: self._round}

    def private(self, page: int) -> int:
        """GPA of a private page."""
        return self.placement.base_gpa + page * PAGE_BYTES

    def shared(self, box: int) -> int:
        """GPA of a bounce buffer."""
        return self.placement.shared_gpa + box * PAGE_BYTES

    @property
    def status(self) -> int:
        """GPA of the status."""
        return self.private(REQUEST) + STATUS_OFFSET

    def content(self, page: int, version: int = 0, part: str = "") -> bytes:
        """What the program writes to a private page, or to a part of it."""
        who = self.placement.vm + (f" {self.placement.vcpu}" if self.placement.vcpu else "")
        name = f"{self.placement.seed} {who} {page} {version} {part}"
        octets = hashlib.shake_128(name.encode()).digest(CONTENT_BYTES)
        return _like_entries(octets) if page == SECRET and self.c_bit is not None else octets

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
            Write(self.private(CODE) + GADGET_OFFSET, MOV_EAX_FROM_RBX),
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
        pages, area = (SECRET, VALUE, OTHER, ANSWER, REQUEST, DECISION, CODE), self._area
        try:
            yield from area.open()
            inbox = yield from area.map_from_device(self.private(REQUEST), PAGE_BYTES)
            outbox = yield from area.map_from_device(self.private(ANSWER), PAGE_BYTES)
        except BounceFault:
            return FAULTED
        assert (inbox, outbox) == (self.shared(INBOX), self.shared(OUTBOX))
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
        reads = [self._read(page) for page in (SECRET, VALUE, OTHER, REQUEST, CODE)]
        for read in (*reads, Read(self.status, CONTENT_BYTES)):
            answers = yield (read,)
            if faulted(answers):
                return FAULTED
        area = self._area
        try:
            yield from area.copy_to_device(self.private(ANSWER), self.shared(OUTBOX), CONTENT_BYTES)
            yield from area.copy_from_device(self.shared(INBOX), self.private(REQUEST), CONTENT_BYTES)
        except BounceFault:
            return FAULTED
        registers.r13 += 1
        registers.rax = self.decision(registers.r13)
        answers = yield (
            Write(self.status, self.content(REQUEST, registers.r13, "status")),
            self._write(VALUE, self.content(VALUE, registers.r13)),
            Write(self.private(DECISION), self.content(DECISION, registers.rax)),
            Write(self.private(OTHER), self.content(OTHER, registers.r13)),
        )
        if faulted(answers):
            return FAULTED
        return Compute(0, _FOREVER) if self.spins else REST

    @property
    def _area(self) -> BounceArea:
        place = self.placement
        return BounceArea(place.shared_gpa, place.shared_length, place.book_gpa)


def _like_entries(octets: bytes) -> bytes:
    """Random words with what all present entries of a table have in common."""
    first, end = _FRAME_BITS.start, _FRAME_BITS.stop
    words = struct.unpack(f"<{len(octets) // 8}Q", octets)
    frames = [word % (1 << end) >> first << first | 1 << end - 1 for word in words]
    return struct.pack(f"<{len(frames)}Q", *[frame | ENTRY_FLAGS for frame in frames])
