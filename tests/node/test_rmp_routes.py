"""The RMP lies in DIMMs: whatever route reaches its cells changes the next check, and a lost write changes nothing.

Products with a flat table and with a segmented one; what the host does it does by operations.
"""

from __future__ import annotations

import struct

import pytest
from rmp_tables import GUEST_SPA, snp_board

from node import operations as op
from node.board import Board
from node.dimm_routes import Unanswered
from node.physical_port import PhysicalPort
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

GHOST = 16 << 20
"""Memory of the hypervisor's own, which the attacker lets reach other cells."""
SECRET = b"sixteen octets.." * 4
RMP_WRITE = op.Fault(op.FaultKind.RMP_FAULT, GUEST_SPA, 0x8000_0003)
OWNED = RmpEntry(assigned=True, asid=1)


@pytest.fixture(params=["Milan", "Turin"])
def board(request: pytest.FixtureRequest) -> Board:
    board = snp_board(request.param)
    assert board.rmp is not None
    assert bool(board.rmp.layout.segment_pages) is (request.param == "Turin")
    return board


def host(board: Board, *batch: op.HypervisorOperation) -> tuple[op.Answer, ...]:
    return board.execute_host(batch)


def guest(board: Board, *batch: op.GuestOperation, vm: str = "one") -> tuple[op.Answer, ...]:
    return board.execute_guest(board.vmcb(vm, 0), batch)


