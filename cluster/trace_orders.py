"""Orders for the machines of a trace: a window of it, cut to the scenario's sizes and given generations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.control_plane import Order
from cluster.scenario import Scenario, ScenarioError, TraceMix
from cluster.units import DURATION
from node.generation import Generation
from node.guest import GuestSpec
from node.guest_memory_map import SMALLEST_GUEST_BYTES
from node.program import ProgramSpec
from psp.system_bus import LARGE_PAGE_BYTES
from workloads.trace import load_trace
from workloads.trace_generator import SAMPLE_MS, TraceShape, generate_trace
from workloads.trace_player import player_parameters
from workloads.trace_vm import NS_PER_MS, TraceVm

GENERATED = "generated"
PROGRAM = "trace-player"
SLICE_BYTES = 32 << 20
"""Memory a trace's machine gets for each vCPU at least, whatever the trace says."""


def trace_orders(scenario: Scenario) -> list[Order]:
    """The trace's machines as orders, by arrival. Raises TraceError for a broken trace."""
    mix = scenario.trace
    if mix is None:
        return []
    machines = list(_machines(scenario, mix))
    if len(machines) < mix.vms:
        expected = f"at most the {len(machines)} machines that the trace's window has"
        raise ScenarioError(scenario.name, "trace.vms", expected, str(mix.vms))
    return [
        _order(machine, generation, scenario, mix)
        for machine, generation in zip(machines[: mix.vms], _generations(mix.generations), strict=False)
    ]


def _machines(scenario: Scenario, mix: TraceMix) -> Iterator[TraceVm]:
    length_ns = max(1, round(scenario.duration / mix.time_scale))
    if mix.source == GENERATED:
        if length_ns < SAMPLE_MS * NS_PER_MS:
            least = f"at least {DURATION.about(SAMPLE_MS * NS_PER_MS * mix.time_scale)} with a generated trace"
            raise ScenarioError(scenario.name, "duration", least, DURATION.format(scenario.duration))
        shape = TraceShape(vms=mix.vms, span_ms=length_ns // NS_PER_MS)
        machines = generate_trace(scenario.seed, shape)
    else:
        machines = load_trace(Path(mix.source))
    for machine in machines:
        part = machine.window(mix.start, length_ns)
        if part is not None:
            yield part.scaled(mix.time_scale)


def _generations(weights: Mapping[Generation, int]) -> Iterator[Generation]:
    """Generations in turn, so that every prefix is as close to the weights as whole machines allow."""
    given = dict.fromkeys(weights, 0)
    total = sum(weights.values())
    count = 0
    while total:
        count += 1
        chosen = max(weights, key=lambda one: weights[one] * count - given[one] * total)
        given[chosen] += 1
        yield chosen


def _order(machine: TraceVm, generation: Generation, scenario: Scenario, mix: TraceMix) -> Order:
    vcpus = min(machine.vcpus, mix.max_vcpus)
    least = SMALLEST_GUEST_BYTES + vcpus * SLICE_BYTES
    memory = max(least, min(machine.memory_bytes, mix.max_memory))
    memory = -(-memory // LARGE_PAGE_BYTES) * LARGE_PAGE_BYTES
    program = ProgramSpec(PROGRAM, player_parameters(machine))
    guest = GuestSpec(f"trace-{machine.name}", generation, vcpus, memory, program, scenario.seed)
    return Order(guest, machine.arrival_ns, machine.duration_ns)
