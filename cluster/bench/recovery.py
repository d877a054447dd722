"""``sevfleet bench recovery``: 200 workers killed at random moments, and every run ends with the same digest."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cluster.bench.progress import Tell, bench_line
from cluster.figure import Figure
from cluster.process_family import family
from cluster.scenario import Scenario
from cluster.session import Session
from node.firmware_image import laboratory_image

KILLS = 200
HOSTS = 4
_FEWEST_CALLS, _MOST_CALLS = 10, 40
"""Between two kills: fewer would be losses in a row."""
_LATEST_S = 0.02
"""A kill comes so long after a call at most: before, in and after the next one."""


class Killer:
    """Asked after each call whether the run should end; it never should, but now and then a worker should."""

    def __init__(self, most: int, tell: Tell) -> None:
        self.killed = 0
        self._most = most
        self._tell = tell
        self._random = random.Random(1)  # noqa: S311 - no secret
        self._calls = _MOST_CALLS

    def __call__(self) -> None:
        self._tell(self.killed, self._most)
        self._calls -= 1
        if self._calls > 0 or self.killed >= self._most:
            return
        workers = sorted(pid for pid, _ in family([os.getpid()]) if _is_worker(pid))
        if len(workers) < HOSTS:
            return  # somebody is still being replaced
        self._calls = self._random.randint(_FEWEST_CALLS, _MOST_CALLS)
        victim = self._random.choice(workers)
        threading.Timer(self._random.uniform(0, _LATEST_S), self._kill, [victim]).start()

    def _kill(self, victim: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            self.killed += 1


def _is_worker(pid: int) -> bool:
    with suppress(OSError):
        return b"ray::ShardWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def run() -> Iterator[Figure]:
    """Run a fleet that launches and migrates, in layout ``host``, until enough workers were killed."""
    with tempfile.TemporaryDirectory() as folder:
        firmware = Path(folder) / "laboratory.fd"
        firmware.write_bytes(laboratory_image().data)
        scenario = fleet(firmware)
        with Session("inline", None) as session:
            expected = session.run(scenario, None, None, None).digest
        same = runs = replaced = 0
        began_s = time.perf_counter()
        with bench_line("bench recovery", "workers killed") as tell, Session("host", None) as session:
            killer = Killer(KILLS, tell)
            while killer.killed < KILLS:
                results = session.run(scenario, None, None, killer)
                runs += 1
                same += results.digest == expected
                replaced = int(str(results.run.get("workers_replaced", 0)))
        took_s = time.perf_counter() - began_s
    yield Figure("recovery: workers killed", float(killer.killed), "", float(KILLS), "the target")
    yield Figure("recovery: workers replaced", float(replaced), "")
    yield Figure("recovery: runs with the same digest", float(same), "", float(runs), "all runs")
    yield Figure("recovery: a kill, its replacement and the run around it", took_s / max(1, killer.killed), "s")


def fleet(firmware: Path) -> Scenario:
    """Four hosts, machines that move back and forth, and launches of two generations."""
    small = {"vcpus": 1, "memory": "128 MiB", "firmware": str(firmware), "workload": "key-value-store"}
    return Scenario.parse({
        "schema": 1,
        "name": "bench-recovery",
        "duration": "2 min",
        "hosts": [{"name": "host", "product": "Milan", "count": HOSTS, "memory": "16 GiB"}],
        "vms": [
            {"name": "store", "count": 4, "generation": "PLAIN", "start": "running", **small},
            {"name": "snp", "count": 8, "generation": "SEV_SNP", "arrival": "1 s", "arrival_spacing": "10 s",
             "lifetime": "20 s", **small},
        ],
        "migrations": [{"vm": "store", "at": "1 s", "times": 10, "pause": "5 s"}],
    })  # fmt: skip
