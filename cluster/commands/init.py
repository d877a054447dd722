"""``sevfleet init``: a scenario file to start from."""

from __future__ import annotations

import argparse
from pathlib import Path

from cluster.errors import UserError

NAME = "init"
HELP = "start a scenario file from a bundled one, or from CSV files of hosts and machines"
DESCRIPTION = """\
Writes a new scenario file: a copy of a bundled scenario with its comments, or with
--hosts and --vms the fleet that two CSV files describe. Their columns are the keys
of [[hosts]] and [[vms]] with the units that those have, such as name, product,
count and memory; name, count, generation, vcpus, memory, workload, arrival,
lifetime, start, host and parameters.NAME. Never overwrites."""
EXAMPLE = "sevfleet init fleet.toml --hosts hosts.csv --vms vms.csv --duration '2 h'"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", nargs="?", default="fleet.toml", metavar="FILE", help="default: fleet.toml")
    parser.add_argument("--from", dest="name", default="demo", metavar="NAME", help="bundled scenario (default: demo)")
    parser.add_argument("--hosts", metavar="FILE", help="CSV file of hosts")
    parser.add_argument("--vms", metavar="FILE", help="CSV file of virtual machines")
    parser.add_argument("--duration", default="1 h", metavar="TIME", help="how long it is watched (default: 1 h)")


def execute(arguments: argparse.Namespace) -> int:
    """Write the file, if it is not there."""
    text, origin = _text(arguments)
    if not arguments.file.endswith(".toml"):
        raise UserError(f'{arguments.file}: expected a file name that ends in ".toml"')
    try:
        with Path(arguments.file).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{arguments.file}: expected a new file, got one that exists") from None
    print(f"{arguments.file}: {origin}; try: sevfleet run {arguments.file}")
    return 0


def _text(arguments: argparse.Namespace) -> tuple[str, str]:
    """The scenario, and what it is."""
    from cluster.bundled_scenarios import bundled_text
    from cluster.fleet_csv import fleet_of

    if arguments.hosts is None and arguments.vms is None:
        return bundled_text(arguments.name), f"a copy of {arguments.name}"
    if arguments.hosts is None or arguments.vms is None:
        missing = "hosts" if arguments.hosts is None else "vms"
        raise UserError(f"--{missing}: expected it with the other file of the fleet, got nothing")
    scenario = fleet_of(arguments.hosts, arguments.vms, Path(arguments.file).stem or "fleet", arguments.duration)
    return scenario.to_toml(), f"{len(scenario.host_instances):,} hosts, {len(scenario.vm_instances):,} machines"
