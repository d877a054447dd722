"""A toy executor: registers, a dictionary of bytes for memory, and a counter for time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import pytest

from node.operations import (
    BLOCK_BYTES,
    Answer,
    BlockRead,
    BlockWrite,
    Compute,
    Copy,
    Fault,
    FaultKind,
    GuestOperation,
    Read,
    Shutdown,
    Sleep,
    Write,
)
from node.program import Placement, ProgramSpec, Registers
from workloads.library import PROGRAMS

PLACEMENT = Placement("vm-7", 1, 0x0240_0000, 4 << 20, 0x0210_0000, 512 << 10, 42, book_gpa=0x0100_0000)
BOOK = range(0x0100_0000, 0x0100_1000)
CHUNK = 4096


@dataclass
class Memory:
    """Guest memory: private and shared are two views that never agree. Unwritten memory holds noise."""

    placement: Placement
    chunks: dict[tuple[bool, int], bytearray] = field(default_factory=dict)
    blocks: dict[int, bytes] = field(default_factory=dict)
    bad: range = range(0)
    operations: int = 0
    private_bytes: int = 0
    book: bytearray = field(default_factory=lambda: bytearray(b"\xa5" * len(BOOK)))
    """The kernel's, of bounce buffers."""
    copied: int = 0
    disk_status: int = 0

    def access(self, gpa: int, length: int, private: bool) -> Iterator[tuple[bytearray, int, int]]:
        own = self.placement
        if private and gpa in BOOK:
            assert gpa + length <= BOOK.stop
            yield self.book, gpa - BOOK.start, length
            return
        base, size = (own.base_gpa, own.length) if private else (own.shared_gpa, own.shared_length)
        assert base <= gpa <= gpa + length <= base + size, "a program stays within its placement"
        while length:
            index, start = divmod(gpa, CHUNK)
            part = min(length, CHUNK - start)
            yield self.chunks.setdefault((private, index), bytearray(b"\xa5" * CHUNK)), start, part
            gpa, length = gpa + part, length - part

    def load(self, gpa: int, length: int, private: bool) -> bytes:
        return b"".join(bytes(chunk[at : at + part]) for chunk, at, part in self.access(gpa, length, private))

    def store(self, gpa: int, data: bytes, private: bool) -> None:
        done = 0
        for chunk, at, part in self.access(gpa, len(data), private):
            chunk[at : at + part] = data[done : done + part]
            done += part

    def execute(self, one: GuestOperation) -> Answer:
        self.operations += 1
        gpa = one.source if isinstance(one, Copy) else one.gpa
        if gpa in self.bad:
            return Fault(FaultKind.NESTED_PAGE_FAULT, gpa)
        match one:
            case Copy():
                data = self.load(one.source, one.length, one.source_private)
                self.store(one.target, data, one.target_private)
                self.copied += len(data)
                return data
            case Read():
                self.private_bytes += one.length if one.private else 0
                return self.load(one.gpa, one.length, one.private)
            case Write():
                self.private_bytes += len(one.data) if one.private else 0
                self.store(one.gpa, one.data, one.private)
                return None
            case BlockRead():
                for block in range(one.blocks):
                    data = self.blocks.get(one.lba + block, bytes(BLOCK_BYTES))
                    self.store(one.gpa + block * BLOCK_BYTES, data, private=not self.placement.bounces)
                return self.disk_status
            case BlockWrite():
                for block in range(one.blocks):
                    at = one.gpa + block * BLOCK_BYTES
                    self.blocks[one.lba + block] = self.load(at, BLOCK_BYTES, private=not self.placement.bounces)
                return self.disk_status
        raise AssertionError(one)

    def flip(self, gpa: int) -> None:
        index, at = divmod(gpa, CHUNK)
        self.chunks[True, index][at] ^= 0x10

    def image(self) -> Mapping[tuple[bool, int], bytes]:
        return {place: bytes(chunk) for place, chunk in self.chunks.items()}


@dataclass
class Machine:
    """One vCPU. ``blocks_done`` counts the blocks that ran to their end."""

    spec: ProgramSpec
    placement: Placement = PLACEMENT
    memory: Memory = None
    registers: Registers = None
    blocks_done: int = 0
    virtual_ns: float = 0.0
    shutdown: Shutdown | None = None

    def __post_init__(self) -> None:
        self.rebuild()
        if self.memory is None:
            self.memory = Memory(self.placement)
            self.registers = Registers(self.program.entry)

    def rebuild(self) -> None:
        self.program = PROGRAMS[self.spec.name](self.spec, self.placement)

    def step(self) -> None:
        """Run one block, and what it ends with in no time but the virtual."""
        block = self.program.blocks[self.registers.rip](self.registers)
        try:
            batch = next(block)
            while True:
                assert isinstance(batch, tuple)
                batch = block.send(tuple(self.memory.execute(one) for one in batch))
        except StopIteration as done:
            ending = done.value
        self.blocks_done += 1
        match ending:
            case Compute():
                assert ending.instructions > 0
                self.virtual_ns += ending.instructions / per_ns(self.program.demands[ending.demand])
            case Sleep():
                assert ending.duration_ns > 0
                self.virtual_ns += ending.duration_ns
            case Shutdown():
                self.shutdown = ending

    def run(self, blocks: int = 1 << 30, until_ns: float = float("inf")) -> "Machine":
        while self.shutdown is None and self.blocks_done < blocks and self.virtual_ns < until_ns:
            self.step()
        return self

    def state(self) -> tuple[object, ...]:
        registers = {name: getattr(self.registers, name) for name in Registers.__slots__}
        assert all(0 <= value < 1 << 64 for value in registers.values())
        return registers, self.memory.image(), self.memory.blocks, self.shutdown


def per_ns(demand) -> float:
    """Instructions a nanosecond on an idle host at 2.45 GHz with 103 ns to memory."""
    ns = 1 / (demand.instructions_per_cycle * 2.45)
    ns += demand.llc_misses_per_kilo_instruction / 1000 / demand.memory_level_parallelism * 103.4
    ns += demand.tlb_misses_per_kilo_instruction / 1000 * 26.9
    rate = 1 / ns
    return min(rate, demand.max_instructions_per_s * 1e-9) if demand.max_instructions_per_s else rate


@pytest.fixture(scope="session")
def machine():
    """Make a machine: ``machine(name, **parameters)``; ``bounces`` as in a placement."""

    def make(name: str, *, bounces: bool = True, **parameters) -> Machine:
        return Machine(ProgramSpec(name, tuple(sorted(parameters.items()))), replace(PLACEMENT, bounces=bounces))

    return make
