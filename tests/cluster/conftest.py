"""Scenarios that several tests start from."""

import sys
from pathlib import Path

import pytest

from cluster.bundled_scenarios import load_scenario
from cluster.scenario import Scenario
from node.firmware_image import laboratory_image

sys.path.insert(0, str(Path(__file__).parent))  # for toy_hosts, here and (Ray hands the path on) in workers


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
