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
from node.product import PRODUCTS
from psp.policy import SnpPolicy

FLIPS: dict[Protection, dict[str, str]] = {
    Protection.RMP_WRITE_CHECK: {
        "03": "corrupted",  # the host's store to a save area, whose only protection it is
        "04": "corrupted",  # an old one is as good as a new one to the key
        "09": "corrupted",  # the host's store is what it stops
        "10": "corrupted",  # so is putting old ciphertext back
        "16b": "corrupted",  # and ciphertext of another address
        "17": "corrupted",  # as which it reaches what is sent: junk, for the address is in the cipher
    },
    Protection.GPA_MATCH: {
        "11": "corrupted",  # one page of DRAM under two guest addresses: owner and validation are right for both
        "12": "leaked",  # the guest's own page at another address, likewise
        "17": "leaked",  # which it sends
        "20": "leaked",  # a page walk's load of a table, too, is of a page at another address
        "18": "corrupted",  # or runs
    },
    Protection.VALIDATED_BIT: {
        "13": "corrupted",  # a fresh page has the right owner and address; only the guest's consent is missing
    },
    Protection.IOMMU_CHECK: {
        "06": "corrupted",  # a device's store; what it loads stays ciphertext (05a, 05b)
        "38": "leaked",  # so is what a device stores into a context, without the detour over the security processor
        "71a": "corrupted",  # what it loads there stays ciphertext
        "82a": "corrupted",
        "82b": "leaked",  # as 38, by way of the table
    },
    Protection.SAVE_AREA_INTEGRITY: {},  # save areas of SNP guests have no such value
    Protection.TLB_ID: {
        "22": "corrupted",  # the flush that the hypervisor leaves out is the hardware's then
    },
    Protection.IOMMU_LOG_CHECK: {},  # Milan has none that could be missed; Turin's stands below
    Protection.TWEAK: {},  # nobody gets to move blocks: the write check stands before it (16a, 16b)
}
ELSEWHERE: dict[tuple[Protection, Column], dict[str, str]] = {
    # Without a tweak a block decrypts to the same wherever it lies, so a chosen text only has to be moved.
    (Protection.TWEAK, column): {"16a": "corrupted"}
    for column in (Column.SME, Column.SEV, Column.SEV_ES)
} | {
    # Nobody keeps the hypervisor from storing there; that VMRUN finds it is all.
    (Protection.SAVE_AREA_INTEGRITY, Column.SEV_ES): {"03": "corrupted", "04": "corrupted"},
    # What the IOMMU writes of itself goes past every other check, as it does on family 19h.
    (Protection.IOMMU_LOG_CHECK, Column.SEV_TIO): {"41": "corrupted"},
}
"""What holds in one column. Guests without an RMP have the tweak alone of all these mechanisms."""
BY_WISH = (
    Protection.RESTRICTED_INJECTION, Protection.ALTERNATE_INJECTION, Protection.BTB_ISOLATION,
    Protection.PMC_VIRTUALIZATION, Protection.REGISTER_NONCE, Protection.MESSAGE_SEQUENCE,
    Protection.IDE, Protection.IDE_MAC, Protection.IDE_PACKET_NUMBER, Protection.SECURE_DEVICE_ENTRY,
    Protection.TARGET_CHAIN, Protection.SWAP_TAG, Protection.SWAP_ENTRY, Protection.EXPORT_DECOMMISSIONS,
    Protection.SESSION_ENCRYPTION, Protection.MMIO_VALIDATION, Protection.MMIO_ROUTE, Protection.MMIO_GIVEN_BACK,
)  # fmt: skip
"""They stop nothing in a guest that did not ask for them, asks nothing, has no device, or stays: others test one that
did."""
CLOSED = {
    "microcode": (
        Setting(Column.SEV_SNP, "Milan", Platform(rmp_init_barrier=True, stack_engine_fixed=True)), {"34", "36"}
    ),
    "fabric_lock_checked": (Setting(Column.SEV_SNP, "Milan", Platform(fabric_lock_checked=True)), {"37"}),
    "iommu_write_safe": (Setting(Column.SEV_SNP, "Milan", Platform(iommu_write_safe=True)), {"41"}),
    "policy": (
        Setting(Column.SEV_SNP, "Milan", snp_policy=SnpPolicy.RAPL_DIS | SnpPolicy.PAGE_SWAP_DISABLE),
        {"29b", "32", "58"},  # a guest whose pages nobody swaps does not move
    ),
    "ciphertext_hiding": (Setting(Column.SEV_SNP, "Turin", Platform(max_snp_asid=4)), {"30", "31", "32"}),
}
"""Firmware, microcode, options and policies that close exactly these rows."""
SNP = (Column.SEV_SNP, Column.SEV_TIO)
OF_REGISTERS = {"02", "03", "04"}
WITHOUT_RMP = (Column.SME, Column.SEV, Column.SEV_ES)
OF_ALL = (Protection.TWEAK, Protection.SAVE_AREA_INTEGRITY)
"""Mechanisms that guests without an RMP have too."""
DEFAULTS = {
    (cell.row, cell.column, product): cell.outcome for cell in CELLS if not cell.switches for product in cell.products
}


