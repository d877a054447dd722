"""``sevfleet check``: whether a scenario is valid."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from cluster.errors import UserError

if TYPE_CHECKING:
    from cluster.scenario import Scenario

NAME = "check"
HELP = "validate scenario files"
DESCRIPTION = """\
Reads scenario files, and the traces they name, as a run would, and says in one
line what is wrong: file, field, what was expected and what was there. Notes
tell what is valid and may still not be meant.

--json-schema prints the format as JSON Schema, for editors that complete and
check while one types."""
EXAMPLE = "sevfleet check fleet.toml"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("files", nargs="*", metavar="FILE", help="scenario files, or names of bundled scenarios")
    parser.add_argument("--json-schema", action="store_true", help="print the JSON Schema of scenario files")


def execute(arguments: argparse.Namespace) -> int:
    """Check each file; the first error ends it."""
    from cluster.bundled_scenarios import in_file_of, load_scenario
    from cluster.placed_orders import placed_orders
    from cluster.scenario_notes import notes

    if arguments.json_schema:
        print(json.dumps(_schema(), indent=2))
        return 0
    if not arguments.files:
        raise UserError("FILE: expected a scenario file or --json-schema, got nothing (see sevfleet check --help)")
    for file in arguments.files:
        scenario = load_scenario(file)
        with in_file_of(file):
            placed_orders(scenario, {}, {})
        print(f"{file}: valid: {_described(scenario)}")
        for note in notes(scenario):
            print(f"{file}: note: {note}")
    return 0


def _schema() -> dict[str, object]:
    from cluster.scenario import Scenario

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Scenario.model_json_schema(by_alias=True),
        "title": "sevfleet scenario",
    }


def _described(scenario: Scenario) -> str:
    from cluster.units import DURATION

    machines = len(scenario.vm_instances) + (scenario.trace.vms if scenario.trace else 0)
    return f"{len(scenario.host_instances)} hosts, {machines} VMs, {DURATION.format(scenario.duration)}"
