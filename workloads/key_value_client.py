"""A client of a key-value server: it stores records of its own and checks that it gets the newest back.

A value follows from the client's key, the record's key and its version, so that
nobody else can make one that passes; the versions stand in private memory. Requests go
out a few at a time. What is not answered in time is asked again: frames may be lost,
and to store the same value twice does no harm.

    versions   one little-endian u64 for each record, from the start of the private range
    then       the memory of the network card's driver
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from node import guest_nic
from node.guest_nic import GuestNic
from node.mac_address import mac_of
from node.operations import Await, Compute, Read, Shutdown, Write
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from node.swiotlb import BounceArea
from workloads.block_outcome import FAULTED, NOBODY_ANSWERED, WRONG_ANSWER, faulted, loaded, with_devices
from workloads.key_value_messages import MOST_VALUE_BYTES, Answer, Kind, Message, parse
from workloads.keyed_content import KeyedContent
from workloads.parameters import (
    MOST_INSTRUCTIONS,
    WorkloadParameterError,
    check_placement,
    pages,
    parameters_from,
    share,
    text,
    whole,
)
from workloads.record_table import VERSION

BEGIN_RIP, ASK_RIP, HEAR_RIP = 0x40_0000, 0x40_1000, 0x40_2000

DEMAND = Demand(
    "think",
    instructions_per_cycle=1.6,
    llc_misses_per_kilo_instruction=0.8,
    tlb_misses_per_kilo_instruction=0.5,
    memory_level_parallelism=2.0,
)
"""What a client does with its answers. The laboratory's choice: not published."""


@dataclass(frozen=True, slots=True)
class ClientParameters:
    """Parameters of ``key-value-client``; the defaults fit 4 MiB and are the laboratory's choice."""

    server: str = text("server", 64)
    """The virtual machine that it asks; there the vCPU of its own number, round the server's ``server_vcpus``."""
    server_vcpus: int = whole(1, 1, 1024)
    first_key: int = whole(0, 0, 1 << 24)
    """Its records are its own: clients of one server have keys of their own. Each vCPU's follow the one before's."""
    records: int = whole(256, 1, 1 << 20)
    value_bytes: int = whole(512, 8, MOST_VALUE_BYTES, 8)
    batch: int = whole(4, 1, guest_nic.MOST_AT_ONCE)
    """Requests under way at once."""
    read_share: float = share(0.5)
    batches: int = whole(0, 0, 1 << 40)
    """Batches after the load phase until it shuts down; 0: it goes on for ever."""
    instructions_per_batch: int = whole(5_000_000_000, 0, MOST_INSTRUCTIONS)
    timeout_us: int = whole(250_000, 1_000, 1 << 40)
    """After so long without an answer it asks again."""
    most_resends: int = whole(60, 0, 1 << 20)
    """Then it gives up."""

    def __post_init__(self) -> None:
        if not self.server:
            raise WorkloadParameterError("server", "the name of a virtual machine")

    @property
    def private_bytes(self) -> int:
        """Versions, and what the network card's driver needs."""
        return pages(self.records * VERSION.size) + guest_nic.PRIVATE_BYTES

    @property
    def shared_bytes(self) -> int:
        """The card's queues and bounce buffers."""
        return guest_nic.SHARED_BYTES

    @property
    def disk_bytes(self) -> int:
        """None."""
        return 0


