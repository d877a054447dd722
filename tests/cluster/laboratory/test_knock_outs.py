"""With one mechanism of the chip switched off, exactly the attacks succeed that it alone stops.

What is expected to flip is reasoned from what each mechanism checks (SEV-SNP
white paper, table 1 and the sections on RMP checks), not from runs.
"""

import pytest
from matrix_cells import CELLS

from cluster.laboratory.protection import Column, products
from cluster.laboratory.rows import ROWS, verdicts
from cluster.laboratory.scene import Setting
from node.platform import Platform, Protection

FLIPS: dict[Protection, dict[str, str]] = {
    Protection.RMP_WRITE_CHECK: {
        "09": "corrupted",  # the host's store is what it stops
        "10": "corrupted",  # so is putting old ciphertext back
        "16b": "corrupted",  # and ciphertext of another address
    },
    Protection.GPA_MATCH: {
        "11": "corrupted",  # one page of DRAM under two guest addresses: owner and validation are right for both
        "12": "leaked",  # the guest's own page at another address, likewise
    },
    Protection.VALIDATED_BIT: {
        "13": "corrupted",  # a fresh page has the right owner and address; only the guest's consent is missing
    },
    Protection.IOMMU_CHECK: {
        "06": "corrupted",  # a device's store; what it loads stays ciphertext (05a, 05b)
    },
    Protection.TWEAK: {},  # nobody gets to move blocks: the write check stands before it (16a, 16b)
}
SNP = (Column.SEV_SNP, Column.SEV_TIO)
DEFAULTS = {
    (cell.row, cell.column, product): cell.outcome for cell in CELLS if not cell.switches for product in cell.products
}


@pytest.mark.parametrize("column", SNP)
@pytest.mark.parametrize("protection", Protection)
def test_exactly_what_a_mechanism_stops_comes_to_pass_without_it(protection: Protection, column: Column) -> None:
    found, expected = {}, {}
    for product in products(column)[-1:]:
        setting = Setting(column, product, Platform(disabled=frozenset({protection})))
        for row in ROWS:
            found[row, product] = {verdict.outcome.value for verdict in verdicts(row, setting)}
            expected[row, product] = {FLIPS[protection].get(row, DEFAULTS[row, column, product])}
    assert {at: (what, expected[at]) for at, what in found.items() if what != expected[at]} == {}


def test_every_flip_is_one() -> None:
    for flips in FLIPS.values():
        for row, outcome in flips.items():
            for column in SNP:
                assert {DEFAULTS[row, column, product] for product in products(column)} <= {"blocked", "detected"}
                assert outcome in ("leaked", "corrupted")
