"""Memory that firmware fixed for the hypervisor: the host and its devices use it, and nobody is given it."""

from __future__ import annotations

import struct

import pytest
from iommu_boards import attached, load, store, switched_on

from node import operations as op
from node.board import Board
from node.core_msrs import Msr
from node.host_bring_up import bring_up_steps, refusal
from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.status import Status
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

LIST, COMMANDS = 1 << 15, 1 << 16
FIXED = 16 << 20


def host(board: Board, *batch: op.HypervisorOperation) -> op.Answer:
    return board.execute_host(batch)[-1]


@pytest.fixture(params=["Milan", "Turin"])
def board(request: pytest.FixtureRequest) -> Board:
    made = switched_on(request.param)
    syscfg = host(made, op.ReadMsr(0, Msr.SYSCFG))
    assert isinstance(syscfg, int)
    assert host(made, op.HostWrite(LIST, struct.pack("<IIQII", 1, 0, FIXED, 2, 0))) is None
    flags = buffers.SNP_INIT_RMP | buffers.SNP_INIT_LIST
    init = buffers.SnpInitEx(flags=flags, range_list_address=LIST).pack()
    for step in bring_up_steps(made.product, COMMANDS, syscfg):
        batch = step.batch
        if step.name == "SNP_INIT_EX":
            batch = (op.PspCommand(SnpCommand.INIT_EX, COMMANDS, init),)
        assert refusal(step._replace(batch=batch), made.execute_host(batch)) == ""
    return made


def test_it_is_the_hosts_and_its_devices(board: Board) -> None:
    assert host(board, op.HostWrite(FIXED, b"the host's own..")) is None
    attached(board, ((0x40_0000, FIXED),))
    assert load(board) == b"the host's own.."
    store(board, data=b"and its devices.")
    assert host(board, op.HostRead(FIXED, 16)) == b"and its devices."


@pytest.mark.parametrize(
    "entry",
    [RmpEntry(), RmpEntry(assigned=True, asid=1), RmpEntry(assigned=True, immutable=True)],
    ids=["hypervisor", "guest", "firmware"],
)
def test_nobody_is_given_it(board: Board, entry: RmpEntry) -> None:
    assert host(board, op.RmpUpdate(FIXED, PAGE_BYTES, entry)) == 2
    assert host(board, op.RmpUpdate(FIXED + 2 * PAGE_BYTES, PAGE_BYTES, RmpEntry())) == 0
    large = RmpEntry(assigned=True, large=True, asid=1)
    assert host(board, op.RmpUpdate(FIXED, LARGE_PAGE_BYTES, large)) == 2


def test_firmware_neither_reclaims_it_nor_writes_there_and_frees_it_at_shutdown(board: Board) -> None:
    reclaim = buffers.SnpPageReclaim(FIXED).pack()
    answer = host(board, op.PspCommand(SnpCommand.PAGE_RECLAIM, COMMANDS, reclaim))
    assert isinstance(answer, op.PspAnswer)
    assert answer.status == Status.INVALID_PAGE_STATE
    status = buffers.SnpAddress(FIXED).pack()
    answer = host(board, op.PspCommand(SnpCommand.PLATFORM_STATUS, COMMANDS, status))
    assert isinstance(answer, op.PspAnswer)
    assert answer.status == Status.INVALID_PAGE_STATE
    shutdown = buffers.SnpShutdownEx(length=8).pack()
    answer = host(board, op.PspCommand(SnpCommand.SHUTDOWN_EX, COMMANDS, shutdown))
    assert isinstance(answer, op.PspAnswer)
    assert answer.status == 0
    assert host(board, op.RmpUpdate(FIXED, PAGE_BYTES, RmpEntry(assigned=True, asid=1))) == 0
