"""``sevfleet compare``: what each generation costs, VM by VM."""

from __future__ import annotations

import argparse
import contextlib

from cluster.commands.arguments import add_layout, add_scenario, generation_list, look_at_address, whole_number
from cluster.errors import UserError

NAME = "compare"
HELP = "pair each VM with itself run as PLAIN"
DESCRIPTION = """\
Runs a scenario again and again, each VM in each generation, on the same host,
with the same neighbours and seed, and pairs it with itself run as PLAIN. Prints
what each generation adds to the one before it on the ladder PLAIN, SME, SEV,
SEV_ES, SEV_SNP, SEV_TIO, split by mechanism; with --seeds as means with 95 %
confidence intervals. A generation that a VM's host does not have is left out.

Every figure that nobody has published goes through its sweep range, one at a
time: "swept" is the range that a slowdown takes on meanwhile, and the table
below says which figures matter. That is worked out from the same runs, in which
each machine does what it did; with --sweep by whole comparisons, a hundred or so.
Where nobody has measured a rung on hardware it says "model only"."""
EXAMPLE = "sevfleet compare quiet --generations plain,sev,sev-snp --seeds 5 --products Milan,Genoa"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_scenario(parser)
    parser.add_argument(
        "--generations",
        type=generation_list,
        default="plain,sme,sev,sev-es,sev-snp,sev-tio",
        metavar="LIST",
        help="which, with commas between (default: all of the ladder); sme where hosts have mode sme",
    )
    parser.add_argument(
        "--products", type=_products, default=(), metavar="LIST",
        help="make all hosts each of these in turn, with commas between (default: hosts as they are)",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=whole_number("seeds", 1, 1000), default=1, metavar="N",
        help="how many seeds, the scenario's own and those after it (default: 1)",
    )  # fmt: skip
    add_layout(parser)
    parser.add_argument("--sweep", action="store_true", help="run a comparison for each end of each range")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON, one object a line")


def execute(arguments: argparse.Namespace) -> int:
    """Run the pairs and print them."""
    look_at_address(arguments)

    from cluster.bundled_scenarios import in_file_of, load_scenario
    from cluster.ladder import climb
    from cluster.progress_line import progress_line

    scenario = load_scenario(arguments.scenario)
    if arguments.seed is not None:
        scenario = scenario.with_seed(arguments.seed)
    with contextlib.ExitStack() as stack:
        on_progress = None if arguments.quiet else stack.enter_context(progress_line(f"compare {scenario.name}"))
        stack.enter_context(in_file_of(arguments.scenario))
        rungs = climb(
            scenario,
            arguments.generations,
            seeds=arguments.seeds,
            products=arguments.products,
            layout=arguments.layout,
            workers=arguments.workers,
            address=arguments.address,
            on_progress=on_progress,
        )
        if arguments.sweep:
            from cluster.ladder import with_ranges

            rungs = with_ranges(
                rungs, scenario, arguments.generations, layout=arguments.layout, workers=arguments.workers,
                address=arguments.address, on_progress=on_progress,
            )  # fmt: skip
    from cluster.ladder_report import print_ladder, print_ladder_as_json

    if arguments.json:
        print_ladder_as_json(rungs)
    else:
        print_ladder(rungs)
    return 0


def _products(text: str) -> tuple[str, ...]:
    from node.product import PRODUCTS

    known = {name.lower(): name for name in PRODUCTS}
    chosen = [known.get(word.strip().lower()) for word in text.split(",")]
    for word, name in zip(text.split(","), chosen, strict=True):
        if name is None:
            raise UserError(f'--products: expected some of {", ".join(PRODUCTS)}, got "{word.strip()}"')
    return tuple(dict.fromkeys(name for name in chosen if name is not None))
