"""Nested tables as bytes: the same answers compact or written out, whatever route changes them, bounded when hostile.

``walked`` is a walker of the test's own, written from the figures of APM volume 2, 5.3, for four levels.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iommu_boards import IOVA, attached, brought_up, store
from rmp_tables import snp_board
from snp_cores import enable_snp
from toy_guests import MIB, make_host, start

from node import operations as op
from node.board import Board
from node.counter_random import CounterRandom
from node.generation import Generation
from node.nested_page_table import MOST_WALKS, NestedPageFault, NestedPageTable
from node.nested_table_pages import table_pages
from node.operations import FaultKind
from node.physical_port import PhysicalPort
from node.platform import HostMode, Platform
from node.product import PRODUCTS
from psp.system_bus import RmpEntry

PAGE, LARGE, GIB = 4096, 2 << 20, 1 << 30
FRAMES = 40 * MIB
TABLE, LEAF, LARGE_LEAF = 0x27, 0x67, 0xE7
"""P, RW, US, A; the same with D; the same with PS."""


def board_of(product: str = "Rome") -> Board:
    board = Board("board", PRODUCTS[product], 64 * MIB, 100, CounterRandom(1))
    enable_snp(board)
    return board


def host(board: Board, *batch: op.HypervisorOperation) -> tuple[op.Answer, ...]:
    return board.execute_host(batch)


def plain_vm(board: Board, *more: op.HypervisorOperation, frames: int = 16, vm: str = "vm") -> Callable[..., op.Answer]:
    """A VM without encryption whose tables lie in so many frames; executes one of its operations."""
    batch = (op.NestedFrames(vm, FRAMES, frames * PAGE), op.VmcbWrite(vm, 0, 0, "PLAIN", 0), *more)
    assert board.execute_host(batch) == (None,) * len(batch)
    return lambda one: board.execute_guest(board.vmcb(vm, 0), (one,))[0]


def walked(read: Callable[[int, int], bytes], root: int, gpa: int) -> tuple[int, int] | None:
    """(SPA, flags of the leaf) of an address, or None."""
    table = root
    for shift in (39, 30, 21, 12):
        at = table + (gpa >> shift & 511) * 8
        word = int.from_bytes(read(at, 8), "little")
        if not word & 1:
            return None
        below = (1 << shift) - 1
        target = word & 0x000F_FFFF_FFFF_F000
        if shift == 12 or (word & 0x80 and shift != 39):
            return target & ~below | gpa & below, word & 0xFFF
        table = target
    return None


maps = st.tuples(
    st.booleans(), st.integers(0, 1600), st.sampled_from([1, 3, 511, 512, 513, 1024]), st.sampled_from([0, 512, 5]),
    st.booleans(),
)  # fmt: skip


@given(st.lists(maps, min_size=1, max_size=12), st.integers(0, 12))
@settings(max_examples=25, deadline=None)
def test_the_answers_are_the_same_compact_and_as_bytes(
    changes: list[tuple[bool, int, int, int, bool]], dump_after: int
) -> None:
    """One table is looked at after some of its changes, its twin never; a walk by hand sees the same."""
    looked, twin = board_of(), board_of()
    for board in (looked, twin):
        board.nested_table("vm").give(FRAMES, 16 * PAGE)
    for number, (is_map, page, pages, shift, large) in enumerate(changes):
        if number == dump_after:
            host(looked, op.HostRead(FRAMES, 1))
        one: op.HypervisorOperation = op.NestedUnmap("vm", page * PAGE, pages * PAGE)
        if is_map:
            one = op.NestedMap("vm", page * PAGE, (page + shift) * PAGE, pages * PAGE, large=large)
        assert host(looked, one) == host(twin, one) == (None,)
    a, b = looked.nested_table("vm"), twin.nested_table("vm")
    assert not b._in_memory
    edges = {page + step for _, page, pages, _, _ in changes for page in (page, page + pages) for step in (-1, 0)}
    addresses = sorted({max(0, edge) * PAGE + 77 for edge in edges} | {0, 3 * LARGE, 1 << 47, 1 << 48})
    answers = [(answer(a, gpa), answer(b, gpa)) for gpa in addresses]
    assert all(one == other for one, other in answers)
    spans = [(answer(a, gpa, 3 * LARGE), answer(b, gpa, 3 * LARGE)) for gpa in addresses]
    assert all(one == other for one, other in spans)
    assert b.root == FRAMES
    for gpa, (_, expected) in zip(addresses, answers, strict=True):
        by_hand = walked(twin.dram.read, FRAMES, gpa) if gpa < 1 << 48 else None
        if isinstance(expected, list):
            ((spa, _, is_large, _),) = expected
            assert by_hand == (spa, LARGE_LEAF if is_large else LEAF)
        else:
            assert by_hand is None
    assert b._in_memory


def answer(table: NestedPageTable, gpa: int, length: int = 1) -> object:
    try:
        return table.translate(gpa, length)
    except NestedPageFault as fault:
        return fault.gpa, fault.error


def test_a_map_takes_as_many_table_pages_as_it_needs_and_none_without_them() -> None:
    board = board_of()
    # A root, a table of each level above the large pages, and one for the page beside them.
    assert table_pages([(0, 4 * MIB, 2 * LARGE)]) == 3
    assert table_pages([(0, 4 * MIB, 2 * LARGE), (2 * LARGE, 20 * MIB, PAGE)]) == 4
    assert table_pages([(0, 4 * MIB + PAGE, 2 * LARGE)]) == 5
    assert table_pages([(0, 0, 16 * GIB)]) == 2 + 16
    execute = plain_vm(board, frames=3)
    assert host(board, op.NestedMap("vm", 0, 4 * MIB, 2 * LARGE)) == (None,)
    # 512 GiB on, and 4 KiB: three tables more.
    far = op.NestedMap("vm", 1 << 39, 4 * MIB, PAGE)
    assert host(board, far) == (3,)
    assert host(board, op.NestedUnmap("vm", PAGE, PAGE)) == (1,)  # a large page would have to be split
    assert execute(op.Read((1 << 39), 1)) == op.Fault(FaultKind.NESTED_PAGE_FAULT, 1 << 39, 1 << 32 | 4)
    assert execute(op.Read(PAGE, 4)) == bytes(4)
    more = (op.NestedFrames("vm", FRAMES + MIB, 4 * PAGE), far, op.NestedUnmap("vm", PAGE, PAGE))
    assert host(board, *more) == (None,) * 3
    assert execute(op.Read((1 << 39), 4)) == bytes(4)
    assert execute(op.Read(PAGE, 4)) == op.Fault(FaultKind.NESTED_PAGE_FAULT, PAGE, 1 << 32 | 4)
    assert execute(op.Read(2 * PAGE, 4)) == bytes(4)


def test_without_pages_for_tables_nothing_is_mapped() -> None:
    """A root, and a table of each level above the page: no host maps memory by tables that lie nowhere."""
    board = board_of()
    large, small = op.NestedMap("vm", 0, 4 * MIB, LARGE), op.NestedMap("vm", 0, 4 * MIB, PAGE)
    assert host(board, large, small, op.NestedUnmap("vm", 0, LARGE)) == (3, 4, None)
    assert host(board, op.VmcbWrite("vm", 0, 0, "PLAIN", 0)) == (None,)
    beyond = op.Fault(FaultKind.NESTED_PAGE_FAULT, 0, 1 << 32 | 4)
    assert board.execute_guest(board.vmcb("vm", 0), (op.Read(0, 1),)) == (beyond,)
    assert host(board, op.NestedFrames("vm", FRAMES, 3 * PAGE), large) == (None, None)


def entry_spa(board: Board, gpa: int, vm: str = "vm") -> int:
    """Where the entry that maps a 4 KiB page lies."""
    found: list[int] = []

    def read(spa: int, length: int) -> bytes:
        found.append(spa)
        return board.dram.read(spa, length)

    root = board.nested_table(vm).root
    assert root is not None
    walked(read, root, gpa)
    return found[-1]


def two_pages() -> tuple[Board, Callable[..., op.Answer], int, bytes]:
    """A VM with a page at zero; where its entry lies, and an entry that leads to another page."""
    board = board_of()
    execute = plain_vm(board, op.NestedMap("vm", 0, 8 * MIB, PAGE, large=False))
    board.controller.write(8 * MIB, b"here", 0)
    board.controller.write(12 * MIB, b"elsewhere", 0)
    assert execute(op.Read(0, 4)) == b"here"
    assert not board.nested_table("vm")._in_memory
    return board, execute, entry_spa(board, 0), (12 * MIB | LEAF).to_bytes(8, "little")


def test_the_hypervisor_rewrites_an_entry_with_a_plain_store() -> None:
    board, execute, at, entry = two_pages()
    assert host(board, op.HostWrite(at, entry)) == (None,)
    assert execute(op.Read(0, 9)) == b"elsewhere"
    assert host(board, op.HostWrite(at, bytes(8))) == (None,)
    assert execute(op.Read(5, 9)) == op.Fault(FaultKind.NESTED_PAGE_FAULT, 5, 1 << 32 | 4)
    assert host(board, op.NestedMap("vm", 0, 8 * MIB, PAGE, large=False)) == (None,)
    assert execute(op.Read(0, 4)) == b"here"


def test_somebody_at_the_dimms_rewrites_an_entry() -> None:
    board, execute, at, entry = two_pages()
    PhysicalPort(board.dram).poke(at, entry)
    assert execute(op.Read(0, 9)) == b"elsewhere"


def test_an_alias_of_a_table_rewrites_an_entry() -> None:
    board, execute, at, entry = two_pages()
    PhysicalPort(board.dram).alias(48 * MIB, PAGE, at // PAGE * PAGE)
    assert host(board, op.HostWrite(48 * MIB + at % PAGE, entry)) == (None,)
    assert execute(op.Read(0, 9)) == b"elsewhere"


def test_a_table_whose_addresses_are_led_elsewhere_is_what_lies_there() -> None:
    board, execute, at, entry = two_pages()
    page = at // PAGE * PAGE
    board.dram.write(50 * MIB + at % PAGE, entry)
    PhysicalPort(board.dram).alias(page, PAGE, 50 * MIB)
    assert execute(op.Read(0, 9)) == b"elsewhere"
    PhysicalPort(board.dram).restore(page, PAGE)
    assert execute(op.Read(0, 4)) == b"here"


def test_frames_whose_writes_are_lost_hold_no_table() -> None:
    board = board_of()
    PhysicalPort(board.dram).drop(FRAMES, 16 * PAGE)
    execute = plain_vm(board, op.NestedMap("vm", 0, 8 * MIB, PAGE))
    # Ones: every entry is there, and has bits set that must be zero.
    assert execute(op.Read(0, 1)) == op.Fault(FaultKind.NESTED_PAGE_FAULT, 0, 1 << 32 | 0b1101)


def hand_written(board: Board, words: dict[int, int]) -> Callable[..., op.Answer]:
    """A VM whose tables at 16 MiB the hypervisor wrote itself, entry by entry."""
    stores = [op.HostWrite(spa, word.to_bytes(8, "little")) for spa, word in words.items()]
    vmcb = op.VmcbWrite("vm", 0, 0, "PLAIN", 0, nested_cr3=ROOT)
    assert board.execute_host((*stores, vmcb)) == (None,) * (len(stores) + 1)
    return lambda one: board.execute_guest(board.vmcb("vm", 0), (one,))[0]


ROOT = 16 * MIB
THIRD, SECOND, FIRST = ROOT + PAGE, ROOT + 2 * PAGE, ROOT + 3 * PAGE


def ways(
    first: int = 8 * MIB | 7, second: int = FIRST | 7, third: int = SECOND | 7, root: int = THIRD | 7
) -> dict[int, int]:
    """One way from the root to a page at guest-physical zero: where its entries lie, and what they are."""
    return {ROOT: root, THIRD: third, SECOND: second, FIRST: first}


def word_at(board: Board, spa: int) -> int:
    return int.from_bytes(board.dram.read(spa, 8), "little")


def test_the_walk_sets_accessed_on_its_way_and_dirty_for_a_store() -> None:
    board = board_of()
    execute = hand_written(board, ways())
    assert execute(op.Read(0, 4)) == bytes(4)
    assert {spa: word_at(board, spa) for spa in ways()} == {spa: word | 0x20 for spa, word in ways().items()}
    assert execute(op.Write(0, b"x")) is None
    assert word_at(board, FIRST) == ways()[FIRST] | 0x60
    assert word_at(board, SECOND) == ways()[SECOND] | 0x20


WRITE, FETCH, P, RSV, USER = 2, 16, 1, 8, 4
FINAL = 1 << 32


@pytest.mark.parametrize(
    ("words", "write", "error"),
    [
        (ways(first=8 * MIB), False, 0),
        (ways(root=THIRD), True, WRITE),
        (ways(first=8 * MIB | 5), True, P | WRITE),
        (ways(third=SECOND | 5), True, P | WRITE),
        (ways(first=8 * MIB | 3), False, P),  # a nested access is always a user's
        (ways(second=FIRST | 3), True, P | WRITE),
        (ways(first=8 * MIB | 7 | 1 << 45), False, P | RSV),
        (ways(root=THIRD | 7 | 1 << 7), False, P | RSV),
        (ways(second=8 * MIB | PAGE << 1 | 0x87), False, P | RSV),
    ],
)
def test_what_an_entry_does_not_grant_is_a_nested_page_fault(words: dict[int, int], write: bool, error: int) -> None:
    board = board_of()
    execute = hand_written(board, words)
    answer = execute(op.Write(9, b"x") if write else op.Read(9, 1))
    assert answer == op.Fault(FaultKind.NESTED_PAGE_FAULT, 9, FINAL | USER | error)
    assert {spa: word_at(board, spa) for spa in words} == words


def test_pages_of_every_size_are_followed() -> None:
    board = board_of()
    for words, gpa in ((ways(), 5), (ways(second=0x80_0087), LARGE - 9), (ways(third=0x87), 8 * MIB + 5)):
        execute = hand_written(board, words)
        spa = 8 * MIB + gpa if gpa < LARGE else gpa
        board.dram.write(spa, b"found it")
        assert execute(op.Read(gpa, 8)) == b"found it"


def test_tables_outside_of_memory_are_a_machine_check() -> None:
    for words in (ways(root=1 << 40 | 7), ways(second=1 << 40 | 7)):
        answer = hand_written(board_of(), words)(op.Read(0, 1))
        assert isinstance(answer, op.Fault)
        assert answer.kind is FaultKind.MACHINE_CHECK


def test_a_table_that_is_its_own_entry_is_walked_in_bounded_work() -> None:
    board = board_of()
    execute = hand_written(board, {ROOT + 8 * number: ROOT | 7 for number in range(512)})
    # Every address is the root itself; here the entry that was the last of the walk.
    assert execute(op.Read(0x1234_5678_9C48, 8)) == (ROOT | 0x27).to_bytes(8, "little")
    # Each walk finds one page that nothing follows; what takes more of them than one access makes is not mapped.
    answer = execute(op.Clflush(0, 1 << 47))
    beyond = min(board.dram.size_bytes, MOST_WALKS * PAGE)
    assert answer == op.Fault(FaultKind.NESTED_PAGE_FAULT, beyond, FINAL | USER)


def test_the_root_may_be_given_to_another_vm_and_is_followed_there() -> None:
    board = board_of()
    execute = plain_vm(board, op.NestedMap("vm", 0, 8 * MIB, LARGE))
    assert host(board, op.VmcbWrite("other", 0, 0, "PLAIN", 0, nested_cr3=FRAMES)) == (None,)
    assert execute(op.Write(0, b"one table")) is None
    assert board.execute_guest(board.vmcb("other", 0), (op.Read(0, 9),)) == (b"one table",)
    assert host(board, op.NestedMap("vm", 0, 12 * MIB, LARGE)) == (None,)
    assert board.execute_guest(board.vmcb("other", 0), (op.Read(0, 9),)) == (bytes(9),)


# Under the RMP.

GUEST_SPA = 8 * MIB


def test_accessed_and_dirty_are_stores_that_the_rmp_may_refuse() -> None:
    board = snp_board()
    stores = [op.HostWrite(spa, word.to_bytes(8, "little")) for spa, word in ways(first=24 * MIB | 7).items()]
    vmcb = op.VmcbWrite("plain", 0, 0, "PLAIN", 0, nested_cr3=ROOT)
    taken = op.RmpUpdate(FIRST, PAGE, RmpEntry(assigned=True, gpa=0, asid=1))
    assert board.execute_host((*stores, vmcb, taken)) == (None,) * 5 + (0,)
    for one, error in ((op.Read(0, 1, private=False), USER), (op.Write(0, b"x", private=False), USER | WRITE)):
        (answer,) = board.execute_guest(board.vmcb("plain", 0), (one,))
        assert answer == op.Fault(FaultKind.RMP_FAULT, 0, FINAL | 1 << 31 | P | WRITE | error)
    assert word_at(board, FIRST) == 24 * MIB | 7


def test_a_table_page_that_a_guest_owns_takes_no_entries() -> None:
    board = snp_board()
    frames = op.NestedFrames("late", 24 * MIB, 8 * PAGE)
    taken = op.RmpUpdate(24 * MIB, PAGE, RmpEntry(assigned=True, asid=1))
    _, answer = host(board, taken, frames)
    assert isinstance(answer, op.Fault)
    assert answer.kind is FaultKind.RMP_FAULT
    given = op.RmpUpdate(24 * MIB, PAGE, RmpEntry())
    assert host(board, given, frames, op.NestedMap("late", 0, 32 * MIB, PAGE), taken) == (0, None, None, 0)
    (answer,) = host(board, op.NestedMap("late", PAGE, 32 * MIB, PAGE))
    assert isinstance(answer, op.Fault)
    assert answer.kind is FaultKind.RMP_FAULT
    with pytest.raises(NestedPageFault):
        board.nested_table("late").translate(PAGE, 1)


@pytest.mark.parametrize("large", [True, False])
def test_a_small_nested_page_over_a_large_rmp_entry_is_a_size_mismatch(large: bool) -> None:
    board = snp_board()
    vmcb = board.vmcb("one", 0)
    entry = RmpEntry(assigned=True, large=True, gpa=0, asid=1)
    assert host(board, op.RmpUpdate(GUEST_SPA, LARGE, entry), op.NestedMap("one", 0, GUEST_SPA, LARGE)) == (0, None)
    accept = op.PValidate(0, LARGE, large=True)
    assert board.execute_guest(vmcb, (accept, op.Write(0, b"x"))) == (op.PValidateResult(0, unchanged=False), None)
    # The hypervisor splits its mapping but not the RMP's.
    assert host(board, op.NestedMap("one", 0, GUEST_SPA, LARGE, large=large)) == (None,)
    read, write = board.execute_guest(vmcb, (op.Read(PAGE, 1), op.Write(PAGE, b"x")))
    if large:
        assert (type(read), write) == (bytes, None)
        return
    sizem = 1 << 35 | 1 << 34 | FINAL | 1 << 31 | USER | P
    assert read == op.Fault(FaultKind.RMP_FAULT, PAGE, sizem)
    assert write == op.Fault(FaultKind.RMP_FAULT, PAGE, sizem | WRITE)
    assert host(board, op.PSmash(GUEST_SPA)) == (0,)
    assert board.execute_guest(vmcb, (op.Read(0, 1), op.Write(PAGE, b"x"))) == (b"x", None)


def test_a_large_nested_page_over_small_rmp_entries_is_checked_by_them() -> None:
    board = snp_board()
    entry = RmpEntry(assigned=True, gpa=0, asid=1)
    assert host(board, op.NestedMap("one", 0, GUEST_SPA, LARGE), op.RmpUpdate(GUEST_SPA, 2 * PAGE, entry)) == (None, 0)
    vmcb = board.vmcb("one", 0)
    accept = op.PValidate(0, PAGE, large=False)
    answers = board.execute_guest(vmcb, (accept, op.Write(0, b"x"), op.Write(PAGE, b"x"), op.Write(2 * PAGE, b"x")))
    assert answers[:2] == (op.PValidateResult(0, unchanged=False), None)
    kinds = [answer.kind for answer in answers[2:] if isinstance(answer, op.Fault)]
    assert kinds == [FaultKind.PAGE_NOT_VALIDATED, FaultKind.RMP_FAULT]


# On a host with its hypervisor.


@pytest.mark.parametrize("generation", [Generation.PLAIN, Generation.SEV, Generation.SEV_SNP])
def test_a_launched_vm_has_its_tables_in_memory_that_its_hypervisor_pays_for(generation: Generation) -> None:
    machine = make_host(product="Milan")
    before = machine.hypervisor.figures().memory_bytes
    start(machine, "vm", generation, memory_bytes=64 * MIB)
    record = machine.hypervisor.launched("vm")
    ((frames, length),) = record.tables
    own = sum(size for _, _, size in record.ram) + len(record.small) * PAGE + length
    assert machine.hypervisor.figures().memory_bytes == before + own
    assert length // PAGE == table_pages(record.ram) + 8
    board = machine.board
    assert not board.nested_table("vm")._in_memory
    gpas = [0, 5 * MIB + 123, 63 * MIB, (4 << 30) - PAGE]
    compact = [board.nested_table("vm").translate(gpa, 1)[0][0] for gpa in gpas]
    (dump,) = host(board, op.HostRead(frames, length))
    assert board.nested_table("vm")._in_memory
    assert isinstance(dump, bytes)
    by_hand = [walked(lambda spa, size: dump[spa - frames :][:size], frames, gpa) for gpa in gpas]
    assert [spa for spa, _ in filter(None, by_hand)] == compact
    assert [board.nested_table("vm").translate(gpa, 1)[0][0] for gpa in gpas] == compact
    machine.destroy("vm")
    machine.clock.env.run()
    assert machine.hypervisor.figures().memory_bytes == before
    assert board.dram.read(frames, length) == bytes(length)


def test_tables_with_the_c_bit_are_ciphertext_that_the_walk_reads_through_the_hosts_key() -> None:
    board = Board("board", PRODUCTS["Rome"], 64 * MIB, 100, CounterRandom(1), Platform(mode=HostMode.SME))
    frames, page = op.NestedFrames("vm", FRAMES, 8 * PAGE, encrypted=True), op.NestedMap("vm", 0, 8 * MIB, PAGE)
    assert host(board, frames, page, op.VmcbWrite("vm", 0, 0, "PLAIN", 0)) == (None,) * 3
    board.controller.write(8 * MIB, b"found it", 0)

    def execute() -> tuple[op.Answer, ...]:
        return board.execute_guest(board.vmcb("vm", 0), (op.Read(0, 8),))

    assert execute() == (b"found it",)
    plain, clear = host(board, op.HostRead(FRAMES, 8), op.HostRead(FRAMES, 8, encrypted=True))
    assert clear == (FRAMES + PAGE | 0x27 | 1 << 47).to_bytes(8, "little")
    assert plain != clear
    assert execute() == (b"found it",)
    # The root as a control block has it: with its C-bit, and without.
    assert host(board, op.VmcbWrite("vm", 0, 0, "PLAIN", 0, nested_cr3=FRAMES | 1 << 47)) == (None,)
    assert execute() == (b"found it",)
    assert host(board, op.VmcbWrite("vm", 0, 0, "PLAIN", 0, nested_cr3=FRAMES)) == (None,)
    assert execute() != (b"found it",)


def test_tables_with_the_c_bit_need_a_host_with_a_key() -> None:
    board = board_of()
    (answer,) = host(board, op.NestedFrames("vm", FRAMES, 8 * PAGE, encrypted=True))
    assert isinstance(answer, op.Fault)
    assert host(board, op.NestedFrames("vm", FRAMES, 8 * PAGE)) == (None,)


@pytest.mark.parametrize(
    ("gpa", "spa", "length"), [(1, 0, PAGE), (0, 8, PAGE), (0, 0, 9), ((1 << 48) - PAGE, 0, 2 * PAGE)]
)
def test_a_mapping_that_no_table_can_hold_is_refused_and_changes_nothing(gpa: int, spa: int, length: int) -> None:
    board = board_of()
    execute = plain_vm(board)
    (answer,) = host(board, op.NestedMap("vm", gpa, spa, length))
    assert isinstance(answer, op.Fault)
    assert answer.kind is FaultKind.GENERAL_PROTECTION
    assert not board.nested_table("vm")._in_memory
    assert len(board.nested_table("vm")) == 0
    assert isinstance(execute(op.Read(0, 1)), op.Fault)


def test_a_device_behind_the_iommu_rewrites_an_entry_of_the_page_it_was_given() -> None:
    board = brought_up("Milan")
    execute = plain_vm(board, op.NestedMap("vm", 0, 24 * MIB, PAGE, large=False))
    board.controller.write(28 * MIB, b"elsewhere", 0)
    assert execute(op.Read(0, 9)) == bytes(9)
    at = entry_spa(board, 0)
    store(board, IOVA + at % PAGE, (28 * MIB | LEAF).to_bytes(8, "little"))
    assert execute(op.Read(0, 9)) == bytes(9)  # no page was given to it yet
    attached(board, [(IOVA, at // PAGE * PAGE)])
    store(board, IOVA + at % PAGE, (28 * MIB | LEAF).to_bytes(8, "little"))
    assert execute(op.Read(0, 9)) == b"elsewhere"


def judged(read: Callable[[int, int], bytes], gpa: int, write: bool) -> tuple[int, int] | int | None:
    """(SPA, 0), the error bits of a nested fault, or None for no memory: of tables as they lie at ``ROOT``, by hand."""
    table, writable, user = ROOT, True, True
    wanted = FINAL | USER | (WRITE if write else 0)
    for shift in (39, 30, 21, 12):
        at = table + (gpa >> shift & 511) * 8
        if at + 8 > 64 * MIB:
            return None
        word = int.from_bytes(read(at, 8), "little")
        if not word & 1:
            return wanted
        page = shift == 12 or (shift in (21, 30) and bool(word & 0x80))
        # Rome: addresses of 43 bits, the C-bit at 47; below a large page's size only PAT may be set.
        zero = ((1 << 52) - (1 << 43)) & ~(1 << 47)
        if shift == 39:
            zero |= 0x180
        elif page and shift > 12:
            zero |= (1 << shift) - (1 << 13)
        if word & zero:
            return wanted | P | RSV
        writable, user = writable and bool(word & 2), user and bool(word & 4)
        target = word & ((1 << 43) - 1) & -(1 << 12)
        if page:
            if not user or (write and not writable):
                return wanted | P
            spa = target & -(1 << shift) | gpa & (1 << shift) - 1
            return (spa, 0) if spa < 64 * MIB else None
        table = target
    return None


words = st.builds(
    lambda target, flags, odd: target | flags | odd,
    st.sampled_from([ROOT, THIRD, SECOND, FIRST, 8 * MIB, 0, 1 << 30, 1 << 41]),
    st.sampled_from([7, 7, 7, 0x87, 5, 3, 6, 0x27, 0x67]),
    st.sampled_from([0, 0, 0, 0, 1 << 8, 1 << 12, 1 << 13, 1 << 44, 1 << 52, 1 << 63]),
)


@given(st.lists(words, min_size=8, max_size=8), st.integers(0, 15), st.integers(0, 4088), st.booleans())
@settings(max_examples=93, deadline=None)
def test_any_bytes_are_walked_as_by_hand(entries: list[int], where: int, offset: int, write: bool) -> None:
    """Two entries in each of four tables, which may lead to each other, out of memory or to nothing."""
    board = board_of()
    places = [table + 8 * number for table in (ROOT, THIRD, SECOND, FIRST) for number in (0, 1)]
    execute = hand_written(board, dict(zip(places, entries, strict=True)))
    gpa = sum((where >> number & 1) << shift for number, shift in enumerate((12, 21, 30, 39))) + offset
    expected = judged(board.dram.read, gpa, write)
    before = board.dram.read(expected[0], 8) if isinstance(expected, tuple) else b""
    answer = execute(op.Write(gpa, b"by hand!") if write else op.Read(gpa, 8))
    if isinstance(expected, tuple):
        # The page may be a table of its own walk, whose A and D bits are set before.
        seen = board.dram.read(expected[0], 8)
        assert (answer, seen) == (None, b"by hand!") if write else answer in (before, seen)
    elif expected is None:
        assert isinstance(answer, op.Fault)
        assert answer.kind is FaultKind.MACHINE_CHECK
    else:
        assert answer == op.Fault(FaultKind.NESTED_PAGE_FAULT, gpa, expected)
