"""Small tenant programs and a way to run one host, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from node.cost_table import load_cost_table
from node.firmware_image import laboratory_image
from node.generation import Generation
from node.guest import Guest, GuestSpec
from node.host import Host, HostSpec
from node.operations import Compute, GuestOperation, Read, Shutdown, Sleep, Write
from node.product import PRODUCTS
from node.program import Block, Demand, Placement, ProgramFactory, ProgramSpec, Registers

MIB = 1 << 20
GIB = 1 << 30
S = 1_000_000_000
ENTRY = 0x40_0000


@dataclass(frozen=True, slots=True)
class Counting:
    """Adds up numbers in guest memory, a phase and a nap between rounds, and stops after ``rounds``.

    Memory holds the sum; RBX the round. Everything else is the specification's.
    """

    placement: Placement
    rounds: int
    made: list[int]
    """Grows with every object that is built: tests count it."""

    @property
    def entry(self) -> int:
        return ENTRY

    @property
    def demands(self) -> tuple[Demand, ...]:
        return (Demand("core", 2.0, 0.5, 0.1, 2.0), Demand("memory", 1.0, 20.0, 4.0, 4.0, 96.0))

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        return {ENTRY: self._begin, ENTRY + 1: self._add, ENTRY + 2: self._rest}

    def _begin(self, registers: Registers) -> Block:
        yield (Write(self.placement.base_gpa, bytes(8)),)
        registers.rip = ENTRY + 1
        return None

    def _add(self, registers: Registers) -> Block:
        (data,) = yield (Read(self.placement.base_gpa, 8),)
        if not isinstance(data, bytes):
            return Shutdown(2)
        total = int.from_bytes(data, "little") + registers.rbx * registers.rbx
        yield (Write(self.placement.base_gpa, total.to_bytes(8, "little")),)
        registers.rip = ENTRY + 2
        return Compute(registers.rbx % 2, 1_000_000_000)

    def _rest(self, registers: Registers) -> Block:
        registers.rbx += 1
        registers.r13 += 1
        registers.rip = ENTRY + 1
        if registers.rbx == self.rounds:
            return Shutdown(0)
        return Sleep(100_000_000)
        yield ()


@dataclass(frozen=True, slots=True)
class Scripted:
    """Issues one batch and keeps the answers where a test can see them; then naps for ever."""

    batch: tuple[GuestOperation, ...]
    answers: list[object]

    @property
    def entry(self) -> int:
        return ENTRY

    @property
    def demands(self) -> tuple[Demand, ...]:
        return ()

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        return {ENTRY: self._once, ENTRY + 1: self._nap}

    def _once(self, registers: Registers) -> Block:
        for one in self.batch:
            self.answers.extend((yield (one,)))
        registers.rip = ENTRY + 1
        return None

    def _nap(self, _: Registers) -> Block:
        return Sleep(3600 * S)
        yield ()


def counting(rounds: int, made: list[int] | None = None) -> ProgramFactory:
    """A factory of ``Counting``."""
    built = [] if made is None else made

    def build(_: ProgramSpec, placement: Placement) -> Counting:
        program = Counting(placement, rounds, built)
        built.append(id(program))
        return program

    return build


def scripted(batch: tuple[GuestOperation, ...], answers: list[object]) -> ProgramFactory:
    """A factory of ``Scripted``."""
    return lambda _, __: Scripted(batch, answers)


def new_host(
    programs: Mapping[str, ProgramFactory],
    product: str = "Milan",
    memory_bytes: int = 8 * GIB,
    min_sev_asid: int = 100,
    costs: Mapping[str, float] | None = None,
) -> Host:
    """A host with the laboratory firmware, brought up."""
    spec = HostSpec("host", PRODUCTS[product], memory_bytes, min_sev_asid, 1, 60 * S)
    table = dict(load_cost_table()) | dict(costs or {})
    return Host(spec, programs, {"auto": laboratory_image()}, table)


def guest_spec(name: str = "vm", generation: Generation = Generation.SEV_SNP, **changes: object) -> GuestSpec:
    """A small guest that runs ``toy``."""
    spec = GuestSpec(name, generation, 1, 64 * MIB, ProgramSpec("toy"), 1)
    return replace(spec, **changes)  # type: ignore[arg-type]


def launch(host: Host, spec: GuestSpec | None = None, *, running: bool = False) -> Guest:
    """Launch a VM and go on until it runs or is refused."""
    told: list[Guest] = []
    host.launch(spec or guest_spec(), told.append, running=running)
    while not told:
        host.clock.env.step()
    return told[0]


def run_until(host: Host, end_ns: int) -> None:
    """Every event before ``end_ns``."""
    while host.clock.env.peek() < end_ns:
        host.clock.env.step()


def at(host: Host, time_ns: int, action: Callable[[], None]) -> None:
    """Call ``action`` at a virtual time."""
    host.clock.env.timeout(time_ns - host.now_ns).callbacks.append(lambda _: action())
