"""``sevfleet compare``: what each generation costs, VM by VM."""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING

from cluster.commands.arguments import add_layout, add_scenario
from cluster.errors import UserError

if TYPE_CHECKING:
    from node.generation import Generation

NAME = "compare"
HELP = "pair each VM with itself run as PLAIN"
DESCRIPTION = """\
Runs a scenario again and again, each VM in each generation, on the same host,
with the same neighbours and seed, and pairs it with itself run as PLAIN."""
EXAMPLE = "sevfleet compare quiet --generations plain,sev,sev-snp"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_scenario(parser)
    parser.add_argument(
        "--generations",
        default="plain,sev,sev-snp",
        metavar="LIST",
        help="which, with commas between (default: plain,sev,sev-snp); sme where hosts have mode sme",
    )
    add_layout(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON, one object a line")


def execute(arguments: argparse.Namespace) -> int:
    """Run the pairs and print them."""
    from cluster.bundled_scenarios import in_file_of, load_scenario
    from cluster.compare import compare
    from cluster.progress_line import progress_line
    from cluster.report import print_comparison, print_rows_as_json

    scenario = load_scenario(arguments.scenario)
    generations = _generations(arguments.generations)
    with contextlib.ExitStack() as stack:
        on_progress = None if arguments.quiet else stack.enter_context(progress_line(f"compare {scenario.name}"))
        stack.enter_context(in_file_of(arguments.scenario))
        comparison = compare(
            scenario,
            generations,
            layout=arguments.layout,
            workers=arguments.workers,
            address=arguments.address,
            seed=arguments.seed,
            on_progress=on_progress,
        )
    if arguments.json:
        print_rows_as_json(comparison.rows)
    else:
        print_comparison(comparison.rows)
    return 0


def _generations(text: str) -> tuple[Generation, ...]:
    from node.generation import Generation

    known = {generation.name.lower().replace("_", "-"): generation for generation in Generation}
    chosen = []
    for word in text.split(","):
        generation = known.get(word.strip().lower().replace("_", "-"))
        if generation is None:
            raise UserError(f'--generations: expected some of {", ".join(known)}, got "{word.strip()}"')
        chosen.append(generation)
    return tuple(dict.fromkeys(chosen))
