"""A bandwidth program: the triad of STREAM over real arrays in guest memory.

Three arrays of doubles follow each other from the start of the private range:
X0, X1 and C. Sweep k computes ``X[(k+1) % 2] = X[k % 2] + SCALAR * C`` chunk by
chunk (McCalpin's triad, with the result of one sweep as the input of the next).

Contents are small whole numbers, so every sum is exact and element i of the
input of sweep k is ``x(i) + SCALAR * k * c(i)``: chunks are compared with that
before they are used. Single cache lines all over the result are looked at too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from node.operations import Compute, Read, Write
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from workloads.block_outcome import FAULTED, WRONG_ANSWER, faulted, loaded
from workloads.keyed_content import KeyedContent, Words
from workloads.parameters import MOST_INSTRUCTIONS, WorkloadParameterError, check_placement, parameters_from, whole

SCALAR = 3.0
ELEMENT_BYTES = 8
LINE_BYTES = 64
FILL_RIP, TRIAD_RIP = 0x40_0000, 0x40_1000
_SHIFT = np.uint64(44)
"""Keeps 20 bits: sums stay exact for 2**31 sweeps."""
_X, _C = 0, 1

DEMAND = Demand(
    "triad",
    instructions_per_cycle=3.0,
    llc_misses_per_kilo_instruction=120.0,
    tlb_misses_per_kilo_instruction=0.2,
    memory_level_parallelism=40.0,
    bytes_per_llc_miss=85.0,
    written_bytes_per_kilo_instruction=40 * 64.0,
)
"""Two lines read, one owned and written back for each three misses. The laboratory's choice, not published: such
that one core of an idle host draws about what the cost table's single thread copies (23.8 GB/s)."""

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StreamParameters:
    """Parameters of ``stream``; the defaults fit 4 MiB and fill an hour with about 130 chunks. All the laboratory's."""

    array_bytes: int = whole(1 << 20, 4096, 1 << 34, 4096)
    """Length of each of the three arrays."""
    chunk_bytes: int = whole(64 << 10, 4096, 1 << 20, 4096)
    """Length of one load or store."""
    spot_lines: int = whole(128, 0, 4096)
    """Cache lines of the result looked at after each chunk."""
    instructions_per_chunk: int = whole(65_000_000_000, 0, MOST_INSTRUCTIONS)

    def __post_init__(self) -> None:
        if self.array_bytes % self.chunk_bytes:
            raise WorkloadParameterError("array_bytes", f"a multiple of chunk_bytes ({self.chunk_bytes})")

    @property
    def chunks(self) -> int:
        """Chunks of one array."""
        return self.array_bytes // self.chunk_bytes

    @property
    def private_bytes(self) -> int:
        """Three arrays."""
        return 3 * self.array_bytes

    @property
    def shared_bytes(self) -> int:
        """None."""
        return 0

    @property
    def disk_bytes(self) -> int:
        """None."""
        return 0


@dataclass(frozen=True, slots=True)
class Stream:
    """The program. R12 counts the chunks of the present phase, R13 those of the triad."""

    parameters: StreamParameters
    placement: Placement
    content: KeyedContent

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> Stream:
        """Rebuild the program whole."""
        parameters = parameters_from(StreamParameters, spec.parameters)
        check_placement(parameters, placement)
        return cls(parameters, placement, KeyedContent.of(placement, spec.name))

    @property
    def entry(self) -> int:
        """RIP of the first block."""
        return FILL_RIP

    @property
    def demands(self) -> tuple[Demand, ...]:
        """One steady phase, whose sweeps write one array and then the other, and read those and the third."""
        size = self.parameters.array_bytes
        return (replace(DEMAND, written_set_bytes=2 * size, read_set_bytes=3 * size),)

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {FILL_RIP: self._fill, TRIAD_RIP: self._triad}

    def _fill(self, registers: Registers) -> Block:
        """Store one chunk of each array as it is before sweep 0."""
        chunk = registers.r12
        elements = self._elements(chunk)
        x, c = self._initial(elements, _X), self._initial(elements, _C)
        before = x - SCALAR * c
        answers = yield tuple(
            Write(self._gpa(array, chunk), part.tobytes()) for array, part in enumerate((x, before, c))
        )
        if faulted(answers):
            return FAULTED
        registers.r12 += 1
        if registers.r12 == self.parameters.chunks:
            registers.r12 = 0
            registers.rip = TRIAD_RIP
        return None

    def _triad(self, registers: Registers) -> Block:
        """One chunk of one sweep."""
        sweep, chunk = divmod(registers.r12, self.parameters.chunks)
        length = self.parameters.chunk_bytes
        elements = self._elements(chunk)
        x, c = self._initial(elements, _X), self._initial(elements, _C)
        answers = yield (Read(self._gpa(sweep % 2, chunk), length), Read(self._gpa(2, chunk), length))
        data = loaded(answers)
        if data is None:
            return FAULTED
        # Compared as bytes: -0.0 equals 0.0 but is not what was stored.
        if data != [(x + SCALAR * sweep * c).tobytes(), c.tobytes()]:
            return WRONG_ANSWER
        result = _doubles(data[0]) + SCALAR * _doubles(data[1])
        answers = yield (Write(self._gpa((sweep + 1) % 2, chunk), result.tobytes()),)
        if faulted(answers):
            return FAULTED
        if self.parameters.spot_lines:
            lines = self._spots(registers.r12)
            base = self._gpa((sweep + 1) % 2, 0)
            answers = yield tuple(Read(base + line * LINE_BYTES, LINE_BYTES) for line in lines.tolist())
            data = loaded(answers)
            if data is None:
                return FAULTED
            if b"".join(data) != self._expected_lines(lines, sweep, chunk):
                return WRONG_ANSWER
        registers.r12 += 1
        registers.r13 += 1
        if not self.parameters.instructions_per_chunk:
            return None
        return Compute(0, self.parameters.instructions_per_chunk)

    def _spots(self, step: int) -> Words:
        lines = np.uint64(self.parameters.array_bytes // LINE_BYTES)
        return self.content.draws(b"spots", step, self.parameters.spot_lines) % lines

    def _expected_lines(self, lines: Words, sweep: int, chunk: int) -> bytes:
        """Lines of the result array when ``sweep`` has done its chunks up to ``chunk``."""
        in_line = np.arange(LINE_BYTES // ELEMENT_BYTES, dtype=np.uint64)
        elements = (lines[:, None] * np.uint64(len(in_line)) + in_line).ravel()
        done = elements < np.uint64((chunk + 1) * self.parameters.chunk_bytes // ELEMENT_BYTES)
        steps = np.where(done, float(sweep + 1), float(sweep - 1))
        return (self._initial(elements, _X) + SCALAR * steps * self._initial(elements, _C)).tobytes()

    def _elements(self, chunk: int) -> Words:
        count = self.parameters.chunk_bytes // ELEMENT_BYTES
        return np.arange(chunk * count, (chunk + 1) * count, dtype=np.uint64)

    def _initial(self, elements: Words, purpose: int) -> Doubles:
        return (self.content.words(elements, purpose) >> _SHIFT).astype("<f8")

    def _gpa(self, array: int, chunk: int) -> int:
        return self.placement.base_gpa + array * self.parameters.array_bytes + chunk * self.parameters.chunk_bytes


def _doubles(data: bytes) -> Doubles:
    return np.frombuffer(data, dtype="<f8")
