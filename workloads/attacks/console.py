"""The victim of guesses: a console that keeps what was typed, one cell for each character.

All of a cell but its character is the same on every console, and a cell is one block of the cipher. Each round it
looks at its cells and copies whatever has come in to a page of its own. It compares nothing and tells nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from node.operations import Read, Write
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from node.swiotlb import BounceArea, BounceFault
from workloads.attacks.vault import INBOX, PAGE_BYTES, REQUEST, REST, SECRET
from workloads.block_outcome import FAULTED, faulted

CELL_BYTES = 16
CHARACTERS = 64
ALPHABET = b"0123456789abcdef"
_BLANK = bytes(3) + b"\x07" + bytes(CELL_BYTES - 5)
"""After the character: its colours, and nothing."""
OPEN_RIP, ROUND_RIP = 0x40_0000, 0x40_1000


def cell(character: int) -> bytes:
    """How a character lies in memory."""
    return bytes((character,)) + _BLANK


@dataclass(frozen=True, slots=True)
class Console:
    """The program, without parameters. R13 counts the rounds."""

    placement: Placement

    entry = OPEN_RIP
    demands: tuple[Demand, ...] = ()

    @classmethod
    def build(cls, _: ProgramSpec, placement: Placement) -> Console:
        """The program of a specification."""
        return cls(placement)

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {OPEN_RIP: self._open, ROUND_RIP: self._round}

    @property
    def typed(self) -> bytes:
        """What nobody else may know."""
        name = f"{self.placement.seed} {self.placement.vm} is typed"
        return hashlib.shake_128(name.encode()).hexdigest(CHARACTERS // 2).encode()

    def _open(self, registers: Registers) -> Block:
        screen = Write(self._private(SECRET), b"".join(map(cell, self.typed)))
        area = self._area
        try:
            yield from area.open()
            inbox = yield from area.map_from_device(self._private(REQUEST), PAGE_BYTES)
        except BounceFault:
            return FAULTED
        assert inbox == self._inbox
        if faulted((yield (screen, Write(self._private(REQUEST), bytes(PAGE_BYTES))))):
            return FAULTED
        registers.rip = ROUND_RIP
        return REST

    def _round(self, registers: Registers) -> Block:
        if faulted((yield (Read(self._private(SECRET), CHARACTERS * CELL_BYTES),))):
            return FAULTED
        try:
            yield from self._area.copy_from_device(self._inbox, self._private(REQUEST), PAGE_BYTES)
        except BounceFault:
            return FAULTED
        registers.r13 += 1
        return REST

    def _private(self, page: int) -> int:
        return self.placement.base_gpa + page * PAGE_BYTES

    @property
    def _inbox(self) -> int:
        return self.placement.shared_gpa + INBOX * PAGE_BYTES

    @property
    def _area(self) -> BounceArea:
        place = self.placement
        return BounceArea(place.shared_gpa, place.shared_length, place.book_gpa)
