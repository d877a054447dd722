"""``sevfleet bench migrations``: ten thousand live migrations on a thousand hosts, with all that each one is.

Every VM is a real PLAIN guest on an emulated host, and every move the one that any scenario gets: messages between
control plane and hosts, rounds of pre-copy over the fabric, the stop, its registers and pages (as frames where
they leave the process, which they do not inline), pages checked one by one at the target against the source's, its
books and its digest chain handed over.

What is timed is the run, from virtual time zero to its end; building the fleet and collecting the tables are figures
of their own. The scenario is the one that SimGrid was measured with: its downtime limit of 30 ms, its pauses, its
random targets.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from cluster.coordinator import Coordinator
from cluster.errors import ToolError
from cluster.figure import Figure
from cluster.fleet import build_fleet
from cluster.host_entity import build_host
from cluster.inline_layout import InlineLayout
from cluster.migration import Migration
from cluster.scenario import Scenario
from node.laboratory_firmware import build_image
from psp.system_bus import PAGE_BYTES
from workloads.trace_player import pack_runs

HOSTS = 1000
VMS_PER_HOST = 2
MOVES = 5
DURATION_S = 600
DIRTY_BYTES_PER_S = 100_000_000
WRITTEN_SET_BYTES = 1 << 30
MOST_IDLE_S = 3.0
MOST_DIRTYING_S = 4.0
_SHARE = 50
"""Hundredths of a vCPU that a guest computes which writes."""


@dataclass(frozen=True, slots=True)
class Timed:
    """What a run took: seconds of wall time; and what it did, as means of its migrations."""

    build_s: float
    run_s: float
    collect_s: float
    moved: int
    rounds: float
    frame_bytes: float
    acts: float
    moves: tuple[Migration, ...] = field(repr=False)
    """Each of them, in the order in which they were asked for."""


def run() -> Iterator[Figure]:
    """Migrate 2,000 VMs five times each, idle and then writing."""
    for writing, most_s in ((False, MOST_IDLE_S), (True, MOST_DIRTYING_S)):
        what = "guests writing 100 MB/s" if writing else "idle guests"
        with tempfile.TemporaryDirectory() as folder:
            # The smallest image there is: OVMF's 2 MiB, hashed four times a move, would be the figure.
            firmware = Path(folder) / "laboratory.fd"
            firmware.write_bytes(build_image(PAGE_BYTES))
            timed = migrate(fleet(HOSTS, writing=writing, firmware=firmware))
        yield Figure(f"{timed.moved:,} migrations, {what}", timed.run_s, "s", most_s, "the most it should take")
        yield Figure(f"migrations a second, {what}", timed.moved / timed.run_s, "1/s")
        yield Figure(f"rounds of pre-copy each, {what}", timed.rounds, "rounds")
        yield Figure(f"bytes of frames each, {what}", timed.frame_bytes, "byte")
        yield Figure(f"acts of the control plane each, {what}", timed.acts, "acts")
        yield Figure(f"fleet built, {what}", timed.build_s, "s")
        yield Figure(f"tables collected, {what}", timed.collect_s, "s")


def migrate(scenario: Scenario) -> Timed:
    """Run a scenario inline. Raises ToolError if any of its migrations was not completed."""
    began = time.perf_counter()
    fleet_ = build_fleet(scenario)
    layout = InlineLayout()
    layout.start(build_host, [(order.spec.name, order.pack()) for order in fleet_.orders])
    built = time.perf_counter()
    outcome = Coordinator(layout, fleet_.control, scenario.control_plane_latency, scenario.duration).run()
    ran = time.perf_counter()
    layout.collect(scenario.duration)
    collected = time.perf_counter()
    layout.close()
    migrations = fleet_.control.migrations.all
    outcomes = Counter(one.outcome.value for one in migrations)
    if set(outcomes) != {"completed"} or len(migrations) != MOVES * len(fleet_.wanted):
        raise ToolError(f"bench migrations: expected {MOVES * len(fleet_.wanted)} completed, got {dict(outcomes)}")
    return Timed(
        built - began, ran - built, collected - ran, len(migrations),
        fmean(len(one.precopy.rounds) for one in migrations if one.precopy is not None),
        fmean(one.frame_bytes for one in migrations), outcome.control_plane_acts / len(migrations), tuple(migrations),
    )  # fmt: skip


def fleet(hosts: int, *, writing: bool, firmware: Path) -> Scenario:
    """Hosts on a star of 10 Gb/s with two VMs each, every one of which moves five times to hosts at random."""
    load = (DURATION_S * 1000, _SHARE if writing else 0)
    parameters: dict[str, object] = {
        "fragments": pack_runs([load]), "step_ms": load[0], "working_set_bytes": 4096, "touches_per_step": 1,
    }  # fmt: skip
    if writing:
        written_per_s = DIRTY_BYTES_PER_S * 100 // _SHARE
        parameters |= {"written_set_bytes": WRITTEN_SET_BYTES, "written_bytes_per_s": written_per_s}
    width = len(str(hosts))
    names = [f"{number:0{width}d}" for number in range(1, hosts + 1)]
    return Scenario.parse({
        "schema": 1,
        "name": "bench-migrations",
        "duration": f"{DURATION_S} s",
        "hosts": [{"name": "host", "product": "Genoa", "count": hosts, "memory": "64 GiB"}],
        "vms": [
            # Pinned, because first fit would fill one host after another.
            {"name": f"vm-{name}", "host": f"host-{name}", "count": VMS_PER_HOST, "generation": "PLAIN",
             "memory": "4 GiB", "workload": "trace-player", "parameters": parameters, "start": "running",
             "firmware": str(firmware)}
            for name in names
        ],
        "fabric": {"topology": "star", "link": "10 Gb/s"},
        "migration": {"per_host": 1, "per_fleet": 0, "downtime_limit": "30 ms"},
        "migrations": [
            {"vm": f"vm-{name}", "at": "1 s", "at_spread": "59 s", "times": MOVES, "pause": "1 s",
             "pause_spread": "59 s", "placement": "random"}
            for name in names
        ],
    })  # fmt: skip
