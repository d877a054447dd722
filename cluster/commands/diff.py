"""``sevfleet diff``: where two runs part."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.result_diff import CellDifference, Difference, FirstBucket
    from cluster.results import Results

NAME = "diff"
HELP = "show where two runs part"
DESCRIPTION = """\
Compares two results folders: the first bucket of virtual time and the entities
whose digests differ there, then the first rows and columns of the tables.

Exit code 0: same results; 1: they differ."""
EXAMPLE = "sevfleet diff out-a/ out-b/"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("left", metavar="A", help="a results folder")
    parser.add_argument("right", metavar="B", help="another")


def execute(arguments: argparse.Namespace) -> int:
    """Compare and print."""
    from cluster.result_diff import difference
    from cluster.results import Results

    left, right = (Results.load(folder, events=False) for folder in (arguments.left, arguments.right))
    found = difference(left, right)
    for folder, results in ((arguments.left, left), (arguments.right, right)):
        if results.partial is not None:
            print(f"{folder} is partial: {results.partial}")
    if found.scenario_fields:
        print(f"the scenarios differ in: {', '.join(found.scenario_fields)}")
    if found.same:
        print(f"same results, digest {left.digest}")
        return 0
    for line in [*_lines(found), *_hints(found, {arguments.left: left, arguments.right: right})]:
        print(line)
    return 1


def _lines(found: Difference) -> list[str]:
    lines = ["the results differ"]
    if found.first_bucket is not None:
        lines.append(_bucket(found.first_bucket))
    lines += [_cell(cell) for cell in found.cells]
    if found.more:
        lines.append("... and more")
    return lines


def _hints(found: Difference, runs: Mapping[str, Results]) -> list[str]:
    """Commands that show both sides of the first bucket that differs, where both runs can be made again."""
    from cluster.entity_trace import is_reproducible, known_entities
    from cluster.fleet import BUCKET_NS
    from cluster.units import DURATION

    first = found.first_bucket
    if first is None or not all(is_reproducible(results) for results in runs.values()):
        return []
    entity = first.entities[0]
    span = f'--from "{DURATION.format(first.start_ns)}" --to "{DURATION.format(first.start_ns + BUCKET_NS)}"'
    return ["look closer with"] + [
        f"  sevfleet trace {shlex.quote(folder)} --entity {entity} {span}"
        for folder, results in runs.items()
        if entity in known_entities(results)
    ]


def _bucket(first: FirstBucket) -> str:
    from cluster.units import DURATION

    names = ", ".join(first.entities[:8]) + (", ..." if len(first.entities) > 8 else "")
    return f"first in bucket {first.bucket}, from {DURATION.format(first.start_ns)} of virtual time: {names}"


def _cell(cell: CellDifference) -> str:
    place = f"{cell.table}[{', '.join(map(str, cell.key))}]" + (f".{cell.column}" if cell.column else "")
    return f"{place}: {cell.left} | {cell.right}"
