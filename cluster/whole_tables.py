"""Tables that somebody reads in a file or a pipe, where no width is given: no figure of them is cut off."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table

_GAP = 2
"""Between columns of a table without lines."""


def print_table(out: Console, table: Table) -> None:
    """Print a table as wide as its figures need, or as the terminal is that it goes to."""
    width = out.width
    if not out.is_terminal:
        gaps = _GAP * max(len(table.columns) - 1, 0)
        out.width = max(width, sum(map(_least_width, table.columns)) + gaps)
    out.print(table)
    out.width = width


def _least_width(column: Column) -> int:
    """Characters of the longest cell; where a cell may go on in the next line, of the longest word."""
    cells = [str(column.header), *map(str, column.cells)]
    parts = cells if column.no_wrap else [word for cell in cells for word in cell.split()]
    return max(map(cell_len, parts), default=0)
