"""Every attack, on every generation and product, comes to what the attack matrix says; the oracle judges."""

import csv
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest
from matrix_cells import CELLS, FILE, Cell

from cluster.laboratory.interface import Interface
from cluster.laboratory.owner_habits import OwnerHabits
from cluster.laboratory.protection import Column, products
from cluster.laboratory.row import Row
from cluster.laboratory.rows import ROWS, verdicts
from cluster.laboratory.scene import IdleAttack, Scene, Setting, act_out
from cluster.oracle.ledger import Ledger
from cluster.oracle.transcript import Transcript
from cluster.oracle.verdict import Outcome, judge
from node.memory_cipher import CipherMode
from node.operations import HostRead, Read
from node.platform import Platform, Protection
from node.vmsa import SevFeature
from psp.policy import LegacyPolicy, SnpPolicy
from tio.tdisp import LockFlags
from workloads.attacks.depositor_ways import DepositorWays
from workloads.attacks.target import LET_IT_RUN

DEFAULTS = [cell for cell in CELLS if not cell.switches]
REST, ALT = int(SevFeature.RESTRICTED_INJECTION), int(SevFeature.ALTERNATE_INJECTION)
HIDDEN = 4
"""The last ASID of SNP guests where ciphertext is hidden: there is room for a victim, a tenant and a third."""


ENDS = frozenset({"20", "21", "30", "31", "32"})
"""Rows that need to know of a product only whether it has an RMP: the first and the last are tried."""
TURNS = {row: number for number, row in enumerate(ROWS)}


def tried(cell: Cell) -> tuple[str, ...]:
    """Products that a cell is tried on: the newest will do where nothing depends on the product."""
    row = ROWS[cell.row]
    # Under TSME all memory that a ghost doubles is encrypted at boot.
    ghost_under_tsme = row.ghost_line and cell.column is Column.TSME
    if row.habits is not None or row.victim not in ("vault", "console") or ghost_under_tsme:
        return cell.products[-1:]
    if row.moves:  # And so is how it moves guests, but for who may have its keys: a cell is one of these cases.
        return cell.products[-1:]
    if row.platform_key:  # What firmware does with its keys is the same on all of a cell.
        return cell.products[-1:]
    first, *between = cell.products
    if not between:
        return cell.products
    *between, last = between
    if cell.row in ENDS or not between:
        return first, last
    # Of those between, among which the matrix sees no difference either, each has its turn: another for the next row.
    return first, between[TURNS[cell.row] % len(between)], last


@pytest.mark.parametrize("cell", DEFAULTS, ids=lambda cell: f"{cell.row}-{cell.column}-{cell.products[0]}")
def test_an_attack_comes_to_what_the_matrix_says(cell: Cell) -> None:
    found = {
        (product, index): (verdict.outcome.value, verdict.evidence)
        for product in tried(cell)
        for index, verdict in enumerate(verdicts(cell.row, Setting(cell.column, product)))
    }
    assert found
    assert {at: what for at, what in found.items() if what[0] != cell.outcome} == {}


