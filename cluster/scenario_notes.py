"""What a scenario may well mean, and somebody should know beforehand: it is valid all the same."""

from __future__ import annotations

from cluster.precopy import HARDLY_ANYTHING_BYTES
from cluster.scenario import Scenario
from cluster.scenario_costs import scenario_costs
from cluster.units import DURATION, SIZE


def notes(scenario: Scenario) -> tuple[str, ...]:
    """One line each: field, expectation, what was there."""
    found: list[str] = []
    if scenario.migrations or scenario.drains:
        costs = scenario_costs(scenario)
        fixed_ns = round(costs["migration.stop_ns"] + costs["migration.resume_ns"])
        if scenario.migration.downtime_limit <= fixed_ns:
            found.append(
                f"migration.downtime_limit: expected more than {DURATION.format(fixed_ns)}, what is fixed of each "
                f"downtime, or a machine that writes {SIZE.format(HARDLY_ANYTHING_BYTES)} in each round never ends "
                "them by itself, got "
                + DURATION.format(scenario.migration.downtime_limit)
            )
    return tuple(found)
