"""``sevfleet plan``: how many hosts a fleet needs in each generation."""

from __future__ import annotations

import argparse
import json

from cluster.commands.arguments import add_scenario, decimal, generation_list

NAME = "plan"
HELP = "how many hosts a fleet needs in each generation, and what runs out first"
DESCRIPTION = """\
Takes the machines of a scenario, makes them all one generation after another,
and says how many hosts like the scenario's first they need for the same service:
the work that they do as PLAIN on the fewest hosts that hold them, for which
slower machines are joined by more of their kind. With --level they stay as they
are, and an instruction may take so much longer, on average, than in a plain
machine alone. The last columns say how full the fullest host is, and how long
its security processor needs to launch all of its machines one after another."""
EXAMPLE = "sevfleet plan fleet.toml --generations plain,sev-snp --level 1.25"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_scenario(parser)
    parser.add_argument(
        "--generations", type=generation_list, default="plain,sme,sev,sev-es,sev-snp,sev-tio", metavar="LIST",
        help="which, with commas between (default: all that the host has)",
    )  # fmt: skip
    parser.add_argument(
        "--level", type=decimal("level", 1.0, 1000.0), metavar="X", help="most slowdown against a plain machine alone"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def execute(arguments: argparse.Namespace) -> int:
    """Plan and print."""
    from cluster.bundled_scenarios import load_scenario
    from cluster.capacity_plan import plan, shares
    from cluster.firmware_key import AUTO, firmware_image

    scenario = load_scenario(arguments.scenario)
    needs = plan(scenario, arguments.generations, firmware_image(AUTO), arguments.level)
    if arguments.json:
        for one in needs:
            print(json.dumps({
                "generation": one.generation.name, "hosts": one.hosts, "machines": one.machines,
                "against_plain": one.against_plain, "slowdown": one.slowdown, "limit": one.limit,
                "shares": dict(shares(one)),
                "launch_all_s": one.launch_all_s,
            }))  # fmt: skip
        return 0
    from rich.table import Table

    from cluster.report import wide_console

    table = Table(box=None, pad_edge=False)
    for heading in (
        "generation", "hosts", "machines", "against PLAIN", "slowdown", "runs out first", "memory", "vCPUs", "ASIDs",
        "bandwidth", "launch all",
    ):  # fmt: skip
        table.add_column(heading, justify="left" if heading in {"generation", "runs out first"} else "right")
    for one in needs:
        full = [f"{share:.0%}" if share else "" for share in shares(one).values()]
        table.add_row(
            one.generation.name, f"{one.hosts:,}", f"{one.machines:,}", f"{one.against_plain:.3g} x",
            f"{one.slowdown:.4f} x", one.limit, *full, f"{one.launch_all_s:,.3g} s",
        )  # fmt: skip
    wide_console().print(table)
    return 0
