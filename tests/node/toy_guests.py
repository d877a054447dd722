"""Toy programs of short blocks, and hosts to run them on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

from node.cost_table import load_cost_table
from node.firmware_image import laboratory_image
from node.generation import Generation
from node.guest import Guest, GuestSpec
from node.host import Host, HostSpec
from node.host_kind import HostKind
from node.hypervisor import Hypervisor
from node.hypervisor_port import HypervisorFactory
from node.migration_loads import NO_STREAMS, StreamRates
from node.operations import BLOCK_BYTES, BlockRead, BlockWrite, Compute, Read, Shutdown, Sleep, Write
from node.platform import AS_USUAL, Platform
from node.product import PRODUCTS
from node.program import Block, Demand, Placement, ProgramFactory, ProgramSpec, Registers

MIB = 1 << 20
SECOND = 10**9
MIX, DISK, NEXT, DONE = 0x40_0000, 0x40_1000, 0x40_2000, 0x40_3000
RECORD = 100
"""Bytes of a record; not a multiple of the cipher's block, so that stores overlap."""
RECORDS = 7
COSTS = dict(load_cost_table())
IMAGE = laboratory_image()
KIND = HostKind(2.45e9)
"""A host without a mode and an RMP."""
GENERATIONS = (Generation.PLAIN, Generation.SEV, Generation.SEV_ES, Generation.SEV_SNP)
DEMANDS = (
    Demand("busy", 2.0, 1.0, 0.5, 2.0),
    Demand("hungry", 1.0, 20.0, 2.0, 4.0, 96.0, exits_per_mega_instruction=5.0),
)


def record(seed: int, slot: int, version: int) -> bytes:
    return hashlib.shake_128(f"{seed} {slot} {version}".encode()).digest(RECORD)


@dataclass(frozen=True, slots=True)
class Ledger:
    """Keeps versioned records in memory and checks each before it writes the next; then it rests."""

    placement: Placement
    units: int

    entry = MIX
    demands = DEMANDS

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        return {MIX: self._mix, DISK: self._disk, NEXT: self._next, DONE: self._done}

    def _mix(self, registers: Registers) -> Block:
        version, slot = divmod(registers.r13, RECORDS)
        gpa = self.placement.base_gpa + 4096 - RECORD // 2 + slot * RECORD
        (before,) = yield (Read(gpa, RECORD),)
        if version and before != record(self.placement.seed, slot, version):
            return Shutdown(1)
        new = record(self.placement.seed, slot, version + 1)
        yield (Write(gpa, new),)
        (after,) = yield (Read(gpa, RECORD),)
        if after != new:
            return Shutdown(1)
        registers.rip = DISK
        return Compute(registers.r13 % 2, 1000 + 977 * slot)

    def _disk(self, registers: Registers) -> Block:
        gpa = self.placement.shared_gpa
        data = record(self.placement.seed, registers.r13, 0)
        lba = 1000 * self.placement.vcpu + registers.r13
        yield (Write(gpa, data, private=False),)
        wrote, read = yield (BlockWrite(lba, 1, gpa), BlockRead(lba, 1, gpa + BLOCK_BYTES))
        (back,) = yield (Read(gpa + BLOCK_BYTES, RECORD, private=False),)
        if (wrote, read, back) != (0, 0, data):
            return Shutdown(2)
        registers.rip = NEXT
        return Sleep(1000 * (1 + registers.r13 % 3))

    def _next(self, registers: Registers) -> Block:
        registers.r13 += 1
        registers.rbx = (registers.rbx * 31 + registers.r13) % (1 << 64)
        registers.rip = DONE if registers.r13 == self.units else MIX
        return None
        yield ()

    def _done(self, _: Registers) -> Block:
        return Sleep(10**18)
        yield ()


def ledger(spec: ProgramSpec, placement: Placement) -> Ledger:
    return Ledger(placement, int(dict(spec.parameters)["units"]))


Step = Callable[[Registers], Generator]


@dataclass(frozen=True, slots=True)
class Script:
    """A program of one block that a test hands in."""

    placement: Placement
    step: Callable[[Placement, Registers], Block]

    entry = MIX
    demands = DEMANDS

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        return {MIX: lambda registers: self.step(self.placement, registers)}


def script(step: Callable[[Placement, Registers], Block]) -> ProgramFactory:
    return lambda _, placement: Script(placement, step)


def rest(_: Placement, __: Registers) -> Block:
    """Do nothing for ever."""
    yield ()
    return Sleep(10**18)


def busy(_: Placement, registers: Registers) -> Block:
    """Compute for ever, one unit of work a phase."""
    registers.r13 += 1
    return Compute(registers.r13 % 2, 1_000_000 + 1000 * (registers.r13 % 7))
    yield ()


def make_host(
    programs: Mapping[str, ProgramFactory] | None = None,
    product: str = "Milan",
    memory_bytes: int = 4 << 30,
    min_sev_asid: int = 100,
    costs: Mapping[str, float] = COSTS,
    image=IMAGE,
    platform: Platform = AS_USUAL,
    name: str = "host",
    streams: StreamRates = NO_STREAMS,
    hypervisor: HypervisorFactory = Hypervisor,
) -> Host:
    known = {"ledger": ledger, "rest": script(rest), "busy": script(busy), **(programs or {})}
    machine = PRODUCTS[product]
    spec = HostSpec(name, machine, memory_bytes, min_sev_asid, 7, 60 * SECOND, platform=platform, streams=streams)
    return Host(spec, known, {"auto": image}, costs, hypervisor=hypervisor)


def guest_spec(
    name: str, generation: Generation, program: str = "rest", vcpus: int = 1, memory_bytes: int = 64 * MIB, **parameters
) -> GuestSpec:
    return GuestSpec(name, generation, vcpus, memory_bytes, ProgramSpec(program, tuple(parameters.items())), 11)


def start(host: Host, *args, **kwargs) -> Guest:
    """A VM that runs already, through its start-up code."""
    spec = guest_spec(*args, **kwargs)
    host.launch(spec, lambda _: None, running=True)
    return host.guests[spec.name]


def run(host: Host, until_ns: int = 100 * SECOND) -> None:
    while host.clock.env.peek() < until_ns:
        host.clock.env.step()


def look(host: Host, guest: Guest, gpa: int, length: int, private: bool = True):
    """What the guest itself sees at an address."""
    (answer,) = host.board.execute_guest(host.board.vmcb(guest.spec.name, 0), (Read(gpa, length, private),))
    return answer


def spa(host: Host, guest: Guest, gpa: int) -> int:
    return host.board.vmcb(guest.spec.name, 0).nested.translate(gpa, 1)[0][0]


def final_state(host, guest, length=MIB):
    """Registers without the two that hold what is left of a phase, and memory, of a VM that is done."""
    registers = [
        {name: getattr(vcpu.registers, name) for name in Registers.__slots__ if name not in ("r14", "r15")}
        for vcpu in guest.vcpus
    ]
    memory = [
        look(host, guest, place.base_gpa, length) + look(host, guest, place.shared_gpa, 8192, private=False)
        for place in (guest.spec.memory.placement(guest.spec.name, one.index, 11) for one in guest.vcpus)
    ]
    host.close(host.now_ns)
    return registers, memory, guest.units_of_work
