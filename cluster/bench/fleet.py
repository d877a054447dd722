"""``sevfleet bench fleet``: 1,000 hosts with 20,000 machines of all kinds for an hour, and 1,000 migrations.

Machines play a trace whose load changes every minute, and load, compare and store a line of memory each time; every
mechanism is on. Beside it: what a machine's
hour costs in a fleet of 10,000 against one of 1,000, and two workers against one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.bench.resident_memory import resident_bytes
from cluster.bench.scale import seconds
from cluster.errors import ToolError
from cluster.figure import Figure
from cluster.results import Results
from cluster.scenario import Scenario
from cluster.session import Session
from node.laboratory_firmware import build_image
from psp.system_bus import PAGE_BYTES
from workloads.trace_player import pack_runs

HOSTS, VMS_PER_HOST, MIGRATIONS = 1_000, 20, 1_000
SMALL_HOSTS, LARGE_HOSTS = 50, 500
"""Of the fleets whose machines' hours are compared."""
MOST_S, MOST_GIB = 75.0, 5.0
MOST_GROWTH, LEAST_GAIN = 1.3, 1.5
SIMPY_PER_S = 700_000.0
"""Bare events of SimPy's in a second of one core (2026-11); each of ours is a change of a host. No peer runs a fleet so
mixed: none has generations, contention for memory, or migrations that know what they move."""
_SHAPES = (
    ("PLAIN", 1, "1 GiB"), ("PLAIN", 2, "8 GiB"), ("SEV", 1, "1 GiB"), ("SEV_ES", 1, "2 GiB"), ("SEV_SNP", 1, "4 GiB"),
    ("SEV_SNP", 2, "16 GiB"),
)  # fmt: skip
"""Generation, vCPUs and memory of a host's machines in turn."""
_STEP_MS, _LOADS = 60_000, (30, 55, 20, 80, 45)
"""Each vCPU's use in per cent, minute by minute."""
_COUNTS = (7, 1, 4, 3, 4, 1)


@dataclass(frozen=True, slots=True)
class Measured:
    """One run."""

    took_s: float
    events: float
    round_trips: float
    memory_bytes: float
    moved: int
    digest: str


def run() -> Iterator[Figure]:
    """The large fleet, then what its size and a second worker do."""
    large = measured(HOSTS, MIGRATIONS, 2)
    what = f"fleet: {HOSTS:,} hosts, {HOSTS * VMS_PER_HOST:,} machines, {MIGRATIONS:,} migrations, an hour"
    yield Figure(what, large.took_s, "s", MOST_S, "the most it should take")
    yield Figure("fleet: memory of all processes", large.memory_bytes / (1 << 30), "GiB", MOST_GIB, "the most")
    yield Figure("fleet: events", large.events / large.took_s, "1/s", SIMPY_PER_S, "SimPy alone, queues of customers")
    yield Figure("fleet: round trips", large.round_trips, "round trips")
    yield Figure("fleet: migrations completed", large.moved, "migrations", MIGRATIONS, "those that were asked for")
    small, more = measured(SMALL_HOSTS, SMALL_HOSTS, 1), measured(LARGE_HOSTS, LARGE_HOSTS, 1)
    each = [one.took_s / (hosts * VMS_PER_HOST) for one, hosts in ((small, SMALL_HOSTS), (more, LARGE_HOSTS))]
    yield Figure("fleet: an hour of one machine among 1,000", each[0] * 1e3, "ms")
    yield Figure("fleet: among 10,000, against that", each[1] / each[0], "times", MOST_GROWTH, "the most")
    two = measured(LARGE_HOSTS, LARGE_HOSTS, 2)
    if two.digest != more.digest:
        raise ToolError(f"bench fleet: expected one digest with any number of workers, got {two.digest}, {more.digest}")
    yield Figure("fleet: two workers against one", more.took_s / two.took_s, "times as fast", LEAST_GAIN, "the target")


def measured(hosts: int, migrations: int, workers: int) -> Measured:
    """One run on a Ray of its own, start of that not counted."""
    with tempfile.TemporaryDirectory() as folder:
        firmware = Path(folder) / "laboratory.fd"
        firmware.write_bytes(build_image(PAGE_BYTES))
        with Session("packed", workers) as session:
            results = session.run(fleet(hosts, migrations, firmware), None, None, None)
    moved = sum(row["outcome"] == "completed" for row in results.migrations.to_pylist())
    return Measured(
        seconds(results, "wall_s") - seconds(results, "ray_start_s"), seconds(results, "events"),
        seconds(results, "round_trips"), resident_bytes() + _workers_bytes(results), moved, results.digest,
    )  # fmt: skip


def _workers_bytes(results: Results) -> float:
    found = results.run.get("worker_memory_bytes", {})
    return float(sum(found.values())) if isinstance(found, dict) else 0.0


def fleet(hosts: int, migrations: int, firmware: Path) -> Scenario:
    """Hosts with the same twenty machines each; of the first ``migrations`` hosts one machine moves."""
    minutes = [(_STEP_MS, _LOADS[minute % len(_LOADS)]) for minute in range(60)]
    parameters: dict[str, object] = {
        "fragments": pack_runs(minutes), "step_ms": _STEP_MS, "working_set_bytes": 4096, "slot_bytes": 64,
        "touches_per_step": 1,
    }  # fmt: skip
    names = [f"{number:0{len(str(hosts))}d}" for number in range(1, hosts + 1)]
    return Scenario.parse({
        "schema": 1,
        "name": "bench-fleet",
        "duration": "1 h",
        "hosts": [{"name": "host", "product": "Milan", "count": hosts, "memory": "128 GiB"}],
        "vms": [
            {"name": f"vm-{name}-{number}", "host": f"host-{name}", "count": count, "generation": generation,
             "vcpus": vcpus, "memory": memory, "workload": "trace-player", "parameters": parameters, "start": "running",
             "firmware": str(firmware)}
            for name in names
            for number, ((generation, vcpus, memory), count) in enumerate(zip(_SHAPES, _COUNTS, strict=True))
        ],
        "fabric": {"topology": "star", "link": "10 Gb/s"},
        "migrations": [
            {"vm": f"vm-{name}-0-1", "at": "1 min", "at_spread": "50 min", "placement": "random"}
            for name in names[:migrations]
        ],
    })  # fmt: skip
