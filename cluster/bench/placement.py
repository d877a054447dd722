"""``sevfleet bench placement``: first fit of up to 100,000 machines on 10,000 hosts, and an hour of their lives.

The scenario of DSLab's own benchmark: hosts of 144 CPUs and 204,800 MB, machines of 1 to 8 CPUs and 512 to
2,048 MB. All are simulated: their launches are recorded, and made real where somebody looks at them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from cluster.bench.resident_memory import peak_bytes
from cluster.coordinator import Coordinator, CoordinatorResult
from cluster.errors import ToolError
from cluster.figure import Figure
from cluster.fleet import build_fleet
from cluster.host_entity import build_host
from cluster.inline_layout import InlineLayout
from cluster.scenario import Scenario

SIZES = ((100, 1_000), (1_000, 10_000), (10_000, 100_000))
CPUS = 144
HOST_MIB = 204_800
MOST_S = 10.0
PEERS_S = {1_000: (0.0085, 0.34), 10_000: (0.62, 0.92), 100_000: (130.5, 43.9)}
"""DSLab's and CloudSim Plus' time for the same, on two cores (2026-11)."""
PEERS_MIB = {"DSLab": 74.0 * 1e6 / (1 << 20), "CloudSim Plus": 1.13e9 / (1 << 20)}
"""Their largest resident sets, at the largest size."""
_PRODUCT, _THREADS = "Naples", 64
_SHAPES = [(cpus, mib) for cpus in range(1, 9) for mib in range(512, 2049, 192)]


def run() -> Iterator[Figure]:
    """Place and simulate each size."""
    for hosts, vms in SIZES:
        dslab, cloudsim = PEERS_S[vms]
        took_s, used, outcome = placed(hosts, vms)
        what = f"placement: {vms:,} machines on {hosts:,} hosts"
        if vms == SIZES[-1][1]:
            yield Figure(what, took_s, "s", MOST_S, "the most it should take")
        yield Figure(f"{what}, beside DSLab", took_s, "s", dslab, "DSLab")
        yield Figure(f"{what}, beside CloudSim Plus", took_s, "s", cloudsim, "CloudSim Plus")
        yield Figure(f"{what}, hosts in use", used, "hosts")
        yield Figure(f"{what}, events", outcome.events / took_s, "1/s")
        yield Figure(f"{what}, round trips", outcome.round_trips, "round trips")
        yield Figure(f"{what}, acts of the control plane", outcome.control_plane_acts, "acts")
    most = peak_bytes() / (1 << 20)
    for peer, mib in PEERS_MIB.items():
        yield Figure(f"placement: most memory of this process, beside {peer}", most, "MiB", mib, peer)


def placed(hosts: int, vms: int) -> tuple[float, int, CoordinatorResult]:
    """Seconds that a run takes from its scenario on, hosts with machines, and how the run went.

    Hosts that rest have no events before somebody looks. Raises ToolError if a machine has no place.
    """
    scenario = fleet(hosts, vms)
    began = time.perf_counter()
    fleet_ = build_fleet(scenario)
    layout = InlineLayout()
    layout.start(build_host, [(order.spec.name, order.pack()) for order in fleet_.orders])
    outcome = Coordinator(layout, fleet_.control, scenario.control_plane_latency, scenario.duration).run()
    took_s = time.perf_counter() - began
    layout.close()
    if outcome.reached_ns < scenario.duration or len(fleet_.wanted) != vms:
        raise ToolError(f"bench placement: expected {vms} machines for an hour, got {len(fleet_.wanted)}")
    return took_s, sum(bool(order.guests) for order in fleet_.orders), outcome


def fleet(hosts: int, vms: int) -> Scenario:
    """Hosts of the benchmark, and machines of 72 shapes in turn."""
    shares = [vms // len(_SHAPES) + (number < vms % len(_SHAPES)) for number in range(len(_SHAPES))]
    return Scenario.parse({
        "schema": 1,
        "name": "bench-placement",
        "duration": "1 h",
        "vcpu_overcommit": CPUS / _THREADS,
        "hosts": [{"name": "host", "product": _PRODUCT, "count": hosts, "memory": f"{HOST_MIB} MiB"}],
        "vms": [
            {"name": f"vm-{cpus}-{mib}", "count": count, "generation": "PLAIN", "vcpus": cpus, "memory": f"{mib} MiB",
             "workload": "idle", "start": "running"}
            for (cpus, mib), count in zip(_SHAPES, shares, strict=True)
            if count
        ],
    })  # fmt: skip