@pytest.mark.parametrize(
    ("protection", "column"),
    [(one, column) for one in Protection if one not in BY_WISH for column in SNP]
    + [(one, column) for one in OF_ALL for column in WITHOUT_RMP],
)
def test_exactly_what_a_mechanism_stops_comes_to_pass_without_it(protection: Protection, column: Column) -> None:
    found, expected = {}, {}
    flips = (FLIPS[protection] if column in SNP else {}) | ELSEWHERE.get((protection, column), {})
    # SEV_TIO is Turin's alone, whose table is segmented; Milan's is flat.
    for product in set(products(column)) if column is Column.SEV_TIO else {"Milan"}:
        setting = Setting(column, product, Platform(disabled=frozenset({protection})))
        of_memory = [
            row for row, line in ROWS.items() if line.victim == "vault" and line.habits is None and not line.moves
        ]  # What protects a guest on its way is in test_migration_rows.
        for row in sorted({*of_memory, *OF_REGISTERS}):
            found[row, product] = {verdict.outcome.value for verdict in verdicts(row, setting)}
            expected[row, product] = {flips.get(row, DEFAULTS[row, column, product])}
    assert {at: (what, expected[at]) for at, what in found.items() if what != expected[at]} == {}


@pytest.mark.parametrize("column", WITHOUT_RMP)
def test_guests_without_an_rmp_lose_nothing_with_all_that_serves_it(column: Column) -> None:
    setting = Setting(column, "Milan", Platform(disabled=frozenset(Protection) - set(OF_ALL)))
    rows = [row for row, line in ROWS.items() if line.card is None and not line.moves]
    found = {row: {verdict.outcome.value for verdict in verdicts(row, setting)} for row in rows}
    assert found == {row: {DEFAULTS[row, column, "Milan"]} for row in rows}


def test_every_flip_is_one() -> None:
    for flips in (*FLIPS.values(), *ELSEWHERE.values()):
        assert set(flips.values()) <= {"leaked", "corrupted"}
    detours = {"38", "82a", "82b"}  # Zen 4 and 5 lose the check even where it is not knocked out
    open_anyway = {
        (protection, row)
        for protection, flips in FLIPS.items()
        for row in flips
        for column in SNP
        for product in products(column)
        if DEFAULTS[row, column, product] not in ("blocked", "detected")
        and not (row in detours and PRODUCTS[product].turns_psp_accesses)
    }
    assert open_anyway == set()
    assert all(
        DEFAULTS[row, column, products(column)[-1]] in ("blocked", "detected")
        for (_, column), flips in ELSEWHERE.items()
        for row in flips
    )


@pytest.mark.parametrize("name", CLOSED)
def test_exactly_what_a_fix_closes_is_closed_by_it(name: str) -> None:
    setting, closed = CLOSED[name]
    found, expected = {}, {}
    # Of the ways of row 60 the policy closes one: in test_migration_rows.
    for row in [row for row, line in ROWS.items() if line.card is None and row != "60"]:
        default = DEFAULTS[row, setting.column, setting.product]
        if default not in ("blocked", "detected", "dos"):
            found[row] = {verdict.outcome.value for verdict in verdicts(row, setting)}
            expected[row] = {"blocked" if row in closed else default}
    assert found == expected
    assert closed <= set(found)
