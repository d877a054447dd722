"""A latency program: loads and updates at scattered addresses of a table in guest memory.

The table is a power of two of 4 KiB pages, each of 64-byte lines. An epoch
visits every page once, in an order that only the key tells; a visit loads the
first lines of the page (1 to 64, the same each time) and stores them anew. In
between, runs of 1 to 64 lines anywhere are loaded.

A line's contents follow from its number and from how often it was stored. The
order of an epoch can be turned round, so for any page the program can tell
whether its turn has come: a stale line is noticed like a flipped one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from node.operations import Compute, Read, Write
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from workloads.block_outcome import FAULTED, WRONG_ANSWER, faulted, loaded
from workloads.keyed_content import KeyedContent, Words
from workloads.parameters import (
    MOST_INSTRUCTIONS,
    PAGE_BYTES,
    WorkloadParameterError,
    check_placement,
    parameters_from,
    whole,
)

LINE_BYTES = 64
LINES = PAGE_BYTES // LINE_BYTES
WORDS = LINE_BYTES // 8
_SIZES = np.uint64(7)
"""Runs of 1, 2, 4, ... 64 lines."""
_STORED_SHIFT = np.uint64(42)
"""A line's words are numbered below the count of its stores."""
_CONTENTS, _SPANS = 0, 1

FILL_RIP, ACCESS_RIP = 0x40_0000, 0x40_1000
_PAGES_AT_ONCE = 16

DEMAND = Demand(
    "scatter",
    instructions_per_cycle=1.0,
    llc_misses_per_kilo_instruction=25.0,
    tlb_misses_per_kilo_instruction=20.0,
    memory_level_parallelism=2.0,
    bytes_per_llc_miss=128.0,
    written_bytes_per_kilo_instruction=12.5 * 4096,
)
"""Dependent misses with a page walk each, half the lines dirty, each in another page. The laboratory's choice: not
published."""


