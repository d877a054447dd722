"""Boot firmware finds SPAs that share their cells, and SNP does not start on such a host (AMD-SB-3015)."""

import pytest

from node.alias_scan import aliases_found
from node.cost_table import load_cost_table
from node.dram import Dram
from node.host import Host, HostSpec
from node.hypervisor_port import LaunchRefused
from node.operations import HostRead, PspCommand, RmpUpdate
from node.physical_port import PhysicalPort
from node.platform import Platform
from node.product import PRODUCTS
from psp import command_buffers as buffers
from psp.commands import SnpCommand, SnpPlatformState
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


def host(platform: Platform) -> Host:
    spec = HostSpec("host", PRODUCTS["Milan"], 8 * SIZE, 100, 7, 10**9, platform=platform)
    return Host(spec, {}, {}, dict(load_cost_table()))


def test_snp_does_not_start_where_firmware_found_an_alias() -> None:
    with pytest.raises(LaunchRefused, match=Status.INVALID_CONFIG.name):
        host(Platform(ghost_line=SIZE, alias_check=True))


def test_without_the_check_snp_starts_all_the_same() -> None:
    assert host(Platform(ghost_line=SIZE)).board.psp.snp.state is SnpPlatformState.INIT


@pytest.mark.parametrize("checked", [True, False])
def test_the_platform_status_tells_that_the_check_was_made(checked: bool) -> None:
    """Bit 1 of the flags of SNP_PLATFORM_STATUS (firmware ABI, table of its buffer)."""
    page, command = 4 * MIB, 6 * MIB
    answers = host(Platform(alias_check=checked)).board.execute_host((
        RmpUpdate(page, 4096, FIRMWARE),
        PspCommand(SnpCommand.PLATFORM_STATUS, command, buffers.SnpAddress(address=page).pack()),
        HostRead(page, 4),
    ))  # fmt: skip
    assert (answers[0], answers[1].status) == (0, Status.SUCCESS)
    assert bool(answers[2][3] & 2) is checked
