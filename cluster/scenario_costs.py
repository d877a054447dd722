"""The cost table as a scenario wants it: the shipped rows, a user's own measured rows, and single figures replaced."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import UserError
from node.cost_table import CostTable, load_cost_table
from node.measured_costs import MOST_BYTES, parse_measured_costs

if TYPE_CHECKING:
    from cluster.scenario import Scenario


def scenario_costs(scenario: Scenario) -> CostTable:
    """The whole table. Raises UserError for a file that cannot be read, CostTableError for what is in it."""
    table = load_cost_table()
    if scenario.cost_rows is not None:
        table = with_rows_of(table, scenario.cost_rows)
    return table.overridden(scenario.costs)


def with_rows_of(table: CostTable, file: str) -> CostTable:
    """A table with the measured rows of a CSV file. Raises UserError, or CostTableError for a row."""
    path = Path(file)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{file}: expected a CSV file of cost rows, got something else")
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise UserError(f"{file}: expected a CSV file of cost rows, got: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: byte {error.start}: expected text in UTF-8") from None
    return table.measured(parse_measured_costs(text, file, table))


def changes_for(table: CostTable, product: str) -> tuple[tuple[str, float], ...]:
    """The figures that hosts of a product take otherwise than the shipped table has them, by name."""
    own, shipped = table.of_product(product), load_cost_table().of_product(product)
    return tuple((name, own[name]) for name in sorted(own) if own[name] != shipped[name])
