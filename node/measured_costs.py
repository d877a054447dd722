"""A user's own cost rows: a CSV file of what was measured on hosts of their own.

Columns: name, value, unit, products, source, sweep_low, sweep_high. A row replaces the
shipped one on hosts of its products, ``all`` for any; a sweep is needed by nobody, for
it was measured, but counts where there is one. Read as hostile: what is wrong is told by file, line and column.
"""

from __future__ import annotations

from dataclasses import replace

from node.cost_table import (
    Cost,
    CostTable,
    CostTableError,
    Kind,
    check_products,
    lines_of,
    number_in,
    sweep_in,
    text_in,
    unit_in,
    words_in,
)
from node.product import PRODUCTS

COLUMNS = ("name", "value", "unit", "products", "source", "sweep_low", "sweep_high")
MOST_BYTES = 1 << 20
"""Of a file; the shipped table has a hundredth of it."""


def parse_measured_costs(text: str, file: str, table: CostTable) -> tuple[Cost, ...]:
    """The rows of a file, as they replace those of ``table``. Raises CostTableError naming file, line and column."""
    if len(text) > MOST_BYTES:
        raise CostTableError(f"{file}: expected at most {MOST_BYTES:,} bytes of cost rows, got {len(text):,}")
    rows: list[Cost] = []
    for where, cells in lines_of(text, file, COLUMNS):
        name = text_in(cells, "name", where)
        if name not in table:
            raise CostTableError(f"{where}: name: expected a figure of the cost table (node/costs.csv), got {name!r}")
        source = text_in(cells, "source", where)
        unit_in(cells, name, where)
        old = table.row(name)
        value = number_in(cells, "value", where)
        _check_bounds(old, "value", value, where)
        sweep = sweep_in(cells, value, where)
        for column, end in zip(("sweep_low", "sweep_high"), sweep or (), strict=False):
            _check_bounds(old, column, end, where)
        row = replace(
            old, value=value, kind=Kind.OVERRIDDEN, source=source, points=(),
            products=words_in(cells, "products", list(PRODUCTS), where), sweep=sweep,
        )  # fmt: skip
        check_products(rows, row, where)
        rows.append(row)
    return tuple(rows)


def _check_bounds(old: Cost, column: str, figure: float, where: str) -> None:
    """Raise CostTableError for a figure that no scenario could put in the row's place."""
    least, most = old.bounds
    if not least <= figure <= most:
        expected = f"expected {least:,.15g} to {most:,.15g} {old.unit}"
        raise CostTableError(f"{where}: {column}: {expected}, got {figure:.15g}")
