"""What a host full of TDISP interfaces costs: built with its machines, and every device attested and at work."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

from cluster.bench.resident_memory import resident_bytes
from cluster.errors import ToolError
from cluster.figure import Figure
from cluster.fleet import build_fleet
from cluster.host_entity import build_host
from cluster.scenario import Scenario

CARDS, FUNCTIONS, MACHINES = 8, 8, 200
MOST_S, MOST_BYTES = 1.0, 200e6
_EVENTS = 10_000_000
LASTS = "2 s"
"""By then each machine has its device's proof, and has had work back from it."""


def figures() -> Iterator[Figure]:
    """Build the host, then let its machines attest their devices."""
    order, lasts_ns = build_fleet(scenario()).orders[0].pack(), scenario().duration
    gc.collect()
    before, began = resident_bytes(), time.process_time()
    host = build_host(order)
    built, held = time.process_time() - began, resident_bytes() - before
    host.advance(lasts_ns, _EVENTS)
    worked = time.process_time() - began - built
    rows = [row for row in host.collect(lasts_ns)["vms"] if str(row["vm"]).startswith("tdi")]
    idle = [str(row["vm"]) for row in rows if not row["units_of_work"]]
    if idle or len(rows) != CARDS * FUNCTIONS:
        raise ToolError(f"machines whose device did nothing: {', '.join(idle)}")
    name = f"a host with {CARDS * FUNCTIONS} interfaces and {MACHINES} machines"
    yield Figure(f"{name}, built", built, "s", MOST_S, "the most it should take")
    yield Figure(f"{name}, memory", held, "byte", MOST_BYTES, "the most it should take")
    yield Figure(f"{name}, every device attested and at work", worked, "s")
    yield Figure(f"{name}, memory then", resident_bytes() - before, "byte")


def scenario() -> Scenario:
    """Every interface has a machine of SEV-TIO; the other machines are of SEV-SNP and have none."""
    attached = CARDS * FUNCTIONS
    return Scenario.parse({
        "schema": 1,
        "name": "bench-tio",
        "duration": LASTS,
        "vcpu_overcommit": 2,
        # What attachments take in virtual time is not what is measured.
        "costs": {"psp.tio_exchange_ns": 1_000_000},
        "hosts": [{
            "name": "host", "product": "Turin", "memory": "64 GiB", "min_sev_asid": MACHINES + 100,
            "cards": [{"kind": "gpu", "count": CARDS, "memory": "1 MiB", "virtual_functions": FUNCTIONS}],
        }],
        "vms": [
            {"name": "tdi", "count": attached, "generation": "SEV_TIO", "devices": ["gpu"], "memory": "128 MiB",
             "workload": "device-work", "start": "running"},
            {"name": "snp", "count": MACHINES - attached, "generation": "SEV_SNP", "memory": "128 MiB",
             "workload": "idle", "start": "running"},
        ],
    })  # fmt: skip
