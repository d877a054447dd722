"""``sevfleet bench scale``: 400 hosts and 8,000 VMs for an hour of virtual time, on one worker and on two."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from cluster.errors import ToolError
from cluster.figure import Figure
from cluster.results import Results
from cluster.scenario import Scenario
from cluster.session import Session
from node.laboratory_firmware import build_image
from psp.system_bus import PAGE_BYTES

HOSTS = 400
VMS_PER_HOST = 20
WORKERS = (1, 2)
LEAST_GAIN = 1.5


def run() -> Iterator[Figure]:
    """Run the fleet with each number of workers. Raises ToolError if the results are not the same."""
    took_s: dict[int, float] = {}
    digests: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        firmware = Path(folder) / "laboratory.fd"
        firmware.write_bytes(build_image(PAGE_BYTES))
        scenario = fleet(HOSTS, firmware)
        for workers in WORKERS:
            results = whole_run(scenario, workers)
            digests.add(results.digest)
            took_s[workers] = seconds(results, "wall_s") - seconds(results, "ray_start_s")
            what = f"scale: {workers} worker{'s' * (workers > 1)}"
            yield Figure(what, took_s[workers], "s")
            yield Figure(f"{what}, events", seconds(results, "events") / took_s[workers], "1/s")
            yield Figure(f"{what}, round trips", seconds(results, "round_trips"), "round trips")
    if len(digests) != 1:
        raise ToolError(f"bench scale: expected one digest with any number of workers, got {sorted(digests)}")
    yield Figure("scale: two workers against one", took_s[1] / took_s[2], "times as fast", LEAST_GAIN, "the target")


def whole_run(scenario: Scenario, workers: int) -> Results:
    """One run, hosts built and tables collected, on a Ray of its own."""
    with Session("packed", workers) as session:
        return session.run(scenario, None, None, None)


def seconds(results: Results, name: str) -> float:
    """A figure of how the run went."""
    return float(str(results.run[name]))


def fleet(hosts: int, firmware: Path) -> Scenario:
    """Hosts full of guests that compute and touch memory, and one launch after another."""
    small = {"memory": "64 MiB", "firmware": str(firmware), "workload": "random-access"}
    computing = {"parameters": {
        "table_bytes": 65536, "batch": 4, "loads": 1, "instructions_per_batch": 60_000_000_000,
    }}  # fmt: skip
    names = [f"{number:0{len(str(hosts))}d}" for number in range(1, hosts + 1)]
    return Scenario.parse({
        "schema": 1,
        "name": "bench-scale",
        "duration": "1 h",
        "hosts": [{"name": "host", "product": "Milan", "count": hosts, "memory": "64 GiB"}],
        "vms": [
            *(
                # Pinned, because first fit would fill one host after another.
                {"name": f"vm-{name}", "host": f"host-{name}", "count": VMS_PER_HOST, "generation": "PLAIN",
                 "start": "running", **small, **computing}
                for name in names
            ),
            {"name": "comes", "count": 60, "generation": "SEV_SNP", "arrival": "1 s", "arrival_spacing": "1 min",
             "lifetime": "20 min", **small, **computing},
        ],
    })  # fmt: skip
