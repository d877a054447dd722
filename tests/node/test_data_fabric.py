"""Routes of the data fabric: an RMP that leads nowhere while SNP starts, and what keeps it from that."""

from __future__ import annotations

import pytest
from iommu_boards import MEMORY_BYTES, do, host, switched_on

from node import operations as op
from node.board import Board
from node.host_bring_up import bring_up_steps, refusal
from node.hypervisor import Hypervisor
from node.platform import Platform
from node.rmp_layout import at_end_of_memory
from psp.commands import SnpPlatformState
from psp.system_bus import PAGE_BYTES, RmpEntry

UNLOCKED = Platform(fabric_locked=False)
TARGET = 16 << 20
COMMAND_PAGE = 2 << 20


def fabricked(platform: Platform, product: str = "Turin") -> tuple[Board, str]:
    """A board whose host led the RMP to nowhere while SNP started; what was refused."""
    board = switched_on(product, platform)
    layout = at_end_of_memory(MEMORY_BYTES, segmented=board.product.rmp.segmented)
    # The entries only: with the segment table gone, firmware would not find them.
    away, back = (
        tuple(op.FabricRoute(one.spa, one.end - one.spa, to_memory) for one in layout.arrays)
        for to_memory in (False, True)
    )
    for step in bring_up_steps(board.product, COMMAND_PAGE, 0):
        batch = step.batch
        if step.name == "SNP_INIT_EX":
            # No core may store while entries read as ones, so the command's buffer is laid first.
            (command,) = batch
            assert isinstance(command, op.PspCommand)
            laid = op.HostWrite(COMMAND_PAGE, command.buffer)
            batch = (laid, *away, op.PspCommand(command.command, COMMAND_PAGE), *back)
        refused = refusal(step._replace(batch=batch), host(board, *batch))
        if refused:
            return board, refused
    return board, ""


def entries_are_writable(board: Board) -> bool:
    assert board.rmp is not None
    return host(board, op.HostWrite(board.rmp.layout.entry_spa(TARGET // PAGE_BYTES), bytes(16))) == (None,)


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_on_an_unlocked_fabric_snp_starts_over_an_rmp_that_protects_nothing(product: str) -> None:
    board, refused = fabricked(UNLOCKED, product)
    assert refused == ""
    assert board.psp.snp.state is SnpPlatformState.INIT
    assert host(board, op.RmpUpdate(TARGET, PAGE_BYTES, RmpEntry(assigned=True, gpa=0x5000, asid=3))) == (0,)
    (answer,) = host(board, op.HostWrite(TARGET, b"evil"))
    assert isinstance(answer, op.Fault)
    assert entries_are_writable(board)
    assert host(board, op.HostWrite(TARGET, b"evil")) == (None,)


def test_firmware_that_looks_for_the_lock_does_not_start_snp() -> None:
    board, refused = fabricked(Platform(fabric_locked=False, fabric_lock_checked=True))
    assert refused == "SNP_INIT_EX: INVALID_CONFIG"
    assert board.psp.snp.state is SnpPlatformState.UNINIT


@pytest.mark.parametrize("checked", [False, True])
def test_a_locked_fabric_keeps_its_routes(checked: bool) -> None:
    board, refused = fabricked(Platform(fabric_lock_checked=checked))
    assert refused == ""
    assert not board.dram.has_routes
    assert not entries_are_writable(board)


def test_what_leads_nowhere_reads_as_ones_for_everybody_and_holds_what_it_had() -> None:
    board = switched_on("Turin", UNLOCKED)
    do(board, Hypervisor(board.product, MEMORY_BYTES, 100, {}).bring_up())
    away = op.FabricRoute(TARGET, PAGE_BYTES, to_memory=False)
    assert host(board, op.HostWrite(TARGET, b"kept"), away) == (None, None)
    assert host(board, op.HostWrite(TARGET, b"lost"), op.HostRead(TARGET, 4)) == (None, b"\xff" * 4)
    assert board.bus.read(TARGET, 4) == b"\xff" * 4
    assert host(board, op.FabricRoute(TARGET, PAGE_BYTES, to_memory=True), op.HostRead(TARGET, 4)) == (None, b"kept")


@pytest.mark.parametrize(
    ("spa", "length", "kind"),
    [
        (TARGET + 8, PAGE_BYTES, op.FaultKind.GENERAL_PROTECTION),
        (TARGET, 100, op.FaultKind.GENERAL_PROTECTION),
        (1 << 40, PAGE_BYTES, op.FaultKind.MACHINE_CHECK),
        (-PAGE_BYTES, PAGE_BYTES, op.FaultKind.MACHINE_CHECK),
    ],
)
@pytest.mark.parametrize("to_memory", [False, True])
def test_routes_of_no_pages_are_refused(spa: int, length: int, kind: op.FaultKind, to_memory: bool) -> None:
    board = switched_on("Turin", UNLOCKED)
    assert host(board, op.FabricRoute(spa, length, to_memory)) == (op.Fault(kind, spa),)
    assert not board.dram.has_routes
