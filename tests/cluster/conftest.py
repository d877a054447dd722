"""Scenarios that several tests start from."""

import sys
from pathlib import Path

import pytest

from cluster.bundled_scenarios import load_scenario
from cluster.scenario import Scenario

sys.path.insert(0, str(Path(__file__).parent))  # for toy_hosts, here and (Ray hands the path on) in workers


@pytest.fixture(scope="session")
def quiet_scenario() -> Scenario:
    return load_scenario("quiet")
