"""``sevfleet bench``: how fast sevfleet is on this machine."""

from __future__ import annotations

import argparse
import importlib

from cluster.errors import UserError

NAME = "bench"
HELP = "measure sevfleet on this machine"
DESCRIPTION = """\
Measures sevfleet: memory (the cipher and the checks on its way), rmp (page
states in bulk), sync (round trips between hosts), kernel (phases under
contention), scale (two workers against one), migrations (ten thousand live
migrations), recovery (two hundred killed workers; takes many minutes), psp
(launches), attestation (reports against bare signatures), tio (devices that
prove themselves, a million mutated messages, IDE), faults (two thousand
schedules of moves and faults), materialised (moves of bytes against moves of
books), fleet (20,000 machines of all kinds for an hour), placement (first fit of
100,000 machines), idle (100,000 machines that rest), peers (the idle star of
migrations, beside SimGrid in the same run).
Without a name, all."""
EXAMPLE = "sevfleet bench memory --json"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="which benchmark (default: all)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line: name, value, unit, reference")


def execute(arguments: argparse.Namespace) -> int:
    """Run benchmarks and print each figure as it comes."""
    from cluster.bench import BENCHMARKS

    if arguments.name is not None and arguments.name not in BENCHMARKS:
        raise UserError(f'NAME: expected one of {", ".join(BENCHMARKS)}, got "{arguments.name}"')
    for name in BENCHMARKS if arguments.name is None else (arguments.name,):
        for figure in importlib.import_module(f"cluster.bench.{name}").run():
            if arguments.json:
                print(figure.to_json(), flush=True)
                continue
            against = f"   {figure.ratio:.3g} of {figure.reference_name}" if figure.ratio is not None else ""
            print(f"{figure.name:<48} {figure.value:>14,.4g} {figure.unit}{against}", flush=True)
    return 0
