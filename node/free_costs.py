"""Cost tables in which protection is free: what is left of a difference then is not its cost.

With ``without_rmp`` SEV-SNP costs memory what SEV-ES costs; with ``without_encryption`` every generation is PLAIN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from node.cost_table import Cost, CostTable
from node.generation import Generation

_RMP = "rmp."


def without_rmp(table: CostTable) -> Mapping[str, float]:
    """The figures with those of the RMP at nothing, for whoever pays them."""
    return _free(table, lambda row: row.name.startswith(_RMP))


def without_encryption(table: CostTable) -> Mapping[str, float]:
    """The figures with all at nothing that PLAIN machines do not pay, or pay for others' protection."""
    return _free(table, lambda row: row.name.startswith(_RMP) or Generation.PLAIN not in row.generations)


def _free(table: CostTable, chosen: Callable[[Cost], bool]) -> Mapping[str, float]:
    rows = [table.row(name) for name in table]
    return {row.name: _nothing(row) if chosen(row) else row.value for row in rows}


def _nothing(row: Cost) -> float:
    """What leaves everything as it is: the whole of a ratio, none of a time, the least of what may not be nothing."""
    return 1.0 if row.unit == "ratio" else row.bounds[0]
