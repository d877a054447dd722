"""A compile-like job: sources from the disk, objects in private memory, and a linker that reads them again.

The job first writes its sources to its part of the VM's disk. A unit of work
then reads one source into its buffer, through bounce buffers where devices reach no
other memory, compares it, compiles it to an object in private memory and computes.
Objects live in a ring; each is read and compared by the linker before its place
is used again. The disk is the host's to change, so what comes from there is compared
before it is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from node.guest_disk import GuestDisk
from node.operations import BLOCK_BYTES, Compute, Read, Shutdown, Write
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from node.swiotlb import BounceBuffersFull, BounceFault
from workloads.block_outcome import FAULTED, WRONG_ANSWER, faulted, loaded
from workloads.keyed_content import KeyedContent
from workloads.parameters import MOST_INSTRUCTIONS, WorkloadParameterError, check_placement, parameters_from, whole

CHECKOUT_RIP, COMPILE_RIP, LINK_RIP = 0x40_0000, 0x40_1000, 0x40_2000

DEMAND = Demand(
    "compile",
    instructions_per_cycle=1.6,
    llc_misses_per_kilo_instruction=0.8,
    llc_accesses_per_kilo_instruction=6.0,
    llc_working_set_bytes=6 << 20,
    tlb_misses_per_kilo_instruction=0.5,
    memory_level_parallelism=2.0,
    exits_per_mega_instruction=0.2,
    written_bytes_per_kilo_instruction=8.0,
)
"""Branchy code in caches, its objects written in order. The laboratory's choice: not published."""

_MOST_SOURCES = 256
_MOST_SOURCE_BLOCKS = 64
"""With these limits 1,024 vCPUs share a disk of 2**24 blocks."""


@dataclass(frozen=True, slots=True)
class CompileParameters:
    """Parameters of ``compile-job``; the defaults fit 4 MiB and fill an hour with about 260 units.

    All are the laboratory's choice.
    """

    units: int = whole(0, 0, 1 << 40)
    """Units after which the VM shuts down; 0: it goes on for ever."""
    sources: int = whole(8, 1, _MOST_SOURCES)
    source_blocks: int = whole(4, 1, _MOST_SOURCE_BLOCKS)
    """Disk blocks of one source."""
    object_bytes: int = whole(48 << 10, 4096, 16 << 20, 4096)
    objects: int = whole(16, 1, 1 << 16)
    """Objects that are kept."""
    access_bytes: int = whole(2048, 64, 4096, 64)
    """Length of one load or store; divides 4096."""
    instructions_per_unit: int = whole(42_000_000_000, 0, MOST_INSTRUCTIONS)

    def __post_init__(self) -> None:
        if BLOCK_BYTES % self.access_bytes:
            raise WorkloadParameterError("access_bytes", f"a divisor of {BLOCK_BYTES}")

    @property
    def source_bytes(self) -> int:
        """Length of one source."""
        return self.source_blocks * BLOCK_BYTES

    @property
    def private_bytes(self) -> int:
        """The ring of objects, and the buffer of one source."""
        return self.objects * self.object_bytes + self.source_bytes

    @property
    def shared_bytes(self) -> int:
        """Bounce buffers for one source."""
        return self.source_bytes

    @property
    def disk_bytes(self) -> int:
        """All sources."""
        return self.sources * self.source_bytes


@dataclass(frozen=True, slots=True)
class CompileJob:
    """The program. R12 counts sources written, then units begun; R13 the units done."""

    parameters: CompileParameters
    placement: Placement
    content: KeyedContent

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> CompileJob:
        """Rebuild the program whole."""
        parameters = parameters_from(CompileParameters, spec.parameters)
        check_placement(parameters, placement)
        return cls(parameters, placement, KeyedContent.of(placement, spec.name))

    @property
    def entry(self) -> int:
        """RIP of the first block."""
        return CHECKOUT_RIP

    @property
    def demands(self) -> tuple[Demand, ...]:
        """One steady phase."""
        size = self.parameters.private_bytes
        return (replace(DEMAND, written_set_bytes=size, read_set_bytes=size),)

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {CHECKOUT_RIP: self._checkout, COMPILE_RIP: self._compile, LINK_RIP: self._link}

    def _checkout(self, registers: Registers) -> Block:
        """Write one source to the disk."""
        number = registers.r12
        answers = yield (Write(self._buffer_gpa, self._source(number)),)
        if faulted(answers):
            return FAULTED
        try:
            if not number:
                yield from self._disk.area.open()
            status = yield from self._disk.write(self._lba(number), self.parameters.source_blocks, self._buffer_gpa)
        except (BounceFault, BounceBuffersFull):
            return FAULTED
        if status:
            return FAULTED
        registers.r12 += 1
        if registers.r12 == self.parameters.sources:
            registers.r12 = 0
            registers.rip = COMPILE_RIP
        return None

    def _compile(self, registers: Registers) -> Block:
        """Read a source, compare it, and store its object."""
        unit = registers.r12
        number = unit % self.parameters.sources
        step = self.parameters.access_bytes
        try:
            status = yield from self._disk.read(self._lba(number), self.parameters.source_blocks, self._buffer_gpa)
        except (BounceFault, BounceBuffersFull):
            return FAULTED
        if status:
            return FAULTED
        answers = yield tuple(Read(self._buffer_gpa + at, step) for at in range(0, self.parameters.source_bytes, step))
        data = loaded(answers)
        if data is None:
            return FAULTED
        source = b"".join(data)
        if source != self._source(number):
            return WRONG_ANSWER
        product, place = self._object(unit, source), self._object_gpa(unit)
        answers = yield tuple(Write(place + at, product[at : at + step]) for at in range(0, len(product), step))
        if faulted(answers):
            return FAULTED
        registers.rip = LINK_RIP
        if not self.parameters.instructions_per_unit:
            return None
        return Compute(0, self.parameters.instructions_per_unit)

    def _link(self, registers: Registers) -> Block:
        """Read the oldest object there is and compare it: its place is the next to be used again."""
        unit = max(0, registers.r12 + 1 - self.parameters.objects)
        place, step = self._object_gpa(unit), self.parameters.access_bytes
        answers = yield tuple(Read(place + at, step) for at in range(0, self.parameters.object_bytes, step))
        data = loaded(answers)
        if data is None:
            return FAULTED
        if b"".join(data) != self._object(unit, self._source(unit % self.parameters.sources)):
            return WRONG_ANSWER
        registers.r12 += 1
        registers.r13 += 1
        if registers.r13 == self.parameters.units:
            return Shutdown(0)
        registers.rip = COMPILE_RIP
        return None

    @property
    def _disk(self) -> GuestDisk:
        return GuestDisk.of(self.placement)

    @property
    def _buffer_gpa(self) -> int:
        return self.placement.base_gpa + self.parameters.objects * self.parameters.object_bytes

    def _source(self, number: int) -> bytes:
        return self.content.octets(b"source", number, 0, self.parameters.source_bytes)

    def _object(self, unit: int, source: bytes) -> bytes:
        """What the compiler makes of a source in one unit of work."""
        return self.content.octets(hashlib.sha256(source).digest(), unit, 0, self.parameters.object_bytes)

    def _object_gpa(self, unit: int) -> int:
        return self.placement.base_gpa + unit % self.parameters.objects * self.parameters.object_bytes

    def _lba(self, number: int) -> int:
        own = self.placement.vcpu * self.parameters.sources
        return (own + number) * self.parameters.source_blocks
