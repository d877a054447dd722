"""The README's table of technologies says what the tests of the attack matrix find."""

import re
from pathlib import Path

import pytest
from matrix_cells import CELLS
from test_matrix import test_an_attack_comes_to_what_the_matrix_says as carry_out

README = (Path(__file__).resolve().parents[3] / "README.md").read_text()
STOPPED, COMES_TO_PASS = {"blocked", "detected"}, {"leaked", "corrupted", "side_channel", "dos"}

(_CELLS,) = [mark for mark in carry_out.pytestmark if mark.name == "parametrize"]
TESTS = tuple(map(_CELLS.kwargs["ids"], _CELLS.args[1]))
"""Names of the tests that carry the rows out, as pytest collects them."""


def lines() -> list[list[str]]:
    """The table's cells: technology, what it protects, against whom, proved by, leaves open, refuted by."""
    part = README.partition("### What each technology protects")[2].partition("###")[0]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in part.splitlines() if line.startswith("| `")]


def table() -> list[tuple[str, list[str], list[str]]]:
    """Each technology's name, and the rows that prove and refute."""
    return [(line[0].strip("`"), *(re.findall(r"`(\w+)`", cell) for cell in (line[3], line[5]))) for line in lines()]


def test_every_cell_says_something():
    assert [line for line in lines() if len(line) != 6 or not all(line)] == []


@pytest.mark.parametrize(("technology", "proofs", "refutations"), table(), ids=[name for name, *_ in table()])
def test_what_a_technology_protects_and_leaves_open_is_what_attacks_come_to(technology, proofs, refutations):
    outcomes = {
        row: {one.outcome for one in CELLS if (one.row, one.column.name, one.switches) == (row, technology, "")}
        for row in {*proofs, *refutations}
    }
    assert proofs
    assert refutations
    assert [row for row in outcomes if not any(one.startswith(f"{row}-{technology}-") for one in TESTS)] == []
    assert all(outcomes[row] and outcomes[row] <= STOPPED for row in proofs), outcomes
    assert all(outcomes[row] and outcomes[row] <= COMES_TO_PASS for row in refutations), outcomes


def test_every_technology_is_in_the_table():
    assert [name for name, *_ in table()] == ["PLAIN", "SME", "TSME", "SEV", "SEV_ES", "SEV_SNP", "SEV_TIO"]