def entry_at(board: Board, spa: int = GUEST_SPA) -> int:
    assert board.rmp is not None
    return board.rmp.layout.entry_spa(spa // PAGE_BYTES)


def given(board: Board) -> None:
    """The guest owns its first page and keeps a secret there."""
    assert host(board, op.RmpUpdate(GUEST_SPA, PAGE_BYTES, OWNED)) == (0,)
    answers = guest(board, op.PValidate(0, PAGE_BYTES, large=False), op.Write(0, SECRET))
    assert answers == (op.PValidateResult(0, unchanged=False), None)


def ghost_of(board: Board, spa: int) -> int:
    """Where the hypervisor finds an address once its page has an alias."""
    page = spa // PAGE_BYTES * PAGE_BYTES
    PhysicalPort(board.dram).alias(GHOST, PAGE_BYTES, page)
    return GHOST + spa - page


@pytest.mark.parametrize("looked", [False, True])
def test_a_poke_of_the_cells_frees_a_guests_page(board: Board, looked: bool) -> None:
    given(board)
    port = PhysicalPort(board.dram)
    if looked:
        assert port.dump(entry_at(board), 16) == struct.pack("<2Q", 1 | 1 << 51 | 1 << 62, 0xF)
    assert host(board, op.HostWrite(GUEST_SPA, b"x")) == (RMP_WRITE,)
    port.poke(entry_at(board), bytes(16))
    assert host(board, op.HostWrite(GUEST_SPA, b"x")) == (None,)
    assert isinstance(guest(board, op.Read(0, 8))[0], op.Fault)


@pytest.mark.parametrize("looked", [False, True])
def test_the_host_writes_its_table_through_an_alias_and_not_otherwise(board: Board, looked: bool) -> None:
    given(board)
    at = entry_at(board)
    if looked:
        host(board, op.HostRead(at, 16))
    own = struct.pack("<2Q", 1 | 2 << 51 | 1 << 62, 0xF)  # the same page, as guest two's
    refused = op.Fault(op.FaultKind.RMP_FAULT, at, 0x8000_0003)
    assert host(board, op.HostWrite(at, own)) == (refused,)
    ghost = ghost_of(board, at)
    assert host(board, op.HostRead(ghost, 16), op.HostWrite(ghost, own)) == (
        struct.pack("<2Q", 1 | 1 << 51 | 1 << 62, 0xF), None,
    )  # fmt: skip
    assert host(board, op.HostRead(at, 16)) == (own,)
    assert isinstance(guest(board, op.Read(0, 8))[0], op.Fault)
    assert isinstance(guest(board, op.Read(0, 8), vm="two")[0], bytes)


def test_a_guests_cells_are_written_through_an_alias_whose_own_entry_is_the_hosts(board: Board) -> None:
    given(board)
    ghost = ghost_of(board, GUEST_SPA)
    (old,) = host(board, op.HostRead(ghost, len(SECRET)))
    assert isinstance(old, bytes)
    guest(board, op.Write(0, bytes(len(SECRET))))
    assert host(board, op.HostWrite(GUEST_SPA, old), op.HostWrite(ghost, old)) == (RMP_WRITE, None)
    assert guest(board, op.Read(0, len(SECRET))) == (SECRET,)


@pytest.mark.parametrize("looked", [False, True])
@pytest.mark.parametrize("reads", Unanswered)
def test_a_write_into_the_table_that_is_lost_leaves_the_old_owner(
    board: Board, looked: bool, reads: Unanswered
) -> None:
    port = PhysicalPort(board.dram)
    at = entry_at(board)
    if looked:
        host(board, op.HostRead(at, 16))
    port.drop(at // PAGE_BYTES * PAGE_BYTES, PAGE_BYTES, reads)
    code = host(board, op.RmpUpdate(GUEST_SPA, PAGE_BYTES, OWNED))
    # Ones read as a page that firmware owns.
    assert code == (0 if reads is Unanswered.ZEROS else 2,)
    if reads is Unanswered.ZEROS:
        assert isinstance(guest(board, op.PValidate(0, PAGE_BYTES, large=False))[0], op.Fault)
    assert port.dump(at, 16) == bytes(16)
    port.restore(at // PAGE_BYTES * PAGE_BYTES, PAGE_BYTES)
    assert host(board, op.HostWrite(GUEST_SPA, b"nobody's")) == (None,)
    given(board)


def test_initialising_a_table_that_is_routed_to_nowhere_protects_nothing(board: Board) -> None:
    assert board.rmp is not None
    port = PhysicalPort(board.dram)
    ranges = board.rmp.layout.ranges()
    for spa, length in ranges:
        port.poke(spa, bytes(length))  # as memory is at power-on
        port.drop(spa, length)
    board.rmp.initialise()  # the firmware's part, which hears of no failure
    assert host(board, op.HostWrite(GUEST_SPA, b"x")) == (RMP_WRITE,)  # as long as ones are read
    for spa, length in ranges:
        port.restore(spa, length)
        assert not any(port.dump(spa, length))
    # The table's own pages are anybody's.
    own = struct.pack("<2Q", 1 | 1 << 51 | 1 << 62, 0xF)
    assert host(board, op.HostWrite(entry_at(board), own)) == (None,)
    assert isinstance(guest(board, op.Read(0, 8))[0], bytes)


def test_a_page_of_the_table_that_initialising_missed_keeps_its_owners(board: Board) -> None:
    assert board.rmp is not None
    given(board)
    port = PhysicalPort(board.dram)
    at = entry_at(board)
    port.drop(at, PAGE_BYTES)
    board.rmp.initialise()
    port.restore(at, PAGE_BYTES)
    assert guest(board, op.Read(0, len(SECRET))) == (SECRET,)
    assert host(board, op.HostWrite(at, b"x")) == (op.Fault(op.FaultKind.RMP_FAULT, at, 0x8000_0003),)


@pytest.mark.parametrize("initialised", [False, True])
def test_counters_that_are_lost_count_nothing(board: Board, initialised: bool) -> None:
    assert board.rmp is not None
    port = PhysicalPort(board.dram)
    base = board.rmp.layout.base
    port.drop(base, PAGE_BYTES)
    if initialised:
        board.rmp.initialise()
    assert host(board, op.RmpUpdate(GUEST_SPA, PAGE_BYTES, RmpEntry(assigned=True, asid=7))) == (0,)
    assert board.bus.rmp_pages_of_asid(7) == (1 << 64) - 1
    port.restore(base, PAGE_BYTES)
    assert board.bus.rmp_pages_of_asid(7) == 0
    assert host(board, op.RmpUpdate(GUEST_SPA, PAGE_BYTES, RmpEntry())) == (0,)
    assert board.bus.rmp_pages_of_asid(7) == 0


def test_entries_that_share_cells_are_one_entry(board: Board) -> None:
    """Entries of 1 MiB fill one page: the second guest page's MiB reaches the first's."""
    port = PhysicalPort(board.dram)
    port.alias(entry_at(board, GUEST_SPA + (1 << 20)), PAGE_BYTES, entry_at(board))
    entry = RmpEntry(assigned=True, gpa=0x5000, asid=1)
    assert host(board, op.RmpUpdate(GUEST_SPA, PAGE_BYTES, entry)) == (0,)
    other = GUEST_SPA + (1 << 20)
    fault = op.Fault(op.FaultKind.RMP_FAULT, other, 0x8000_0003)
    assert host(board, op.HostWrite(other, b"x"), op.HostWrite(other + PAGE_BYTES, b"x")) == (fault, None)


@pytest.mark.parametrize("large", [False, True])
def test_a_table_whose_pages_changed_places_is_worked_on_as_ever(board: Board, large: bool) -> None:
    """Two pages of the table swap their cells: reading and writing by the same way agree."""
    port = PhysicalPort(board.dram)
    at = entry_at(board)
    port.alias(at, PAGE_BYTES, at + PAGE_BYTES)
    port.alias(at + PAGE_BYTES, PAGE_BYTES, at)
    entry = RmpEntry(assigned=True, large=large, asid=1)
    length = 2 * LARGE_PAGE_BYTES
    assert host(board, op.RmpUpdate(GUEST_SPA, length, entry)) == (0,)
    assert guest(board, op.PValidate(0, length, large)) == (op.PValidateResult(0, unchanged=False),)
    assert guest(board, op.Write((1 << 20) - 8, SECRET), op.Read((1 << 20) - 8, len(SECRET))) == (None, SECRET)
    size = 2 if large else 511 << 3
    assert port.dump(at + PAGE_BYTES, 8) == struct.pack("<Q", 1 | size | 1 << 51 | 1 << 62)
    assert board.bus.rmp_pages_of_asid(1) == 1024 + 4
    assert host(board, op.RmpUpdate(GUEST_SPA, length, RmpEntry(large=large))) == (0,)
    assert host(board, op.HostWrite(GUEST_SPA, bytes(length))) == (None,)


def test_cores_keep_what_the_segment_table_said() -> None:
    board = snp_board("Turin")
    given(board)
    assert board.rmp is not None
    table = board.rmp.layout.base + (16 << 10)
    port = PhysicalPort(board.dram)
    assert struct.unpack("<Q", port.dump(table, 8)) == (board.rmp.layout.arrays[0].spa | 1,)  # 1 GiB of this host
    port.poke(table, struct.pack("<Q", GHOST | 1))
    assert guest(board, op.Read(0, len(SECRET))) == (SECRET,)
    assert host(board, op.HostWrite(GUEST_SPA, b"x")) == (RMP_WRITE,)
