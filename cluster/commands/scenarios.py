"""``sevfleet scenarios``: what comes with sevfleet."""

from __future__ import annotations

import argparse

NAME = "scenarios"
HELP = "list the bundled scenarios"
DESCRIPTION = "Lists the scenarios that come with sevfleet; sevfleet init makes a file of one."
EXAMPLE = "sevfleet scenarios"


def configure(parser: argparse.ArgumentParser) -> None:
    """It takes no arguments."""


def execute(arguments: argparse.Namespace) -> int:
    """Print the list."""
    from rich.console import Console
    from rich.table import Table

    from cluster.bundled_scenarios import bundled_names, load_scenario
    from cluster.units import DURATION

    table = Table(box=None, pad_edge=False)
    for heading in ("name", "hosts", "VMs", "duration", ""):
        table.add_column(heading, justify="right" if heading in {"hosts", "VMs"} else "left")
    for name in bundled_names():
        scenario = load_scenario(name)
        machines = len(scenario.vm_instances) + (scenario.trace.vms if scenario.trace else 0)
        table.add_row(
            name,
            str(len(scenario.host_instances)),
            str(machines),
            DURATION.format(scenario.duration),
            scenario.description,
        )
    Console().print(table)
    return 0
