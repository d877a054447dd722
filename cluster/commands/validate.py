"""``sevfleet validate``: predictions held against published results."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING

from cluster.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from cluster.validation.case import Case, Point
    from cluster.validation.verdicts import PointResult, Validation

NAME = "validate"
HELP = "hold the model's predictions against published results"
DESCRIPTION = """\
Predicts published measurements and prints each beside what was published: the
error, the tolerance, and the interval that the prediction takes on while every
row of the cost table that nobody has published goes through its sweep range,
one at a time. Known misses come first, each with its reason.

A case is blind if nothing in the cost table was fitted to its results, but for
points marked fitted, which count for nothing, and no guess of its setup decides
them; only blind cases count. Where nothing was published it says "model only".

CASE picks cases or groups of them: BL-2, or MC. Exit code 1: a blind case is
outside of its tolerance."""
EXAMPLE = "sevfleet validate BL IO --rows mine.csv"

_WIDEST = 15


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("cases", nargs="*", metavar="CASE", help="cases, or groups of them (default: all)")
    add("--rows", metavar="FILE", help="a CSV file of rows measured on hosts of your own")
    add("--no-sweep", action="store_true", help="no intervals")
    add("--json", action="store_true", help="one JSON object a line")


def execute(arguments: argparse.Namespace) -> int:
    """Predict and print."""
    from cluster.scenario_costs import with_rows_of
    from cluster.validation.verdicts import validate
    from node.cost_table import load_cost_table

    table = load_cost_table()
    if arguments.rows is not None:
        table = with_rows_of(table, arguments.rows)
    found = validate(_chosen(arguments.cases), table, sweep=not arguments.no_sweep)
    if arguments.json:
        for one in found.results:
            print(json.dumps(_as_json(one)))
    else:
        _print(found, sweep=not arguments.no_sweep)
    return 0 if found.holds else 1


def _chosen(words: Sequence[str]) -> list[Case]:
    from cluster.validation.case import load_cases

    cases = load_cases()
    known = {one.id for one in cases} | {one.group for one in cases}
    for word in words:
        if word.upper() not in known:
            raise UserError(f'CASE: expected some of {", ".join(sorted(known))}, got "{word}"')
    wanted = {word.upper() for word in words}
    return [one for one in cases if not wanted or {one.id, one.group} & wanted]


def _as_json(one: PointResult) -> dict[str, object]:
    return {
        "case": one.case.id, "point": one.point.name, "unit": one.point.unit, "predicted": one.predicted,
        "published": [_finite(one.point.least), _finite(one.point.most)], "error": one.error,
        "tolerance": one.point.tolerance, "interval": [one.least, one.most], "verdict": one.verdict.value,
        "blind": one.case.blind, "kind": one.case.kind.value, "setup": one.case.setup, "source": one.case.source,
        "known_miss": one.point.known_miss or None,
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else value


def _print(found: Validation, *, sweep: bool) -> None:
    from cluster.report import wide_console
    from cluster.whole_tables import print_table

    out = wide_console()
    for miss in found.known_misses:
        out.print(
            f"known miss: {miss.case.id}, {miss.point.name}: {_figure(miss.predicted)} predicted, "
            f"{_published(miss.point)} {miss.point.unit} published: {miss.point.known_miss}",
            highlight=False,
        )
    table = _table("case", "", "predicted", "interval", "published", "unit", "error", "allowed", "blind", "")
    for one in found.results:
        error = "" if one.error is None else f"{one.error:+.1%}"
        interval = f"{_figure(one.least)} to {_figure(one.most)}" if one.most > one.least else ""
        allowed = "" if one.verdict == "model only" else f"+-{_figure(one.point.tolerance)}"
        table.add_row(
            one.case.id, one.point.name, _figure(one.predicted), interval, _published(one.point), one.point.unit, error,
            allowed, "blind" if one.case.blind else "", one.verdict.value,
        )  # fmt: skip
    print_table(out, table)
    groups = _table("group", "points", "mean error", "worst")
    for group in found.groups:
        groups.add_row(group.group, str(group.points), f"{group.mean_error:.1%}", f"{group.worst_error:.1%}")
    out.print()
    out.print(groups)
    if sweep and found.swings:
        swings = _table("swept row", "case", "", "from", "to", "swing")
        for swing in found.swings[:_WIDEST]:
            ends = (_figure(swing.least), _figure(swing.most))
            swings.add_row(swing.row, swing.case, swing.point, *ends, f"{swing.ratio:.1%}")
        out.print(f"\nWhat matters of the rows that nobody has published, widest {_WIDEST} of {len(found.swings)}")
        out.print(swings)
    blind = found.blind_cases
    out.print(
        f"\n{sum(blind.values())} of {len(blind)} blind quantitative cases inside their tolerance, "
        f"known misses: {len(found.known_misses)}",
        highlight=False,
    )


def _table(*headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in {"", "case", "unit", "blind", "group"} else "right")
    return table


def _published(point: Point) -> str:
    ends = [_figure(edge) for edge in (point.least, point.most) if not math.isinf(edge)]
    if point.least == point.most:
        return ends[0]
    if len(ends) == 2:
        return " to ".join(ends)
    return "" if not ends else f"at least {ends[0]}" if math.isinf(point.most) else f"at most {ends[0]}"


def _figure(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
