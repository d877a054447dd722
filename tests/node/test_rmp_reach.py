"""How far RMPUPDATE reaches: ASIDs that the part has or not, and pages where there is no memory."""

import pytest
from rmp_tables import GUEST_SPA, snp_board

from node import operations as op
from node.product import PRODUCTS
from node.rmp_entry import HIGHEST_ASID
from psp.system_bus import PAGE_BYTES, RmpEntry

FREE = RmpEntry()


def of(asid: int) -> RmpEntry:
    return RmpEntry(assigned=True, gpa=0, asid=asid)


def updated(board, entry: RmpEntry, spa: int = GUEST_SPA):
    (code,) = board.execute_host((op.RmpUpdate(spa, PAGE_BYTES, entry),))
    return code


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_the_last_asid_of_the_part_is_the_last_that_a_page_may_have(product: str) -> None:
    board, last = snp_board(product), PRODUCTS[product].max_asid
    assert [updated(board, of(asid)) for asid in (1, last, last + 1, HIGHEST_ASID)] == [0, 0, 1, 1]
    assert board.rmp.entry(GUEST_SPA).asid == last
    assert updated(board, FREE) == 0


def test_where_the_part_does_not_look_whatever_fits_in_an_entry_is_taken_and_no_guest_has_it() -> None:
    board = snp_board("Milan", asids_of_the_part=False)
    assert [updated(board, of(asid)) for asid in (HIGHEST_ASID, HIGHEST_ASID + 1)] == [0, 1]
    area = GUEST_SPA + PAGE_BYTES
    board.execute_host((op.VmcbWrite("alien", 0, HIGHEST_ASID, "SEV_SNP", area),))
    assert board.execute_host((op.VmRun("alien", 0),)) == (-1,)
    assert updated(board, FREE) == 0


def beyond(board) -> int:
    """The first page above memory that the table has an entry for."""
    assert board.rmp.covers(board.dram.size_bytes, 1)
    return board.dram.size_bytes


@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_a_page_above_memory_that_the_table_covers_has_an_entry_and_nothing_behind_it(product: str) -> None:
    board = snp_board(product)
    spa = beyond(board)
    assert updated(board, of(1), spa) == 0
    assert (board.rmp.entry(spa).asid, board.rmp.pages_of_asid(1)) == (1, 5)  # four save areas besides
    for one in (op.HostRead(spa, 8), op.HostWrite(spa, bytes(8))):
        (answer,) = board.execute_host((one,))
        assert isinstance(answer, op.Fault)
    assert updated(board, FREE, spa) == 0


@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_where_rmpupdate_asks_for_memory_no_page_without_any_is_taken(product: str) -> None:
    board = snp_board(product, pages_of_memory=True)
    spa = beyond(board)
    table = board.rmp.layout.ranges()[-1][0]
    before = board.dram.read(table, 1 << 20)
    assert [updated(board, one, spa) for one in (of(1), FREE)] == [1, 1]
    assert updated(board, of(1), spa - PAGE_BYTES) == 2  # the table's own
    assert board.execute_host((op.RmpUpdate(spa - PAGE_BYTES, 2 * PAGE_BYTES, of(1)),)) == (1,)
    assert board.dram.read(table, 1 << 20) == before


@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_mmio_that_the_table_was_made_to_cover_is_there(product: str) -> None:
    first, size = 1 << 30, 1 << 20
    board = snp_board(product, pages_of_memory=True, mmio=(first, size))
    inside = first, first + size - PAGE_BYTES
    assert [updated(board, of(1), spa) for spa in inside] == [0, 0]
    assert [updated(board, of(1), spa) for spa in (first - PAGE_BYTES, first + size, beyond(board))] == [1, 1, 1]
