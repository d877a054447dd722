"""The cost table: one row per figure, read from ``costs.csv``, and the only place where costs stand.

Each figure is used with the unit its name ends in. Its kind says how far to trust it:
somebody published it; it was fitted to what somebody published; or nobody published
it, and it has a range to be swept over. ``points`` names the published results that a
figure was taken from or fitted to: a prediction of one of those proves nothing.

A name may stand in several rows of different products. A host takes the last row that
names its product, and the first of all where none does: most figures were measured on
one product and are taken for all.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from importlib import resources

from node.generation import Generation
from node.product import PRODUCTS

COLUMNS = (
    "name", "value", "unit", "generations", "products", "what", "kind", "source", "points",
    "sweep_low", "sweep_high", "least", "most",
)  # fmt: skip
UNITS: Mapping[str, str] = {
    "_ns_per_kib": "ns/KiB", "_ns_per_gib": "ns/GiB", "bytes_per_s": "byte/s", "_ns": "ns", "_bytes": "byte",
    "_per_s": "1/s", "_share": "ratio", "_factor": "ratio", "_per_request": "count", "_per_walk": "count",
    "_per_mac": "count", "_per_access": "count",
}  # fmt: skip
"""The unit of a figure by the end of its name; the first that fits."""
ALL = "all"


class CostTableError(ValueError):
    """A row of a cost table that cannot be used; the message names row and column."""


class CostOverrideError(CostTableError):
    """A figure that cannot be replaced, or not by this: its name, what was expected and what was there."""

    def __init__(self, name: str, expected: str, got: str) -> None:
        super().__init__(f"costs.{name}: expected {expected}, got {got}")
        self.name = name
        self.expected = expected
        self.got = got


class Kind(StrEnum):
    """How a figure came to be."""

    PUBLISHED = "published"
    FITTED = "fitted"
    """Worked out from published results, its points."""
    UNPUBLISHED = "unpublished"
    """Nobody has published it: it has a sweep range."""
    OVERRIDDEN = "overridden"
    """Put there by a scenario or a user's own file; no shipped row."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One row: a figure, its unit, where it holds and where it comes from."""

    name: str
    value: float
    unit: str
    generations: frozenset[Generation]
    """Whose virtual machines pay it."""
    products: tuple[str, ...]
    """Of hosts that it was measured on; all of them where that is not said."""
    what: str
    kind: Kind
    source: str
    points: tuple[str, ...]
    """The published results that it rests on, as ``source@point``."""
    sweep: tuple[float, float] | None
    bounds: tuple[float, float]
    """Least and most that a scenario may put in its place."""

    @property
    def published(self) -> bool:
        """Whether it rests on a published figure."""
        return self.kind in (Kind.PUBLISHED, Kind.FITTED)


class CostTable(Mapping[str, float]):
    """The figures by name; ``row(name)`` gives a figure with its source."""

    def __init__(self, rows: Sequence[Cost], product: str | None = None) -> None:
        self.rows = tuple(rows)
        """Every row, also those of other products."""
        self._product = product
        self._own: dict[str, Cost] = {}
        for row in self.rows:
            named = row.products == tuple(PRODUCTS) if product is None else product in row.products
            if named or row.name not in self._own:
                self._own[row.name] = row

    def __getitem__(self, name: str) -> float:
        return self._own[name].value

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)

    def row(self, name: str) -> Cost:
        """The whole row of a figure."""
        return self._own[name]

    def of_product(self, product: str) -> CostTable:
        """The figures as hosts of a product take them."""
        return CostTable(self.rows, product)

    def overridden(self, overrides: Mapping[str, float]) -> CostTable:
        """A table with some figures replaced, for all products, as a scenario's ``[costs]`` asks.

        Raises CostOverrideError for an unknown name or a figure outside its bounds.
        """
        changed: dict[str, Cost] = {}
        for name, value in overrides.items():
            if name not in self._own:
                raise CostOverrideError(name, "a figure of the cost table (node/costs.csv)", "an unknown name")
            old = self._own[name]
            least, most = old.bounds
            if not least <= value <= most:
                raise CostOverrideError(name, f"{least:,.15g} to {most:,.15g} {old.unit}", f"{value:.15g}")
            changed[name] = replace(
                old, value=float(value), kind=Kind.OVERRIDDEN, source="overridden by the scenario", points=(),
                products=tuple(PRODUCTS), sweep=None,
            )  # fmt: skip
        kept = [row for row in self.rows if row.name not in changed]
        return CostTable([*kept, *changed.values()], self._product)

    def measured(self, rows: Sequence[Cost]) -> CostTable:
        """A table in which somebody's own rows stand in place of those of the same name and product."""
        return CostTable([*self.rows, *rows], self._product)


@cache
def load_cost_table() -> CostTable:
    """The table that ships with sevfleet."""
    return parse_cost_table((resources.files("node") / "costs.csv").read_text("utf-8"), "costs.csv")


def parse_cost_table(text: str, file: str) -> CostTable:
    """Read a cost table; raises CostTableError naming file, line and column."""
    rows: list[Cost] = []
    for where, cells in lines_of(text, file, COLUMNS):
        cost = _parse_row(cells, where)
        check_products(rows, cost, where)
        rows.append(cost)
    return CostTable(rows)


