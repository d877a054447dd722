"""``sevfleet init``: a scenario file to start from."""

from __future__ import annotations

import argparse
from pathlib import Path

from cluster.errors import UserError

NAME = "init"
HELP = "start a scenario file from a bundled one"
DESCRIPTION = "Writes a new scenario file, a copy of a bundled scenario with its comments. Never overwrites."
EXAMPLE = "sevfleet init fleet.toml --from quiet"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", nargs="?", default="fleet.toml", metavar="FILE", help="default: fleet.toml")
    parser.add_argument("--from", dest="name", default="demo", metavar="NAME", help="bundled scenario (default: demo)")


def execute(arguments: argparse.Namespace) -> int:
    """Write the file, if it is not there."""
    from cluster.bundled_scenarios import bundled_text

    text = bundled_text(arguments.name)
    if not arguments.file.endswith(".toml"):
        raise UserError(f'{arguments.file}: expected a file name that ends in ".toml"')
    try:
        with Path(arguments.file).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{arguments.file}: expected a new file, got one that exists") from None
    print(f"{arguments.file}: a copy of {arguments.name}; try: sevfleet run {arguments.file}")
    return 0
