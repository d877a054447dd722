"""The cost table: one row per published or swept figure, read from ``costs.csv``.

No cost stands anywhere else. A row that nobody has published says so and has a
sweep range. Each figure is used with the unit its name ends in.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources

COLUMNS = ("name", "value", "unit", "applies_to", "published", "source", "sweep_low", "sweep_high")


class CostTableError(ValueError):
    """A row of a cost table that cannot be used; the message names row and column."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One row: a figure, its unit, where it holds and where it was published."""

    name: str
    value: float
    unit: str
    applies_to: str
    published: bool
    source: str
    sweep: tuple[float, float] | None


class CostTable(Mapping[str, float]):
    """The figures by name; ``row(name)`` gives a figure with its source."""

    def __init__(self, rows: Mapping[str, Cost]) -> None:
        self._rows = dict(rows)

    def __getitem__(self, name: str) -> float:
        return self._rows[name].value

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, name: str) -> Cost:
        """The whole row of a figure."""
        return self._rows[name]

    def overridden(self, overrides: Mapping[str, float]) -> CostTable:
        """A table with some figures replaced, as a scenario's ``[costs]`` asks.

        Raises CostTableError for an unknown name or a figure that is negative
        or not finite.
        """
        rows = dict(self._rows)
        for name, value in overrides.items():
            if name not in rows:
                raise CostTableError(f"costs.{name}: no such figure in the cost table")
            if not math.isfinite(value) or value < 0:
                raise CostTableError(f"costs.{name}: expected a finite number, zero or more, got {value!r}")
            old = rows[name]
            source = "overridden by the scenario"
            rows[name] = Cost(name, float(value), old.unit, old.applies_to, False, source, old.sweep)
        return CostTable(rows)


def load_cost_table() -> CostTable:
    """The table that ships with sevfleet."""
    return parse_cost_table((resources.files("node") / "costs.csv").read_text("utf-8"), "costs.csv")


def parse_cost_table(text: str, file: str) -> CostTable:
    """Read a cost table; raises CostTableError naming file, line and column."""
    reader = csv.reader(io.StringIO(text))
    if tuple(next(reader, ())) != COLUMNS:
        raise CostTableError(f"{file}: line 1: expected the columns {', '.join(COLUMNS)}")
    rows: dict[str, Cost] = {}
    for line, cells in enumerate(reader, start=2):
        where = f"{file}: line {line}"
        if len(cells) != len(COLUMNS):
            raise CostTableError(f"{where}: expected {len(COLUMNS)} columns, got {len(cells)}")
        cost = _parse_row(dict(zip(COLUMNS, cells, strict=True)), where)
        if cost.name in rows:
            raise CostTableError(f"{where}: name: {cost.name} stands twice")
        rows[cost.name] = cost
    return CostTable(rows)


def _parse_row(cells: Mapping[str, str], where: str) -> Cost:
    for column in ("name", "unit", "applies_to", "source"):
        if not cells[column].strip():
            raise CostTableError(f"{where}: {column}: expected text, got nothing")
    if cells["published"] not in {"yes", "no"}:
        raise CostTableError(f"{where}: published: expected yes or no, got {cells['published']!r}")
    published = cells["published"] == "yes"
    value = _number(cells["value"], f"{where}: value")
    low, high = cells["sweep_low"], cells["sweep_high"]
    if bool(low) != bool(high):
        raise CostTableError(f"{where}: sweep_high: expected both ends of a sweep or neither")
    sweep = (_number(low, f"{where}: sweep_low"), _number(high, f"{where}: sweep_high")) if low else None
    if sweep is None and not published:
        raise CostTableError(f"{where}: sweep_low: expected a sweep range for a figure that nobody published")
    if sweep is not None and not sweep[0] <= value <= sweep[1]:
        expected = f"expected it inside its sweep {sweep[0]:g} to {sweep[1]:g}"
        raise CostTableError(f"{where}: value: {expected}, got {value:g}")
    return Cost(cells["name"], value, cells["unit"], cells["applies_to"], published, cells["source"], sweep)


def _number(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise CostTableError(f"{where}: expected a number, got {cell!r}") from None
    if not math.isfinite(value) or value < 0:
        raise CostTableError(f"{where}: expected a finite number, zero or more, got {cell!r}")
    return value
