"""Boot firmware finds SPAs that share their cells, and SNP does not start on such a host (AMD-SB-3015)."""

import pytest

from node.alias_scan import aliases_found
from node.board import Board
from node.counter_random import CounterRandom
from node.dram import Dram
from node.physical_port import PhysicalPort
from node.platform import Platform
from node.product import PRODUCTS
from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.status import Status
from psp.system_bus import RmpEntry

MIB = 1 << 20
SIZE = 64 * MIB
FIRMWARE = RmpEntry(assigned=True, immutable=True)


@pytest.mark.parametrize("line", [2 * MIB, 4 * MIB, 32 * MIB])
def test_a_line_that_the_modules_lack_is_found(line: int) -> None:
    dram = Dram(SIZE)
    PhysicalPort(dram).ground(line)
    assert aliases_found(dram)


def test_one_aliased_range_is_found() -> None:
    dram = Dram(SIZE)
    PhysicalPort(dram).alias(32 * MIB, 2 * MIB, 6 * MIB)
    assert aliases_found(dram)


def test_honest_modules_pass_and_hold_nothing_afterwards() -> None:
    dram = Dram(SIZE)
    assert not aliases_found(dram)
    assert dram.resident_pages == 0
    assert dram.read(2 * MIB, 8) == bytes(8)


def init(platform: Platform) -> tuple[Board, Status]:
    board = Board("board", PRODUCTS["Milan"], SIZE, 100, CounterRandom(1), platform)
    board.bus.write(4 * MIB, buffers.SnpInitEx(flags=buffers.SNP_INIT_RMP).pack())
    return board, board.psp.submit(SnpCommand.INIT_EX, 4 * MIB)


def alias_check_complete(board: Board) -> bool:
    """Bit 1 of the flags of SNP_PLATFORM_STATUS (firmware ABI, table of its buffer)."""
    board.bus.write(4 * MIB, buffers.SnpAddress(address=5 * MIB).pack())
    assert board.psp.submit(SnpCommand.PLATFORM_STATUS, 4 * MIB) == Status.SUCCESS
    return bool(int.from_bytes(board.bus.read(5 * MIB, 4), "little") >> 24 & 2)


def test_snp_does_not_start_where_firmware_found_an_alias() -> None:
    assert init(Platform(ghost_line=32 * MIB, alias_check=True))[1] == Status.INVALID_CONFIG


def test_without_the_check_snp_starts_all_the_same() -> None:
    assert init(Platform(ghost_line=32 * MIB))[1] == Status.SUCCESS


@pytest.mark.parametrize("checked", [True, False])
def test_the_platform_status_tells_that_the_check_was_made(checked: bool) -> None:
    board, status = init(Platform(alias_check=checked))
    assert status == Status.SUCCESS
    board.rmp.rmpupdate(5 * MIB, 4096, FIRMWARE)
    assert alias_check_complete(board) is checked
