"""Whatever numbers an operation holds, the board answers: no exception, no work without bound, and the tap sees it."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from random import Random
from typing import Any, get_args

import pytest
from rmp_laboratory import MEMORY_BYTES, laboratory

from node import operations as op
from node.actor import Actor
from node.agent_core import AGENT_IMAGE
from node.board import Board
from node.card_slot import CardSlot
from node.counter_random import CounterRandom
from node.disk import DISK_BLOCKS
from node.generation import Generation
from node.mechanism import MECHANISMS
from node.migration_agent import MARK
from node.nested_page_table import MOST_WALKS
from node.page_table_entry import ACCESSED, DIRTY, PRESENT, USER, WRITABLE
from node.platform import HostMode, Platform
from node.product import PRODUCTS
from node.vmcb import Vmcb
from psp.system_bus import PAGE_BYTES, RmpEntry
from tio.device_identity import CardKind
from tio.nvme_format import Status

EXTREMES = (-1, -4096, 0, 1, 4095, 1 << 36, 1 << 40, 1 << 63, 1 << 64, 1 << 70)
WORDS = {
    "vm": ("one", "toy", "nobody", ""),
    "generation": ("SEV", "SEV_SNP", "SEV_ES", "SEV_TIO", "PLAIN", "SME", "XX", ""),
    "register": ("CR0", "CR3", "CR4", "EFER", "CR8", "XX"),
    "field": ("EVENTINJ", "V_INTR", "XX"),
    "cost": ("nonsense", ""),
    "version": ("2.0", ""),
}
CARDS = (CardSlot(1, CardKind.GPU), CardSlot(4095 // 256 - 1, CardKind.NVME))
EACH = 40
"""Samples of an operation on one board."""
TOY_ASID, TOY_SPA = 200, 32 << 20
MACHINE_CHECK = op.FaultKind.MACHINE_CHECK

BOARDS = [
    (product, mode, caches)
    for product in ("Naples", "Milan", "Turin")
    for mode in HostMode
    for caches in (False, True)
]


def board_of(product: str, platform: Platform) -> tuple[Board, list[Vmcb]]:
    """A board with a SEV guest and a card where numbers reach one, and with an SNP guest where the part has them."""
    platform = replace(platform, cards=CARDS)
    if Generation.SEV_SNP in PRODUCTS[product].generations:
        board = laboratory(product, platform).board
        guests = [board.vmcb("one", 0)]
    else:
        board, guests = Board("board", PRODUCTS[product], MEMORY_BYTES, 9, CounterRandom(1), platform), []
    board.controller.install_key(TOY_ASID, bytes(board.controller.key_bytes))
    made = board.execute_host((
        op.NestedFrames("toy", TOY_SPA - (64 << 10), 32 << 10),
        op.NestedMap("toy", 0, TOY_SPA, 4 << 20),
        op.VmcbWrite("toy", 0, TOY_ASID, "SEV", TOY_SPA - PAGE_BYTES),
    ))  # fmt: skip
    assert made == (None,) * 3
    return board, [board.vmcb("toy", 0), *guests]


def hostile(kind: type, random: Random) -> Any:
    """An operation, or an entry in one, with whatever its types allow."""
    values: dict[str, Any] = {}
    for field in fields(kind):
        match field.type:
            case "int":
                values[field.name] = random.choice(EXTREMES)
            case "int | None":
                values[field.name] = random.choice((None, *EXTREMES))
            case "bool":
                values[field.name] = random.random() < 0.5
            case "bytes":
                values[field.name] = bytes(random.choice((0, 1, 16, PAGE_BYTES)))
            case "str":
                values[field.name] = random.choice(WORDS[field.name])
            case "Mechanism":
                values[field.name] = random.choice(MECHANISMS)
            case "RmpEntry":
                values[field.name] = hostile(RmpEntry, random)
            case "tuple[int, int, int, int]":
                values[field.name] = tuple(random.choice(EXTREMES) for _ in range(4))
            case "tuple[tuple[int, int], ...]":
                pair = (random.choice(EXTREMES), random.choice(EXTREMES))
                values[field.name] = (pair,) * random.choice((0, 1, 3, 1000))
            case "tuple[tuple[int, int, int], ...]":
                values[field.name] = tuple(
                    [tuple(random.choice(EXTREMES) for _ in range(3)) for _ in range(random.choice((0, 1, 3, 100)))]
                )
            case other:
                raise AssertionError(f"{kind}: a field of type {other} that this test does not know")
    return kind(**values)


@pytest.mark.parametrize(("product", "mode", "caches"), BOARDS)
def test_an_operation_with_extreme_numbers_is_answered_and_overheard(
    product: str, mode: HostMode, caches: bool
) -> None:
    board, guests = board_of(product, Platform(mode=mode, caches=caches, cache_timing=caches))
    seen: list[tuple[object, ...]] = []

    def overhear(_: Actor, batch: tuple[object, ...], answers: tuple[op.Answer, ...]) -> None:
        assert len(batch) == len(answers)
        seen.append(batch)

    board.observer = overhear
    random, asked = Random(f"{product} {mode.name} {caches}"), []
    for kind in [one for one in get_args(op.GuestOperation) for _ in range(EACH)]:
        asked.append((hostile(kind, random),))
        assert is_answer(board.execute_guest(random.choice(guests), asked[-1])[0])
    for kind in [one for one in get_args(op.HypervisorOperation) for _ in range(EACH)]:
        asked.append((hostile(kind, random),))
        assert is_answer(board.execute_host(asked[-1])[0])
    # A call of an agent is overheard, and before it what looks whether the guest is one.
    looks = (op.Read(AGENT_IMAGE.gpa, len(MARK)),)
    assert [batch for batch in seen if batch != looks] == asked
    assert seen.count(looks) <= EACH


def is_answer(answer: op.Answer) -> bool:
    return answer is None or isinstance(answer, bytes | int) or is_dataclass(answer)


@pytest.mark.parametrize("caches", [False, True])
@pytest.mark.parametrize("mode", [HostMode.SME, HostMode.TSME])
@pytest.mark.parametrize("length", [-1, -4080, MEMORY_BYTES, 1 << 36, 1 << 64, 1 << 70])
def test_what_runs_past_the_end_of_memory_is_a_machine_check_and_clears_nothing(
    mode: HostMode, length: int, caches: bool
) -> None:
    board = Board("board", PRODUCTS["Rome"], MEMORY_BYTES, 9, CounterRandom(1), Platform(mode=mode, caches=caches))
    encrypted = mode is HostMode.SME
    board.execute_host((op.HostWrite(0, b"kept" * 1024, encrypted),))
    fault = op.Fault(MACHINE_CHECK, 16)
    assert board.execute_host((op.HostClear(16, length, encrypted),)) == (fault,)
    assert board.execute_host((op.HostRead(0, 4096, encrypted),)) == (b"kept" * 1024,)


@pytest.mark.parametrize(("spa", "length"), [(16, 32), (4096, 100), (100, 3996), (100, 3 * 4096), (0, 8192)])
def test_a_host_clears_parts_of_pages_through_its_key(spa: int, length: int) -> None:
    board = Board("board", PRODUCTS["Rome"], MEMORY_BYTES, 9, CounterRandom(1), Platform(mode=HostMode.SME))
    before = bytes(range(1, 129)) * 128
    board.execute_host((op.HostWrite(0, before, True), op.HostClear(spa, length, True)))
    after = before[:spa] + bytes(length) + before[spa + length :]
    assert board.execute_host((op.HostRead(0, len(before), True),)) == (after,)


@pytest.mark.parametrize("product", ["Milan", "Turin"])
@pytest.mark.parametrize(
    "refused",
    [
        op.HostReadWritten(2097151, MEMORY_BYTES),
        op.HostRead(2097151, MEMORY_BYTES),
        op.HostRead(-64, 4 << 20),
        op.HostRead(2 << 20, 64, True),
        op.HostReadWritten(2 << 20, PAGE_BYTES, True),
        op.HostWrite(2 << 20, bytes(64), True),
        op.HostClear(2 << 20, 1 << 40),
        op.NestedFrames("frames", 2 << 20, 1 << 40),
    ],
)
def test_an_access_that_faults_writes_no_line_back(product: str, refused: op.HypervisorOperation) -> None:
    board = laboratory(product, Platform(caches=True)).board
    assert board.caches is not None
    for spa in range(2 << 20, (2 << 20) + PAGE_BYTES, 64):
        board.controller.write(spa, b"dirty" * 12 + b"line", 0)
    lines, dirty = len(board.caches.cache), len(board.caches.cache._dirty)
    before = board.dram.cells.read(0, 4 << 20)
    (answer,) = board.execute_host((refused,))
    assert isinstance(answer, op.Fault)
    assert (len(board.caches.cache), len(board.caches.cache._dirty)) == (lines, dirty)
    assert board.dram.cells.read(0, 4 << 20) == before


@pytest.mark.parametrize(
    ("lba", "data", "status"),
    [
        (0, bytes(16), Status.INVALID_FIELD),
        (-1, bytes(4096), Status.INVALID_FIELD),
        (DISK_BLOCKS, bytes(4096), Status.LBA_OUT_OF_RANGE),
        (DISK_BLOCKS - 1, bytes(8192), Status.LBA_OUT_OF_RANGE),
        (1 << 63, bytes(4096), Status.LBA_OUT_OF_RANGE),
    ],
)
def test_a_disk_refuses_blocks_that_it_does_not_have(lba: int, data: bytes, status: Status) -> None:
    board, _ = board_of("Naples", Platform())
    assert board.execute_host((op.DiskWrite("toy", lba, data), op.DiskRead("toy"))) == (status, op.Runs(()))


def test_a_control_block_of_no_generation_is_refused_and_the_one_before_stays() -> None:
    board, guests = board_of("Naples", Platform())
    (answer,) = board.execute_host((op.VmcbWrite("toy", 0, 7, "XX", 0),))
    assert answer == op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0)
    assert board.vmcb("toy", 0) == guests[0]
    board.execute_host((op.VmcbWrite("other", 0, 7, "XX", 0),))
    assert "other" not in board.vmcbs
    assert "other" not in board.nested


def test_frames_outside_of_memory_leave_the_choice_of_the_c_bit_open() -> None:
    board, _ = board_of("Naples", Platform(mode=HostMode.SME))
    past = op.NestedFrames("framed", 0, 1 << 70, encrypted=True)
    assert board.execute_host((past, op.NestedFrames("framed", 0, PAGE_BYTES))) == (op.Fault(MACHINE_CHECK, 0), None)
    assert board.nested_table("framed").nested_cr3 == 0


@pytest.mark.parametrize("tlb_entries", [None, 16])
def test_a_guest_access_of_more_walks_than_the_most_ends_where_that_much_was_found(tlb_entries: int | None) -> None:
    board, _ = board_of("Naples", Platform(tlb_entries=tlb_entries))
    # Each entry of the table leads to the table itself, and so shows its page at every address.
    root = 8 << 20
    entry = root | PRESENT | WRITABLE | USER | ACCESSED | DIRTY
    table = op.HostWrite(root, entry.to_bytes(8, "little") * 512)
    board.execute_host((table, op.VmcbWrite("loop", 0, 0, "PLAIN", 0, root)))
    last = MOST_WALKS * PAGE_BYTES
    loop, beyond = board.vmcb("loop", 0), op.Fault(op.FaultKind.NESTED_PAGE_FAULT, last, 0x1_0000_0004)
    assert board.execute_guest(loop, (op.Clflush(0, 1 << 40, False),)) == (beyond,)


def test_a_guest_access_longer_than_all_memory_ends_in_mappings_that_repeat_it_too() -> None:
    board, guests = board_of("Naples", Platform())
    for gpa in (0, MEMORY_BYTES, 2 * MEMORY_BYTES):
        board.execute_host((op.NestedMap("toy", gpa, 0, MEMORY_BYTES),))
    beyond = op.Fault(op.FaultKind.NESTED_PAGE_FAULT, 4096 + MEMORY_BYTES, 0x1_0000_0004)
    assert board.execute_guest(guests[0], (op.Clflush(4096, 2 * MEMORY_BYTES, False),)) == (beyond,)
    hole = op.Fault(op.FaultKind.NESTED_PAGE_FAULT, 3 * MEMORY_BYTES, 0x1_0000_0004)
    assert board.execute_guest(guests[0], (op.Clflush(3 * MEMORY_BYTES - 4096, 1 << 40, False),)) == (hole,)
