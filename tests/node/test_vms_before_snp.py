"""VMs that were there before SNP: their tables and emulated devices are checked as those that come later."""

from __future__ import annotations

import pytest
from iommu_boards import host, switched_on

from node import operations as op
from node.board import Board
from node.core_msrs import Msr
from node.guest_memory_map import SHARED_GPA
from node.host_bring_up import bring_up_steps, refusal
from psp.system_bus import PAGE_BYTES, RmpEntry

MIB = 1 << 20
COMMAND_PAGE, TABLES, SAVE_AREA, MEMORY, TAKEN = 2 * MIB, 16 * MIB, 17 * MIB, 18 * MIB, 24 * MIB
ELSEWHERE = (op.WriteMsr(None, Msr.RMP_BASE, 8 * MIB), op.WriteMsr(None, Msr.RMP_END, 10 * MIB - 1))
"""Another place for the RMP than boot firmware's."""
GPA, SECRET = SHARED_GPA + MIB, b"what a VM before SNP put on disk"


def vm_that_came_first(product: str) -> Board:
    """A plain VM that has used its disk, on a host that was brought up with SNP after it."""
    board = switched_on(product)
    host(board, op.NestedFrames("old", TABLES, 64 << 10), op.NestedMap("old", SHARED_GPA, MEMORY, 2 * MIB, large=False))
    assert host(board, op.VmcbWrite("old", 0, 0, "PLAIN", SAVE_AREA), op.VmRun("old", 0)) == (None, 0)
    block = SECRET.ljust(op.BLOCK_BYTES, b".")
    assert guest(board, op.Write(GPA, block, private=False), op.BlockWrite(0, 1, GPA)) == (None, 0)
    (syscfg,) = host(board, op.ReadMsr(0, Msr.SYSCFG))
    assert isinstance(syscfg, int)
    for step in bring_up_steps(board.product, COMMAND_PAGE, syscfg):
        if step.name == "SNP_EN" and product == "Milan":
            host(board, *ELSEWHERE)
        assert refusal(step, host(board, *step.batch)) == ""
    return board


def guest(board: Board, *batch: op.GuestOperation) -> tuple[op.Answer, ...]:
    return board.execute_guest(board.vmcb("old", 0), batch)


def given_away(board: Board, spa: int = TAKEN) -> None:
    assert host(board, op.RmpUpdate(spa, PAGE_BYTES, RmpEntry(assigned=True, asid=5, gpa=0x7000))) == (0,)


@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_its_disk_stores_to_no_page_that_a_guest_has_been_given_since(product: str) -> None:
    board = vm_that_came_first(product)
    assert guest(board, op.BlockRead(0, 1, GPA)) == (0,)
    given_away(board)
    assert host(board, op.NestedMap("old", GPA, TAKEN, PAGE_BYTES, large=False)) == (None,)
    (before,) = host(board, op.HostRead(TAKEN, PAGE_BYTES))
    (status,) = guest(board, op.BlockRead(0, 1, GPA))
    assert status != 0
    assert host(board, op.HostRead(TAKEN, PAGE_BYTES)) == (before,)


@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_its_tables_are_not_written_once_a_guest_has_been_given_one(product: str) -> None:
    board = vm_that_came_first(product)
    given_away(board, TABLES)
    (before,) = host(board, op.HostRead(TABLES, PAGE_BYTES))
    (answer,) = host(board, op.NestedMap("old", 0, MEMORY, 2 * MIB))
    assert isinstance(answer, op.Fault)
    assert answer.kind is op.FaultKind.RMP_FAULT
    assert host(board, op.HostRead(TABLES, PAGE_BYTES)) == (before,)


def test_its_disk_reads_no_ciphertext_that_is_hidden_since() -> None:
    board = vm_that_came_first("Turin")
    given_away(board)
    host(board, op.NestedMap("old", GPA, TAKEN, PAGE_BYTES, large=False))
    (shown,) = host(board, op.HostRead(TAKEN, 16))
    board.bus.hide_ciphertext(40)
    assert host(board, op.HostRead(TAKEN, 16)) == (b"\xff" * 16,) != (shown,)
    assert guest(board, op.BlockWrite(1, 1, GPA)) == (0,)
    host(board, op.NestedMap("old", GPA, MEMORY, PAGE_BYTES, large=False))
    assert guest(board, op.BlockRead(1, 1, GPA), op.Read(GPA, 16, private=False)) == (0, b"\xff" * 16)
