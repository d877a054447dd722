"""``sevfleet bench idle``: 100,000 idle machines of three generations: bytes each, and time to start them."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

from cluster.bench.resident_memory import peak_bytes, resident_bytes
from cluster.coordinator import Coordinator
from cluster.figure import Figure
from cluster.fleet import build_fleet
from cluster.host_entity import build_host
from cluster.inline_layout import InlineLayout
from cluster.scenario import Scenario

VMS = 100_000
VMS_PER_HOST = 90
MOST_BYTES = 3_072.0
MOST_S = 15.0
SIMGRID_S, SIMGRID_BYTES, SIMPY_BYTES = 17.7, 61_000.0, 879.0
SIMGRID_MIB = 6.1e9 / (1 << 20)
"""SimGrid 4.1 with the smallest stacks, and a bare process of SimPy (2026-11)."""
_GENERATIONS = ("PLAIN", "SEV", "SEV_SNP")


def run() -> Iterator[Figure]:
    """Start them, let an hour pass, and look at what that took."""
    gc.collect()
    before = resident_bytes()
    began = time.perf_counter()
    scenario = fleet(VMS)
    fleet_ = build_fleet(scenario)
    layout = InlineLayout()
    layout.start(build_host, [(order.spec.name, order.pack()) for order in fleet_.orders])
    started = time.perf_counter() - began
    outcome = Coordinator(layout, fleet_.control, scenario.control_plane_latency, scenario.duration).run()
    ran = time.perf_counter() - began - started
    each = (resident_bytes() - before) / VMS
    yield Figure("idle: 100,000 machines started", started, "s", MOST_S, "the most it should take")
    yield Figure("idle: 100,000 machines started, beside SimGrid", started, "s", SIMGRID_S, "SimGrid 4.1")
    yield Figure("idle: memory of each", each, "byte", MOST_BYTES, "the most it should take")
    yield Figure("idle: memory of each, beside SimGrid", each, "byte", SIMGRID_BYTES, "SimGrid 4.1")
    yield Figure("idle: memory of each, beside SimPy", each, "byte", SIMPY_BYTES, "a process of SimPy")
    yield Figure("idle: an hour of their lives", ran, "s")
    yield Figure("idle: events", outcome.events / (started + ran), "1/s")
    yield Figure("idle: round trips", outcome.round_trips, "round trips")
    yield Figure("idle: acts of the control plane", outcome.control_plane_acts, "acts")
    yield Figure("idle: most memory of this process", peak_bytes() / (1 << 20), "MiB", SIMGRID_MIB, "SimGrid 4.1")
    name, order = next((one.spec.name, one.pack()) for one in fleet_.orders if one.guests)
    began = time.perf_counter()
    build_host(order).collect(scenario.duration)
    yield Figure(f"idle: {name} made real by a look, with {VMS_PER_HOST} machines", time.perf_counter() - began, "s")
    layout.close()


def fleet(vms: int) -> Scenario:
    """Hosts of Milan with 90 machines each."""
    hosts = -(-vms // VMS_PER_HOST)
    counts = [vms // 3 + (number < vms % 3) for number in range(3)]
    return Scenario.parse({
        "schema": 1,
        "name": "bench-idle",
        "duration": "1 h",
        "hosts": [{"name": "host", "product": "Milan", "count": hosts, "memory": "64 GiB", "min_sev_asid": 200}],
        "vms": [
            {"name": f"vm-{generation.lower().replace('_', '-')}", "count": count, "generation": generation,
             "memory": "512 MiB", "workload": "idle", "start": "running"}
            for generation, count in zip(_GENERATIONS, counts, strict=True)
            if count
        ],
    })  # fmt: skip