def lines_of(text: str, file: str, columns: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The rows of a CSV file with these columns, each with its place for errors. Raises CostTableError."""
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        if tuple(next(reader, ())) != columns:
            raise CostTableError(f"{file}: line 1: expected the columns {', '.join(columns)}")
        for cells in reader:
            where = f"{file}: line {reader.line_num}"
            if len(cells) != len(columns):
                raise CostTableError(f"{where}: expected {len(columns)} columns, got {len(cells)}")
            yield where, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise CostTableError(f"{file}: line {reader.line_num}: expected CSV, got {error}") from None


def check_products(rows: Sequence[Cost], cost: Cost, where: str) -> None:
    """Raise CostTableError where a product would have two rows of one name."""
    for row in rows:
        if row.name == cost.name and set(row.products) & set(cost.products):
            raise CostTableError(f"{where}: name: {cost.name} stands twice")


def _parse_row(cells: Mapping[str, str], where: str) -> Cost:
    name = text_in(cells, "name", where)
    source, what = text_in(cells, "source", where), text_in(cells, "what", where)
    unit = unit_in(cells, name, where)
    if cells["kind"] not in {Kind.PUBLISHED, Kind.FITTED, Kind.UNPUBLISHED}:
        raise CostTableError(f"{where}: kind: expected published, fitted or unpublished, got {cells['kind']!r}")
    kind, points = Kind(cells["kind"]), tuple(cells["points"].split())
    if (kind is Kind.UNPUBLISHED) is bool(points):
        expected = "nothing, for nobody published it" if points else f"the results that a {kind} figure rests on"
        raise CostTableError(f"{where}: points: expected {expected}, got {cells['points']!r}")
    value = number_in(cells, "value", where)
    sweep = sweep_in(cells, value, where)
    if sweep is None and kind is Kind.UNPUBLISHED:
        raise CostTableError(f"{where}: sweep_low: expected a sweep range for a figure that nobody published")
    bounds = number_in(cells, "least", where), number_in(cells, "most", where)
    inner = (value, value) if sweep is None else sweep
    for column, fits in (("least", bounds[0] <= inner[0]), ("most", inner[1] <= bounds[1])):
        if not fits:
            expected = f"expected {inner[0]:g} to {inner[1]:g} between least and most"
            raise CostTableError(f"{where}: {column}: {expected}, got {bounds[0]:g} to {bounds[1]:g}")
    generations = frozenset(Generation[word] for word in words_in(cells, "generations", list(_GENERATIONS), where))
    products = words_in(cells, "products", list(PRODUCTS), where)
    return Cost(name, value, unit, generations, products, what, kind, source, points, sweep, bounds)


_GENERATIONS = tuple(Generation.__members__)


def text_in(cells: Mapping[str, str], column: str, where: str) -> str:
    """A cell that may not be empty. Raises CostTableError."""
    if not cells[column].strip():
        raise CostTableError(f"{where}: {column}: expected text, got nothing")
    return cells[column].strip()


def unit_in(cells: Mapping[str, str], name: str, where: str) -> str:
    """The unit, which is the one that the name ends in. Raises CostTableError."""
    unit = next((unit for ending, unit in UNITS.items() if name.endswith(ending)), None)
    if unit is None:
        raise CostTableError(f"{where}: name: expected it to end in one of {', '.join(UNITS)}, got {name!r}")
    if cells["unit"] != unit:
        raise CostTableError(f"{where}: unit: expected {unit}, as the name says, got {cells['unit']!r}")
    return unit


def words_in(cells: Mapping[str, str], column: str, known: Sequence[str], where: str) -> tuple[str, ...]:
    """Some of the words that are known, in their order, or ``all`` of them. Raises CostTableError."""
    words = cells[column].split()
    if words == [ALL]:
        return tuple(known)
    if not words or not set(words) <= set(known):
        raise CostTableError(f"{where}: {column}: expected all or some of {', '.join(known)}, got {cells[column]!r}")
    return tuple(word for word in known if word in words)


def sweep_in(cells: Mapping[str, str], value: float, where: str) -> tuple[float, float] | None:
    """The range that a figure is to be swept over, which holds it; None without one. Raises CostTableError."""
    if bool(cells["sweep_low"]) != bool(cells["sweep_high"]):
        raise CostTableError(f"{where}: sweep_high: expected both ends of a sweep or neither")
    if not cells["sweep_low"]:
        return None
    sweep = number_in(cells, "sweep_low", where), number_in(cells, "sweep_high", where)
    if not sweep[0] <= value <= sweep[1]:
        expected = f"expected it inside its sweep {sweep[0]:g} to {sweep[1]:g}"
        raise CostTableError(f"{where}: value: {expected}, got {value:g}")
    return sweep


def number_in(cells: Mapping[str, str], column: str, where: str) -> float:
    """A finite number, zero or more. Raises CostTableError."""
    cell = cells[column]
    try:
        value = float(cell)
    except ValueError:
        value = None
    if value is None or "_" in cell:  # 1_000 is a number to Python alone.
        raise CostTableError(f"{where}: {column}: expected a number, got {cell!r}")
    if not math.isfinite(value) or value < 0:
        raise CostTableError(f"{where}: {column}: expected a finite number, zero or more, got {cell!r}")
    return value
