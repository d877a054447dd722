"""A key-value store with clients: they ask over the network, and it answers from its table of records.

The table is ``record_table``'s, in private memory; each record carries its key, its
version and a checksum that only this program can make. A request is taken out of
the network card's buffer once and believed in nothing but its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace

from node import guest_nic
from node.guest_nic import GuestNic
from node.operations import Answer as BoardAnswer
from node.operations import Await, Compute, GuestOperation, Read, Write
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from node.swiotlb import BounceArea
from workloads.block_outcome import FAULTED, WRONG_ANSWER, faulted, with_devices
from workloads.key_value_messages import MOST_VALUE_BYTES, Answer, Kind, Message, parse
from workloads.keyed_content import KeyedContent
from workloads.parameters import MOST_INSTRUCTIONS, check_placement, parameters_from, whole
from workloads.record_table import HEADER, VERSION, RecordTable, TableDamaged, TableFaulted, table_bytes

FORMAT_RIP, OPEN_RIP, SERVE_RIP = 0x40_0000, 0x40_1000, 0x40_2000
_FOR_EVER_NS = 10**17

DEMAND = Demand(
    "answer",
    instructions_per_cycle=1.2,
    llc_misses_per_kilo_instruction=4.0,
    tlb_misses_per_kilo_instruction=2.0,
    memory_level_parallelism=2.0,
    bytes_per_llc_miss=80.0,
    llc_accesses_per_kilo_instruction=12.0,
    llc_working_set_bytes=12 << 20,
)
"""Pointer chasing; exits and copies are those of the requests themselves. The laboratory's choice: not published."""


@dataclass(frozen=True, slots=True)
class ServerParameters:
    """Parameters of ``key-value-server``; the defaults fit 4 MiB and are the laboratory's choice."""

    records: int = whole(2048, 1, 1 << 24)
    value_bytes: int = whole(512, 8, MOST_VALUE_BYTES, 8)
    """Length of every value; a client's must be the same."""
    instructions_per_request: int = whole(20_000, 0, MOST_INSTRUCTIONS)

    @property
    def private_bytes(self) -> int:
        """The table, and what the network card's driver needs."""
        return table_bytes(self.records, self.value_bytes) + guest_nic.PRIVATE_BYTES

    @property
    def shared_bytes(self) -> int:
        """The card's queues and bounce buffers."""
        return guest_nic.SHARED_BYTES

    @property
    def disk_bytes(self) -> int:
        """None."""
        return 0


_Answering = Generator[tuple[GuestOperation, ...], tuple[BoardAnswer, ...], Message]


@dataclass(frozen=True, slots=True)
class KeyValueServer:
    """The program. R12 counts bytes cleared, R13 the requests answered."""

    parameters: ServerParameters
    placement: Placement
    content: KeyedContent

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> KeyValueServer:
        """Rebuild the program whole."""
        parameters = parameters_from(ServerParameters, spec.parameters)
        check_placement(parameters, placement)
        return cls(parameters, placement, KeyedContent.of(placement, spec.name))

    @property
    def entry(self) -> int:
        """RIP of the first block."""
        return FORMAT_RIP

    @property
    def demands(self) -> tuple[Demand, ...]:
        """One steady phase."""
        size = self.parameters.private_bytes
        return (replace(DEMAND, written_set_bytes=size, read_set_bytes=size),)

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {
            FORMAT_RIP: self._format,
            OPEN_RIP: lambda registers: with_devices(self._open(registers)),
            SERVE_RIP: lambda registers: with_devices(self._serve(registers)),
        }

    def _format(self, registers: Registers) -> Block:
        """Clear the table."""
        stop, writes = self._table.clearing(registers.r12)
        answers = yield writes
        if faulted(answers):
            return FAULTED
        registers.r12 = stop
        if stop == self._table.length:
            registers.rip = OPEN_RIP
        return None

    def _open(self, registers: Registers) -> Block:
        """Set the network card up."""
        yield from self._nic.area.open()
        yield from self._nic.start()
        registers.rip = SERVE_RIP
        return None

    def _serve(self, registers: Registers) -> Block:
        """Answer what has come, else wait for more."""
        frames = yield from self._nic.receive(guest_nic.MOST_AT_ONCE)
        if not frames:
            return Await(_FOR_EVER_NS)
        answers = []
        try:
            for request in map(parse, frames):
                if request is not None and request.answer is Answer.REQUEST:
                    answer = yield from self._answer(request)
                    answers.append(answer.pack())
        except TableDamaged:
            return WRONG_ANSWER
        except TableFaulted:
            return FAULTED
        if not answers:
            return None
        yield from self._nic.send(answers)
        registers.r13 += len(answers)
        if not self.parameters.instructions_per_request:
            return None
        return Compute(0, self.parameters.instructions_per_request * len(answers))

    def _answer(self, request: Message) -> _Answering:
        key, table = request.key, self._table
        length = self.parameters.value_bytes if request.kind is Kind.PUT else 0
        if key >= table.records or len(request.value) != length:
            return request.answered(Answer.REFUSED)
        (stored,) = yield (Read(table.version_gpa(key), VERSION.size),)
        if not isinstance(stored, bytes):
            raise TableFaulted
        (version,) = VERSION.unpack(stored)
        if request.kind is Kind.GET and not version:
            return request.answered(Answer.ABSENT)
        gpa, record = (yield from table.find([key], insert=not version))[key]
        if version and not table.is_current(key, version, record):
            raise TableDamaged
        if request.kind is Kind.GET:
            return request.answered(Answer.DONE, record[HEADER.size :])
        done = yield (
            Write(gpa, table.record(key, version + 1, request.value)),
            Write(table.version_gpa(key), VERSION.pack(version + 1)),
        )
        if faulted(done):
            raise TableFaulted
        return request.answered(Answer.DONE)

    @property
    def _table(self) -> RecordTable:
        return RecordTable(
            self.placement.base_gpa, self.parameters.records, self.parameters.value_bytes, self.content
        )

    @property
    def _nic(self) -> GuestNic:
        return GuestNic(
            BounceArea.of(self.placement), self.placement.vcpu, self.placement.base_gpa + self._table.length
        )
