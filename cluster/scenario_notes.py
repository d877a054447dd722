"""What a scenario may well mean, and somebody should know beforehand: it is valid all the same."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.precopy import HARDLY_ANYTHING_BYTES
from cluster.scenario import Scenario
from cluster.scenario_costs import scenario_costs
from cluster.units import DURATION, SIZE

_SWITCHES: Mapping[str, str] = {
    "at_timeout": "timeout_per_gib",
    "throttle_initial": "auto_converge",
    "throttle_increment": "auto_converge",
    "throttle_max": "auto_converge",
    "downtime_step_per_gib": "downtime_steps",
}
"""Settings of migrations, and which other one each needs: as long as that is as it is by default, it means nothing."""


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
    moving = scenario.migration
    for name, switch in _SWITCHES.items():
        if name in moving.model_fields_set and getattr(moving, switch) == type(moving).model_fields[switch].default:
            found.append(f"migration.{name}: expected {switch} beside it, without which it means nothing, got none")
    return tuple(found)