@dataclass(frozen=True, slots=True)
class RandomAccessParameters:
    """Parameters of ``random-access``; the defaults fit 4 MiB and fill an hour with about 90 batches.

    All are the laboratory's choice.
    """

    table_bytes: int = whole(2 << 20, 64 << 10, 1 << 34)
    """A power of two."""
    batch: int = whole(64, 1, 1024)
    """Pages updated at once; a power of two that is not above the table's pages."""
    loads: int = whole(64, 0, 1024)
    """Loads anywhere in the table with each batch."""
    instructions_per_batch: int = whole(18_000_000_000, 0, MOST_INSTRUCTIONS)

    def __post_init__(self) -> None:
        if self.table_bytes & (self.table_bytes - 1):
            raise WorkloadParameterError("table_bytes", "a power of two")
        if self.batch & (self.batch - 1) or self.batch > self.pages:
            raise WorkloadParameterError("batch", f"a power of two up to the table's {self.pages} pages")

    @property
    def pages(self) -> int:
        """Pages of the table."""
        return self.table_bytes // PAGE_BYTES

    @property
    def private_bytes(self) -> int:
        """The table."""
        return self.table_bytes

    @property
    def shared_bytes(self) -> int:
        """None."""
        return 0

    @property
    def disk_bytes(self) -> int:
        """None."""
        return 0


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """The order in which one epoch visits the pages: a bijection of ``bits``-bit numbers that can be turned round."""

    bits: int
    factors: tuple[int, int]
    addend: int

    @classmethod
    def of(cls, content: KeyedContent, epoch: int, bits: int) -> EpochOrder:
        """The order of an epoch under a key."""
        first, addend, second = content.draws(b"order", epoch, 3).tolist()
        mask = (1 << bits) - 1
        return cls(bits, ((first | 1) & mask, (second | 1) & mask), addend & mask)

    def pages(self, positions: Words) -> Words:
        """Page visited at each position."""
        mask = np.uint64((1 << self.bits) - 1)
        mixed = (positions * np.uint64(self.factors[0]) + np.uint64(self.addend)) & mask
        mixed ^= mixed >> self._fold
        return (mixed * np.uint64(self.factors[1])) & mask

    def positions(self, pages: Words) -> Words:
        """Position at which each page is visited."""
        size = 1 << self.bits
        mask = np.uint64(size - 1)
        mixed = (pages * np.uint64(pow(self.factors[1], -1, size))) & mask
        mixed ^= mixed >> self._fold
        return ((mixed - np.uint64(self.addend)) * np.uint64(pow(self.factors[0], -1, size))) & mask

    @property
    def _fold(self) -> np.uint64:
        # At least half the bits: then folding twice changes nothing.
        return np.uint64((self.bits + 1) // 2)


@dataclass(frozen=True, slots=True)
class RandomAccess:
    """The program. R12 counts pages filled, then batches; R13 counts updates."""

    parameters: RandomAccessParameters
    placement: Placement
    content: KeyedContent

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> RandomAccess:
        """Rebuild the program whole."""
        parameters = parameters_from(RandomAccessParameters, spec.parameters)
        check_placement(parameters, placement)
        return cls(parameters, placement, KeyedContent.of(placement, spec.name))

    @property
    def entry(self) -> int:
        """RIP of the first block."""
        return FILL_RIP

    @property
    def demands(self) -> tuple[Demand, ...]:
        """One steady phase."""
        size = self.parameters.private_bytes
        return (replace(DEMAND, written_set_bytes=size, read_set_bytes=size),)

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {FILL_RIP: self._fill, ACCESS_RIP: self._access}

    def _fill(self, registers: Registers) -> Block:
        """Store some pages as they are before epoch 0."""
        first = registers.r12
        count = min(_PAGES_AT_ONCE, self.parameters.pages - first)
        lines = np.arange(first * LINES, (first + count) * LINES, dtype=np.uint64)
        data = self._lines(lines, np.zeros_like(lines))
        answers = yield (Write(self.placement.base_gpa + first * PAGE_BYTES, data),)
        if faulted(answers):
            return FAULTED
        registers.r12 += count
        if registers.r12 == self.parameters.pages:
            registers.r12 = 0
            registers.rip = ACCESS_RIP
        return None

    def _access(self, registers: Registers) -> Block:
        """Load and update a batch of pages, and load runs of lines anywhere."""
        parameters = self.parameters
        epoch, position = divmod(registers.r12 * parameters.batch, parameters.pages)
        order = EpochOrder.of(self.content, epoch, parameters.pages.bit_length() - 1)
        visited = order.pages(np.arange(position, position + parameters.batch, dtype=np.uint64))
        spans = self._spans(visited)
        draws = self.content.draws(b"loads", registers.r12, parameters.loads)
        lengths = np.uint64(1) << ((draws >> np.uint64(32)) % _SIZES)
        starts = (draws % np.uint64(parameters.pages)) * np.uint64(LINES)
        starts += (draws >> np.uint64(40)) % (np.uint64(LINES + 1) - lengths)

        runs = np.concatenate((visited * np.uint64(LINES), starts)), np.concatenate((spans, lengths))
        answers = yield tuple(
            Read(self._gpa(start), length * LINE_BYTES)
            for start, length in zip(runs[0].tolist(), runs[1].tolist(), strict=True)
        )
        data = loaded(answers)
        if data is None:
            return FAULTED
        lines = _numbers(*runs)
        pages = lines // np.uint64(LINES)
        done = order.positions(pages) < np.uint64(position)
        updated = lines % np.uint64(LINES) < self._spans(pages)
        stored = np.where(updated, np.where(done, np.uint64(epoch + 1), np.uint64(epoch)), np.uint64(0))
        if b"".join(data) != self._lines(lines, stored):
            return WRONG_ANSWER

        lines = _numbers(visited * np.uint64(LINES), spans)
        fresh = self._lines(lines, np.full_like(lines, epoch + 1))
        ends = (np.cumsum(spans) * np.uint64(LINE_BYTES)).tolist()
        answers = yield tuple(
            Write(self._gpa(page * LINES), fresh[end - span * LINE_BYTES : end])
            for page, span, end in zip(visited.tolist(), spans.tolist(), ends, strict=True)
        )
        if faulted(answers):
            return FAULTED
        registers.r12 += 1
        registers.r13 += parameters.batch
        if not parameters.instructions_per_batch:
            return None
        return Compute(0, parameters.instructions_per_batch)

    def _spans(self, pages: Words) -> Words:
        """How many lines of each page its visits store."""
        return np.uint64(1) << (self.content.words(pages, _SPANS) % _SIZES)

    def _lines(self, lines: Words, stored: Words) -> bytes:
        """Contents of lines that were stored so often."""
        first = lines * np.uint64(WORDS) + (stored << _STORED_SHIFT)
        numbers = first[:, None] + np.arange(WORDS, dtype=np.uint64)
        return self.content.words(numbers, _CONTENTS).astype("<u8").tobytes()

    def _gpa(self, line: int) -> int:
        return self.placement.base_gpa + line * LINE_BYTES


def _numbers(starts: Words, lengths: Words) -> Words:
    """The numbers of all runs, one run after the other."""
    counts = lengths.astype(np.int64)
    before = np.cumsum(counts) - counts
    within = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(before, counts)
    return np.repeat(starts, counts) + within.astype(np.uint64)
