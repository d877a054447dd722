"""``sevfleet calibrate``: the cost table, with what each figure rests on."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from cluster.commands.arguments import one_of
from cluster.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from node.cost_table import Cost, CostTable

NAME = "calibrate"
HELP = "print the cost table: each figure with its unit, source and sweep range"
DESCRIPTION = """\
Prints the cost table: every figure with its unit, whose it is, whether it was
published, fitted or neither, where it comes from, and over what range it is to
be swept where nobody has published it. NAME filters: rows with it in their name.

With --rows FILE it is the table as it is with your own measured rows in it: a
CSV file with the columns name, value, unit, products, source, sweep_low and
sweep_high. The same file may stand in a scenario, as cost_rows."""
EXAMPLE = "sevfleet calibrate rmp --kind unpublished"

KINDS = ("published", "fitted", "unpublished", "overridden")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("name", nargs="?", default="", metavar="NAME", help="rows with this in their name (default: all)")
    add("--kind", type=one_of("kind", KINDS), metavar="KIND", help=f"rows of one kind: {', '.join(KINDS)}")
    add("--product", metavar="P", help="the rows as hosts of one product take them (default: every row)")
    add("--rows", metavar="FILE", help="a CSV file of rows measured on hosts of your own")
    add("--json", action="store_true", help="one JSON object a line")


def execute(arguments: argparse.Namespace) -> int:
    """Print the rows."""
    from cluster.scenario_costs import with_rows_of
    from node.cost_table import load_cost_table
    from node.product import PRODUCTS

    table = load_cost_table()
    if arguments.rows is not None:
        table = with_rows_of(table, arguments.rows)
    if arguments.product is not None and arguments.product not in PRODUCTS:
        raise UserError(f'--product: expected one of {", ".join(PRODUCTS)}, got "{arguments.product}"')
    rows = [row for row in _rows(table, arguments.product) if arguments.name in row.name]
    if not rows:
        raise UserError(f'NAME: expected part of the name of a figure, such as dram, got "{arguments.name}"')
    chosen = [row for row in rows if arguments.kind in (None, row.kind)]
    if arguments.json:
        for row in chosen:
            print(json.dumps(_as_json(row)))
    else:
        _print(chosen)
    return 0


def _rows(table: CostTable, product: str | None) -> list[Cost]:
    if product is None:
        return list(table.rows)
    own = table.of_product(product)
    return [own.row(name) for name in own]


def _as_json(row: Cost) -> dict[str, object]:
    return {
        "name": row.name, "value": row.value, "unit": row.unit,
        "generations": sorted(one.name for one in row.generations), "products": row.products, "what": row.what,
        "kind": row.kind.value, "source": row.source, "points": row.points, "sweep": row.sweep, "bounds": row.bounds,
    }  # fmt: skip


def _print(rows: Sequence[Cost]) -> None:
    from rich.table import Table

    from cluster.report import wide_console

    table = Table(box=None, pad_edge=False)
    for heading in ("name", "value", "unit", "kind", "sweep", "measured on", "what, and where it comes from"):
        table.add_column(
            heading, justify="right" if heading in {"value", "sweep"} else "left", no_wrap=heading in {"name", "value"}
        )
    for row in rows:
        sweep = "" if row.sweep is None else f"{row.sweep[0]:,.15g} to {row.sweep[1]:,.15g}"
        table.add_row(
            row.name, f"{row.value:,.15g}", row.unit, row.kind, sweep, _where(row), f"{row.what}: {row.source}"
        )
    wide_console().print(table)


def _where(row: Cost) -> str:
    from node.product import PRODUCTS

    return "" if row.products == tuple(PRODUCTS) else " ".join(row.products)
