"""Scenarios that several tests start from."""

import pytest

from cluster.bundled_scenarios import load_scenario
from cluster.scenario import Scenario


@pytest.fixture(scope="session")
def quiet_scenario() -> Scenario:
    return load_scenario("quiet")