SWITCHES = {
    "rmp_init_barrier=core": {"platform": Platform(rmp_init_barrier=True)},
    "df_lock_checked=on": {"platform": Platform(fabric_lock_checked=True)},
    "iommu_write_safe=on": {"platform": Platform(iommu_write_safe=True)},
    "tlb_id_enforced=off": {"platform": Platform(disabled=frozenset({Protection.TLB_ID}))},
    "vmsa_checksum=off": {"platform": Platform(disabled=frozenset({Protection.SAVE_AREA_INTEGRITY}))},
    "alias_check=on": {"platform": Platform(alias_check=True)},
    "verifier_platform_info=on": {"owner": OwnerHabits(platform_info=True)},
    "point_check=on": {"platform": Platform(point_check=True)},
    "context_page_mac=on": {"platform": Platform(context_mac=True)},
    "psp_least_priv=on": {"platform": Platform(psp_least_privilege=True)},
    "guest_tracks_validation=on": {"tracks_validation": True},
    "guest_checks_sev_status=on": {"checks_sev_status": True, "checks_c_bit": True},
    "verifier_measurement=off": {"owner": OwnerHabits(measurement=False)},
    "verifier_min_tcb=off": {"owner": OwnerHabits(min_tcb=False)},
    "verifier_nonce=off": {"owner": OwnerHabits(nonce=False)},
    "verifier_policy_bits=off": {"owner": OwnerHabits(policy_bits=False)},
    "verifier_chip_id=on": {"owner": OwnerHabits(chip_id=True)},
    "verifier_crl=on": {"owner": OwnerHabits(crl=True)},
    "policy_min_api=on": {"owner": OwnerHabits(min_api=True)},
    "cpuid_page=on": {"reads_cpuid_page": True},
    "ucode_cachewarp_fix=on": {"platform": Platform(invd_writes_back=True)},
    "ucode_stackwarp_fix=on": {"platform": Platform(stack_engine_fixed=True)},
    "smt_off=on": {"smt_off": True},
    "zero_on_validate=on": {"svsm_zeroes": True},
    "guest_disables_ia32=on": {"disables_ia32": True},
    "vc_handler_verifies=on": {"vc_handler_verifies": True},
    "restricted_injection=on": {"sev_features": REST},
    "alternate_injection=on": {"sev_features": ALT},
    "debug_swap=on": {"sev_features": int(SevFeature.DEBUG_SWAP)},
    "btb_isolation=on": {"sev_features": int(SevFeature.BTB_ISOLATION)},
    "pmc_virtualisation=on": {"sev_features": int(SevFeature.PMC_VIRTUALIZATION)},
    "vmsa_reg_prot=on": {"sev_features": int(SevFeature.VMSA_REGISTER_PROTECTION)},
    "ciphertext_hiding=on": {"platform": Platform(max_snp_asid=HIDDEN)},
    "rapl_dis=on": {"snp_policy": int(SnpPolicy.RAPL_DIS)},
    "page_swap_disable=on": {"snp_policy": int(SnpPolicy.PAGE_SWAP_DISABLE)},
    "app_crypto=on": {"ways": DepositorWays(seals=1)},
    "tdisp_on=off": {"ways": DepositorWays(trusts=0)},
    "ide_on=off": {"platform": Platform(disabled=frozenset({Protection.IDE}))},
    "verifier_device=off": {"owner": OwnerHabits(device=False)},
    "no_fw_update=on": {"ways": DepositorWays(lock_flags=int(LockFlags.NO_FW_UPDATE))},
    "lock_msix=on": {"ways": DepositorWays(lock_flags=int(LockFlags.LOCK_MSIX))},
    "guest_rechecks_digest=on": {"ways": DepositorWays(rechecks=1)},
    "ide_reorder_check=on": {"platform": Platform(ide_reorder_check=True)},
    "ide_tag_fence=on": {"platform": Platform(ide_tag_fence=True)},
    "ide_rekey_flush=on": {"platform": Platform(ide_rekey_flush=True)},
    "p2p_mask=open": {"platform": Platform(peers_open=True)},
    "tdi_scrub=on": {"device_scrubs": True},
    "nosend=on": {"sev_policy": int(LegacyPolicy.NOSEND)},
    "ma_verifies_peer=off": {"agent_verifies_peer": False},
    "ma_ledger=on": {"agent_keeps_ledger": True},
    "external_counter=on": {"external_counter": True},
    "tweak_mode=xex_random": {"ciphers": (CipherMode.AES_128_XEX,)},
}
"""Away from the default, as the matrix names them."""
SWITCHED = [cell for cell in CELLS if cell.switches]


@pytest.mark.parametrize("cell", SWITCHED, ids=lambda cell: f"{cell.row}-{cell.column}-{cell.switches}")
def test_a_switch_changes_what_the_matrix_says_it_changes(cell: Cell) -> None:
    switched = SWITCHES[cell.switches]
    found = [one for name in tried(cell) for one in verdicts(cell.row, Setting(cell.column, name, **switched))]
    assert {one.outcome for one in found} == {cell.outcome}, found


def _is_of_memory(row: Row) -> bool:
    return row.victim == "vault" and row.habits is None and not row.moves


