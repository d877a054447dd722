"""``sevfleet bench kernel``: phase completions per second of wall time and core, contention solved anew at each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from cluster.figure import Figure
from node.cost_table import load_cost_table
from node.firmware_image import laboratory_image
from node.generation import Generation
from node.guest import GuestSpec
from node.host import Host, HostSpec
from node.operations import Compute
from node.product import PRODUCTS
from node.program import Block, Demand, Placement, ProgramSpec, Registers

HOSTS = 1000
VMS_PER_HOST = 20
VIRTUAL_NS = 60_000_000_000
TARGET_PER_S = 40_000.0
_NAME = "compute-only"
_ENTRY = 0x40_0000
_LEAST, _SPREAD = 4_000_000_000, 8_000_000_000


@dataclass(frozen=True, slots=True)
class ComputeOnly:
    """A program of nothing but phases: two demands in turn, lengths of its own."""

    placement: Placement

    @property
    def entry(self) -> int:
        """RIP of its only block."""
        return _ENTRY

    @property
    def demands(self) -> tuple[Demand, ...]:
        """A bandwidth-heavy and a core-heavy phase."""
        return (Demand("heavy", 1.2, 8.0, 1.0, 6.0, 96.0), Demand("light", 2.4, 0.5, 0.2, 2.0))

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """The block by RIP."""
        return {_ENTRY: self._phase}

    def _phase(self, registers: Registers) -> Block:
        registers.r13 += 1
        # Lengths that differ from VM to VM and phase to phase; a generator of quality would cost more than the kernel.
        length = _LEAST + (registers.r13 * 2_654_435_761 + self.placement.seed * 40_503) % _SPREAD
        return Compute(registers.r13 % 2, length)
        yield ()


def build(_: ProgramSpec, placement: Placement) -> ComputeOnly:
    """Program factory."""
    return ComputeOnly(placement)


def hosts(count: int, vms: int) -> list[Host]:
    """Hosts whose VMs run already."""
    costs, image = dict(load_cost_table()), laboratory_image()
    made = []
    for number in range(count):
        spec = HostSpec(f"host-{number}", PRODUCTS["Genoa"], 64 << 30, 99, 1, VIRTUAL_NS)
        host = Host(spec, {_NAME: build}, {"auto": image}, costs)
        for vm in range(vms):
            guest = GuestSpec(f"vm-{number}-{vm}", Generation.PLAIN, 1, 64 << 20, ProgramSpec(_NAME), number * vms + vm)
            host.launch(guest, lambda _: None, running=True)
        made.append(host)
    return made


def run() -> Iterator[Figure]:
    """Build 1,000 hosts with 20 VMs each and let them compute for a minute of virtual time."""
    began = time.perf_counter()
    fleet = hosts(HOSTS, VMS_PER_HOST)
    yield Figure("kernel: VMs put in place", HOSTS * VMS_PER_HOST / (time.perf_counter() - began), "1/s")
    wall, core = time.perf_counter(), time.process_time()
    for host in fleet:
        env = host.clock.env
        peek, step = env.peek, env.step
        while peek() < VIRTUAL_NS:
            step()
    wall, core = time.perf_counter() - wall, time.process_time() - core
    done = sum(host.vcpus.phase_completions for host in fleet)
    yield Figure("kernel: phase completions", done / max(wall, core), "1/s", TARGET_PER_S, "the target")
