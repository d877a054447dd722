"""Scenarios that several tests start from."""

import gc
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import inline_layout, shard_worker
from cluster.bundled_scenarios import load_scenario
from cluster.fleet_garbage import collect_fleet
from cluster.scenario import Scenario
from node.firmware_image import laboratory_image

sys.path.insert(0, str(Path(__file__).parent))  # for toy_hosts, here and (Ray hands the path on) in workers


_WORTH_A_LOOK = 300 << 20
"""So much more memory than after the last look may be garbage."""


def resident_bytes() -> int:
    """What this process holds (proc_pid_statm(5))."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.fixture(scope="session", autouse=True)
def fleets_go_together() -> Iterator[None]:
    """What a run leaves is collected with what others do: a look through all modules and tests takes a while."""
    usual, held = gc.get_threshold(), resident_bytes()

    def collect_some() -> None:
        nonlocal held
        gc.set_threshold(*usual)
        if resident_bytes() > held + _WORTH_A_LOOK:
            collect_fleet()
            gc.freeze()
            held = resident_bytes()

    with pytest.MonkeyPatch.context() as patch:
        for module in (inline_layout, shard_worker):
            patch.setattr(module, "collect_fleet", collect_some)
        yield


@pytest.fixture(scope="session")
def quiet_scenario() -> Scenario:
    return load_scenario("quiet")


@pytest.fixture(scope="session")
def tiny_scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """One host, a SEV-SNP database beside a PLAIN batch job, two virtual seconds; seeds tell in its figures."""
    firmware = tmp_path_factory.mktemp("firmware") / "laboratory.fd"
    firmware.write_bytes(laboratory_image().data)
    small = {"memory": "64 MiB", "firmware": str(firmware), "start": "running"}
    return Scenario.parse({
        "schema": 1,
        "name": "tiny",
        "duration": "2 s",
        "hosts": [{"name": "host", "product": "Milan", "memory": "4 GiB"}],
        "vms": [
            {"name": "database", "generation": "SEV_SNP", "workload": "key-value-store", **small},
            {"name": "batch", "generation": "PLAIN", "workload": "random-access", "parameters": {
                "table_bytes": 65536, "batch": 16, "instructions_per_batch": 200_000_000,
            }, **small},
        ],
    })  # fmt: skip
