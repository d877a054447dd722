"""What a sweep found, for a person at a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from cluster.report import wide_console
from cluster.sweeps.figures import FIGURES
from cluster.sweeps.parameter_sweep import SweepResults
from cluster.sweeps.unpublished import UnpublishedSweep, relative_swing
from cluster.units import DURATION, SIZE
from cluster.whole_tables import print_table

_MOST_FAILURES = 10
_MOST_SWINGS = 20

Row = Mapping[str, Any]


def print_sweep(results: SweepResults, console: Console | None = None) -> None:
    """Print the table of a sweep, figure by figure so that a setting's effect stands in a column."""
    out = console or wide_console()
    if results.partial is not None:
        out.print(f"[bold]Partial results:[/] {results.partial}\n")
    rows: Sequence[Row] = sorted(
        (row for row in results.table.to_pylist() if row["n"]),
        key=lambda row: (list(FIGURES).index(row["figure"]), row["of"], row["point"]),
    )
    if rows:
        print_table(out, _means(results, rows))
        out.print()
    _print_failures(out, results)
    plan = results.plan
    out.print(
        f"grid points {len(plan.points):,}, seeds {len(plan.seeds):,} each, runs {results.runs.num_rows:,}; "
        "± is half of the 95 % confidence interval of the mean",
        highlight=False,
    )


def print_ranges(results: UnpublishedSweep, console: Console | None = None) -> None:
    """Print each figure with its range, and the widest swings."""
    out = console or wide_console()
    if results.partial is not None:
        out.print(f"[bold]Partial results:[/] {results.partial}\n")
    ranges = {(row["figure"], row["of"]): row for row in results.ranges.to_pylist()}
    if ranges:
        table = _table("While rows of the cost table are swept", ("figure", "of"),
                       ("as it is", "least", "most", "rows", "without"))  # fmt: skip
        for (figure, of), row in sorted(ranges.items(), key=lambda item: (list(FIGURES).index(item[0][0]), item[0][1])):
            values = (_figure(row[column], row["unit"]) for column in ("as_is", "low", "high"))
            table.add_row(figure, of, *values, str(row["rows"]), str(row["none_at"] or "-"))
        print_table(out, table)
        out.print()
    swings = sorted(
        results.swings.to_pylist(), key=lambda row: -relative_swing(row, ranges[row["figure"], row["of"]]["as_is"])
    )
    if swings:
        shown = swings[:_MOST_SWINGS]
        title = f"Widest swings: {len(shown)} of {len(swings)}"
        table = _table(title, ("row", "figure", "of"), ("row from", "to", "figure from", "to"))
        for row in shown:
            ends = (_figure(row[column], row["unit"]) for column in ("at_low", "at_high"))
            table.add_row(row["row"], row["figure"], row["of"], f"{row['row_low']:g}", f"{row['row_high']:g}", *ends)
        print_table(out, table)
        out.print()
    _print_failures(out, results)
    plan = results.plan
    out.print(
        f"rows swept {len(plan.axes):,}, seeds {len(plan.seeds):,}, runs {results.runs.num_rows:,}; "
        "without: ends at which a figure has no value",
        highlight=False,
    )


def print_rows_as_json(table: pa.Table) -> None:
    """Print a table as JSON, one object a row."""
    for row in table.to_pylist():
        sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def _print_failures(out: Console, results: SweepResults | UnpublishedSweep) -> None:
    if results.failures:
        # No table's title: it would be folded to the width of a narrow table.
        out.print(f"Runs without a result: {len(results.failures):,}", highlight=False)
        print_table(out, _failures(results))
        out.print()


def _means(results: SweepResults, rows: Sequence[Row]) -> Table:
    paths = [axis.path for axis in results.plan.axes]
    table = _table("Means over seeds", ("figure", "of"), (*paths, "mean", "±", "least", "most", "n"))
    last = ("", "")
    for row in rows:
        name = (row["figure"], row["of"])
        shown = ("", "") if name == last else name
        last = name
        mean, least, most = (_figure(row[column], row["unit"]) for column in ("mean", "min", "max"))
        table.add_row(*shown, *(str(row[path]) for path in paths), mean, _half_width(row), least, most, str(row["n"]))
    return table


def _failures(results: SweepResults | UnpublishedSweep) -> Table:
    table = _table("", ("run", "reason"), ())
    for run, reason in list(results.failures.items())[:_MOST_FAILURES]:
        table.add_row(run.described(results.plan.axes), reason)
    if len(results.failures) > _MOST_FAILURES:
        table.add_row("...", f"and {len(results.failures) - _MOST_FAILURES:,} more")
    return table


def _table(title: str, words: tuple[str, ...], figures: tuple[str, ...]) -> Table:
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for heading in words:
        table.add_column(heading, no_wrap=heading != "reason")
    for heading in figures:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _half_width(row: Row) -> str:
    if row["half_width"] is None:
        return "-"
    return f"{row['half_width']:.2g}" if row["unit"] == "x" else _figure(row["half_width"], row["unit"])


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "ns":
        return DURATION.about(value)
    if unit == "byte":
        return SIZE.about(value)
    return f"{value:.4f} x" if unit == "x" else f"{value:,.5g}"