@pytest.mark.parametrize("column", Column)
def test_caches_that_are_written_back_change_no_outcome(column: Column) -> None:
    # Without coherence across keys, and with it where a guest has a key of its own.
    names = ("Rome", "Turin") if column in (Column.SEV, Column.SEV_SNP, Column.SEV_TIO) else ("Rome",)
    some = [name for name in names if name in products(column)]
    platform = Platform(caches=True)
    cells = [cell for cell in DEFAULTS if cell.column is column and _is_of_memory(ROWS[cell.row])]
    cells = [cell for cell in cells if not ROWS[cell.row].platform_key]  # no line of memory takes part
    expected = {(cell.row, name): {cell.outcome} for cell in cells for name in some if name in cell.products}
    found = {
        (row, name): {verdict.outcome.value for verdict in verdicts(row, Setting(column, name, platform))}
        for row, name in expected
    }
    assert {at: (what, expected[at]) for at, what in found.items() if what != expected[at]} == {}


def test_every_product_is_tried_in_every_column_by_many_rows() -> None:
    rows = Counter((cell.column, product) for cell in DEFAULTS for product in tried(cell))
    assert {(column, product) for column in Column for product in products(column)} == set(rows)
    assert min(rows.values()) > 10


def test_every_row_has_a_cell_for_every_product_of_every_column() -> None:
    ordered = sorted(DEFAULTS, key=lambda cell: (cell.row, cell.column))
    for (_, column), some in groupby(ordered, key=lambda cell: (cell.row, cell.column)):
        assert sorted(name for cell in some for name in cell.products) == sorted(products(column))
    assert {cell.row for cell in CELLS} == set(ROWS)
    assert {cell.column for cell in CELLS} == set(Column)


def test_an_attack_that_does_nothing_is_not_called_blocked() -> None:
    def idle(_):
        yield LET_IT_RUN

    with pytest.raises(IdleAttack, match="idle"):
        act_out(Setting(Column.SEV_SNP, "Milan"), idle)


def test_the_victim_lives_where_nobody_attacks_it() -> None:
    def harmless(target):
        for _ in range(3):
            yield (HostRead(target.spare[0], 16),)
            yield LET_IT_RUN

    for column in Column:
        scene = Scene(Setting(column, products(column)[-1]), Ledger(), Transcript())
        scene.play(harmless)
        victim = scene.host.guests["victim"]
        assert (victim.faults, victim.vcpus[0].registers.r13) == (0, 4)


def test_what_the_laboratory_sees_in_looking_for_an_interface_is_no_loot() -> None:
    # Looking for the transparent key takes a dump of the modules, where a plain host's secrets lie open.
    def harmless(target):
        yield (HostRead(target.spare[0], 16),)

    setting = Setting(Column.PLAIN, "Naples")
    looked = judge(*act_out(setting, harmless, Interface.WAY_PAST_THE_KEY))
    assert looked.outcome is Outcome.BLOCKED, looked
    missed = judge(*act_out(setting, harmless, Interface.TRANSPARENT_KEY))
    assert missed.outcome is Outcome.NOT_APPLICABLE, missed


def test_hands_of_different_actors_do_not_mix() -> None:
    def both(target):
        yield (HostRead(target.spare[0], 16), Read(target.tenant.value.gpa, 16))

    with pytest.raises(ValueError, match="different actors"):
        act_out(Setting(Column.PLAIN, "Milan"), both)


def test_the_cells_are_those_of_the_sheet(request: pytest.FixtureRequest) -> None:
    data: Path = request.getfixturevalue("test_data")
    sheet = data.parent / "spec" / "attacks" / "matrix.csv"
    if not sheet.is_file():
        pytest.skip("the sheet is not among the test data")
    fields, rows = ("id", "generation", "products", "switches", "outcome"), {cell.row for cell in CELLS}
    with sheet.open(encoding="utf-8", newline="") as file:
        lines = [tuple(line[name] for name in fields) for line in csv.DictReader(file) if line["id"] in rows]
    with FILE.open(encoding="utf-8", newline="") as file:
        assert [tuple(line[name] for name in fields) for line in csv.DictReader(file)] == lines


def test_outcomes_are_the_matrixs_words() -> None:
    assert {cell.outcome for cell in CELLS} <= {one.value for one in Outcome}
