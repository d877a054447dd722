"""Cells of the matrix of published attacks and their outcomes, transcribed to ``matrix_cells.csv``.

Sources of each cell are named there (AMD's Table 1 of the SEV-SNP white paper,
the attacks' papers, or inference). A line holds for its products; ``all`` are
those that have the column.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.laboratory.protection import Column, products

FILE = Path(__file__).parent / "matrix_cells.csv"


@dataclass(frozen=True)
class Cell:
    row: str
    column: Column
    products: tuple[str, ...]
    switches: str
    outcome: str


def cells() -> Iterator[Cell]:
    with FILE.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            column = Column(line["generation"])
            named = products(column) if line["products"] == "all" else tuple(line["products"].split())
            yield Cell(line["id"], column, named, line["switches"], line["outcome"])


CELLS = tuple(cells())
