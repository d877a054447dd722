"""``sevfleet plan``: how many hosts a fleet needs in each generation."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from cluster.commands.arguments import add_scenario, decimal, generation_list

if TYPE_CHECKING:
    from cluster.capacity_plan import Need
    from cluster.plan_ranges import NeedRange
    from node.generation import Generation

_MOST_SWINGS = 10

NAME = "plan"
HELP = "how many hosts a fleet needs in each generation, and what runs out first"
DESCRIPTION = """\
Takes the machines of a scenario, makes them all one generation after another,
and says how many hosts like the scenario's first they need for the same service:
the work that they do as PLAIN on the fewest hosts that hold them, for which
slower machines are joined by more of their kind. With --level they stay as they
are, and an instruction may take so much longer, on average, than in a plain
machine alone. The last columns say how full the fullest host is, and how long
its security processor needs to launch all of its machines one after another.

Each row of the cost table that nobody has published goes through its sweep
range, one at a time: hosts, slowdown and launches have the range that they take
on meanwhile beside them, and the table below says which rows matter."""
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
    parser.add_argument(
        "--sweep", action=argparse.BooleanOptionalAction, default=True,
        help="the ranges that figures which nobody has published give it (default: yes)",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def execute(arguments: argparse.Namespace) -> int:
    """Plan and print."""
    from cluster.bundled_scenarios import load_scenario
    from cluster.capacity_plan import Planner
    from cluster.firmware_key import AUTO, firmware_image
    from cluster.plan_ranges import plan_ranges

    scenario = load_scenario(arguments.scenario)
    planner = Planner(scenario, firmware_image(AUTO), arguments.level)
    needs = [planner.need(one) for one in arguments.generations if one in planner.generations]
    ranges: Mapping[Generation, NeedRange] = {}
    if arguments.sweep:
        with contextlib.ExitStack() as stack:
            told = None if arguments.quiet else stack.enter_context(_rows_told())
            ranges = plan_ranges(planner, scenario, needs, told)
    if arguments.json:
        for one in needs:
            print(json.dumps(_body(one, ranges.get(one.generation))))
    else:
        _print(needs, ranges)
    return 0


@contextlib.contextmanager
def _rows_told() -> Iterator[Callable[[str], None]]:
    """Where somebody looks, the row that is swept, in one line that goes away."""
    from rich.console import Console

    with Console(stderr=True).status("plan") as status:
        yield lambda row: status.update(f"plan: {row}")


def _body(one: Need, between: NeedRange | None) -> dict[str, object]:
    from cluster.capacity_plan import shares

    return {
        "generation": one.generation.name, "hosts": one.hosts, "machines": one.machines,
        "against_plain": one.against_plain, "slowdown": one.slowdown, "limit": one.limit,
        "shares": dict(shares(one)), "launch_all_s": one.launch_all_s,
        "swept": between and {name: list(map(_finite, ends)) for name, ends in between.figures.items()},
        "tornado": [
            {"row": row, "hosts": list(map(_finite, hosts)), "slowdown": list(map(_finite, slowdown))}
            for row, hosts, slowdown in ([] if between is None else between.swings)
        ],
    }  # fmt: skip


def _finite(value: float) -> float | None:
    """None for no number of hosts: JSON has no word for it."""
    return value if math.isfinite(value) else None


def _print(needs: Sequence[Need], ranges: Mapping[Generation, NeedRange]) -> None:
    from rich.table import Table

    from cluster.capacity_plan import shares
    from cluster.report import wide_console
    from cluster.whole_tables import print_table

    def between(one: Need, name: str, form: str) -> list[str]:
        return [_ends(ranges[one.generation].figures[name], form)] if ranges else []

    console, swept = wide_console(), ["swept"] if ranges else []
    table = Table(box=None, pad_edge=False)
    for heading in (
        "generation", "hosts", *swept, "machines", "against PLAIN", "slowdown", *swept, "runs out first", "memory",
        "vCPUs", "ASIDs", "bandwidth", "launch all", *swept,
    ):  # fmt: skip
        table.add_column(heading, justify="left" if heading in {"generation", "runs out first"} else "right")
    for one in needs:
        full = [f"{share:.0%}" if share else "" for share in shares(one).values()]
        table.add_row(
            one.generation.name, f"{one.hosts:,}", *between(one, "hosts", ",.0f"), f"{one.machines:,}",
            f"{one.against_plain:.3g} x", f"{one.slowdown:.4f} x", *between(one, "slowdown", ".4f"), one.limit, *full,
            f"{one.launch_all_s:,.3g} s", *between(one, "launch_all_s", ",.3g"),
        )  # fmt: skip
    print_table(console, table)
    swings = [(one, *swing) for one in needs for swing in (ranges[one.generation].swings if ranges else ())]
    swings.sort(key=lambda swing: (-_width(swing[2]), -_width(swing[3]), swing[1], swing[0].generation.name))
    if not swings:
        return
    rows = Table(box=None, pad_edge=False)
    for heading in ("swept row", "generation", "hosts", "slowdown"):
        rows.add_column(heading, justify="left" if heading in {"swept row", "generation"} else "right")
    for one, row, hosts, slowdown in swings[:_MOST_SWINGS]:
        rows.add_row(row, one.generation.name, _ends(hosts, ",.0f"), _ends(slowdown, ".4f"))
    shown = min(_MOST_SWINGS, len(swings))
    console.print(
        f"\nWhat matters of the rows that nobody has published, widest {shown} of {len(swings)}", highlight=False
    )
    print_table(console, rows)


def _ends(ends: tuple[float, float], form: str) -> str:
    low, high = (format(end, form) if math.isfinite(end) else "none serves" for end in ends)
    return low if low == high else f"{low} to {high}"


def _width(ends: tuple[float, float]) -> float:
    return abs(ends[1] - ends[0]) if all(map(math.isfinite, ends)) else math.inf