@dataclass(frozen=True, slots=True)
class KeyValueClient:
    """The program.

    R12 counts batches, RBX has a bit for each request of the present one that was answered, RCX counts times that it
    was called for nothing, RDX how often the batch was asked again. R13 counts the requests answered.
    """

    parameters: ClientParameters
    placement: Placement
    content: KeyedContent

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> KeyValueClient:
        """Rebuild the program whole."""
        parameters = parameters_from(ClientParameters, spec.parameters)
        check_placement(parameters, placement)
        return cls(parameters, placement, KeyedContent.of(placement, spec.name))

    @property
    def entry(self) -> int:
        """RIP of the first block."""
        return BEGIN_RIP

    @property
    def demands(self) -> tuple[Demand, ...]:
        """One steady phase."""
        size = self.parameters.private_bytes
        return (replace(DEMAND, written_set_bytes=size, read_set_bytes=size),)

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {
            BEGIN_RIP: lambda registers: with_devices(self._begin(registers)),
            ASK_RIP: lambda registers: with_devices(self._ask(registers)),
            HEAR_RIP: lambda registers: with_devices(self._hear(registers)),
        }

    def _begin(self, registers: Registers) -> Block:
        """No record is stored yet; set the network card up."""
        answers = yield (Write(self.placement.base_gpa, bytes(pages(self.parameters.records * VERSION.size))),)
        if faulted(answers):
            return FAULTED
        yield from self._nic.area.open()
        yield from self._nic.start()
        registers.rip = ASK_RIP
        return None

    def _ask(self, registers: Registers) -> Block:
        """Send what is not answered yet of the present batch."""
        wanted = self._wanted(registers.r12)
        missing = [place for place in range(len(wanted)) if not registers.rbx >> place & 1]
        answers = yield tuple(Read(self._version_gpa(wanted[place][0]), VERSION.size) for place in missing)
        stored = loaded(answers)
        if stored is None:
            return FAULTED
        frames = []
        for place, data in zip(missing, stored, strict=True):
            key, kind = wanted[place]
            value = self._value(key, VERSION.unpack(data)[0] + 1) if kind is Kind.PUT else b""
            number = registers.r12 * guest_nic.MOST_AT_ONCE + place
            frames.append(
                Message(self._server, self._own, number, kind, Answer.REQUEST, self._first_key + key, value).pack()
            )
        yield from self._nic.send(frames)
        registers.rip = HEAR_RIP
        return self._wait

    def _hear(self, registers: Registers) -> Block:
        """Take answers in and check them."""
        wanted = self._wanted(registers.r12)
        frames = yield from self._nic.receive(guest_nic.MOST_AT_ONCE)
        if not frames:
            return self._ask_again(registers)
        registers.rcx = 0
        for answer in map(parse, frames):
            if answer is None or (answer.to, answer.sender) != (self._own, self._server):
                continue
            batch, place = divmod(answer.number, guest_nic.MOST_AT_ONCE)
            if batch != registers.r12 or place >= len(wanted) or registers.rbx >> place & 1:
                continue  # It was asked twice, and this is the second answer.
            key, kind = wanted[place]
            (stored,) = yield (Read(self._version_gpa(key), VERSION.size),)
            if not isinstance(stored, bytes):
                return FAULTED
            (version,) = VERSION.unpack(stored)
            value = self._value(key, version) if kind is Kind.GET else b""
            if (answer.kind, answer.answer, answer.key, answer.value) != (
                kind, Answer.DONE, self._first_key + key, value,
            ):  # fmt: skip
                return WRONG_ANSWER
            if kind is Kind.PUT:
                done = yield (Write(self._version_gpa(key), VERSION.pack(version + 1)),)
                if faulted(done):
                    return FAULTED
            registers.rbx |= 1 << place
        if registers.rbx != (1 << len(wanted)) - 1:
            return self._wait
        return self._next_batch(registers, len(wanted))

    def _next_batch(self, registers: Registers, answered: int) -> Compute | Shutdown | None:
        registers.r13 += answered
        registers.r12 += 1
        registers.rbx = registers.rdx = 0
        if self.parameters.batches and registers.r12 == self._load_batches + self.parameters.batches:
            return Shutdown(0)
        registers.rip = ASK_RIP
        if registers.r12 <= self._load_batches or not self.parameters.instructions_per_batch:
            return None
        return Compute(0, self.parameters.instructions_per_batch)

    def _ask_again(self, registers: Registers) -> Await | Shutdown | None:
        """Nothing was there: it was called for something that it took already, or its time was over."""
        registers.rcx += 1
        if registers.rcx < 2:
            return self._wait
        registers.rcx = 0
        registers.rdx += 1
        if registers.rdx > self.parameters.most_resends:
            return NOBODY_ANSWERED
        registers.rip = ASK_RIP
        return None

    @property
    def _wait(self) -> Await:
        return Await(self.parameters.timeout_us * 1000)

    @property
    def _load_batches(self) -> int:
        """Batches in which each record is stored for the first time."""
        return -(-self.parameters.records // self.parameters.batch)

    def _wanted(self, batch: int) -> list[tuple[int, Kind]]:
        """The requests of a batch, each for another record, numbered from 0."""
        parameters = self.parameters
        if batch < self._load_batches:
            first = batch * parameters.batch
            return [(key, Kind.PUT) for key in range(first, min(first + parameters.batch, parameters.records))]
        draws = self.content.draws(b"requests", batch, parameters.batch)
        keys = ((draws & np.uint64(0xFFFF_FFFF)) % np.uint64(parameters.records)).tolist()
        puts = ((draws >> np.uint64(32)) >= np.uint64(int(parameters.read_share * (1 << 32)))).tolist()
        chosen = {key: Kind.PUT if put else Kind.GET for key, put in zip(keys, puts, strict=True)}
        return list(chosen.items())

    def _value(self, key: int, version: int) -> bytes:
        return self.content.octets(b"value", key, version, self.parameters.value_bytes)

    def _version_gpa(self, key: int) -> int:
        return self.placement.base_gpa + key * VERSION.size

    @property
    def _first_key(self) -> int:
        return self.parameters.first_key + self.placement.vcpu * self.parameters.records

    @property
    def _own(self) -> bytes:
        return mac_of(self.placement.vm, self.placement.vcpu)

    @property
    def _server(self) -> bytes:
        return mac_of(self.parameters.server, self.placement.vcpu % self.parameters.server_vcpus)

    @property
    def _nic(self) -> GuestNic:
        versions = pages(self.parameters.records * VERSION.size)
        return GuestNic(BounceArea.of(self.placement), self.placement.vcpu, self.placement.base_gpa + versions)
