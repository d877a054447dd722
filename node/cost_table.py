"""The cost table: one row per published or swept figure, read from ``costs.csv``.

No cost stands anywhere else. A row that nobody has published says so and has a
sweep range. Each figure is used with the unit its name ends in.

A scenario may replace a figure by anything from ``least`` to ``most``, in the
same unit. That is wide, so that extremes may be tried: about ten times beyond the
sweep on both sides, or a hundred times beyond a figure that has none. A time or
an adder may be nothing; what is divided by may not, and a share is no more than
a whole.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import resources

COLUMNS = ("name", "value", "unit", "applies_to", "published", "source", "sweep_low", "sweep_high", "least", "most")


class CostTableError(ValueError):
    """A row of a cost table that cannot be used; the message names row and column."""


class CostOverrideError(CostTableError):
    """A figure that cannot be replaced, or not by this: its name, what was expected and what was there."""

    def __init__(self, name: str, expected: str, got: str) -> None:
        super().__init__(f"costs.{name}: expected {expected}, got {got}")
        self.name = name
        self.expected = expected
        self.got = got


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
    bounds: tuple[float, float]
    """Least and most that a scenario may put in its place."""


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

        Raises CostOverrideError for an unknown name or a figure outside its bounds.
        """
        rows = dict(self._rows)
        for name, value in overrides.items():
            if name not in rows:
                raise CostOverrideError(name, "a figure of the cost table (node/costs.csv)", "an unknown name")
            old = rows[name]
            least, most = old.bounds
            if not least <= value <= most:
                raise CostOverrideError(name, f"{least:,.15g} to {most:,.15g} {old.unit}", f"{value:.15g}")
            rows[name] = replace(old, value=float(value), published=False, source="overridden by the scenario")
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
    bounds = _number(cells["least"], f"{where}: least"), _number(cells["most"], f"{where}: most")
    inner = (value, value) if sweep is None else sweep
    for column, fits in (("least", bounds[0] <= inner[0]), ("most", inner[1] <= bounds[1])):
        if not fits:
            expected = f"expected {inner[0]:g} to {inner[1]:g} between least and most"
            raise CostTableError(f"{where}: {column}: {expected}, got {bounds[0]:g} to {bounds[1]:g}")
    return Cost(cells["name"], value, cells["unit"], cells["applies_to"], published, cells["source"], sweep, bounds)


def _number(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise CostTableError(f"{where}: expected a number, got {cell!r}") from None
    if not math.isfinite(value) or value < 0:
        raise CostTableError(f"{where}: expected a finite number, zero or more, got {cell!r}")
    return value
