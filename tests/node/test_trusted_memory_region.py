"""What firmware has for itself after INIT with ES (the TMR): whoever else points there is answered, never a crash."""

from __future__ import annotations

import pytest
from toy_guests import MIB

from node import operations as op
from node.board import Board
from node.counter_random import CounterRandom
from node.host_instructions import VMEXIT_INVALID
from node.operations import FaultKind
from node.product import PRODUCTS
from psp.command_buffers import INIT_ES, Activate, Init, InitEx, LaunchStart, LaunchUpdateVmsa
from psp.commands import LegacyCommand
from psp.nv_storage import NV_BYTES
from psp.status import Status

BUFFER, TMR, PAGE = 0x1000, MIB, 4096
INIT = Init(flags=INIT_ES, tmr_address=TMR, tmr_length=MIB).pack()


def fresh(product: str = "Milan") -> Board:
    one = PRODUCTS[product]
    return Board("board", one, 64 * MIB, one.min_sev_asid, CounterRandom(1))


def psp(board: Board, command: LegacyCommand, buffer: bytes = b"", spa: int = BUFFER) -> op.PspAnswer:
    (answer,) = board.execute_host((op.PspCommand(command, spa, buffer),))
    assert isinstance(answer, op.PspAnswer)
    return answer


def machine_check(board: Board, one: op.HypervisorOperation) -> bool:
    (answer,) = board.execute_host((one,))
    return isinstance(answer, op.Fault) and answer.kind is FaultKind.MACHINE_CHECK


@pytest.mark.parametrize("product", ["Naples", "Milan"])
def test_init_answers_though_its_own_buffer_goes_with_the_region(product: str) -> None:
    board = fresh(product)
    assert psp(board, LegacyCommand.INIT, INIT, TMR).status == Status.SUCCESS
    assert psp(board, LegacyCommand.PLATFORM_STATUS, bytes(12)).status == Status.SUCCESS
    assert machine_check(board, op.HostRead(TMR, 16))


@pytest.mark.parametrize("offset", [-NV_BYTES + PAGE, 0, MIB - PAGE])
def test_init_ex_refuses_a_file_inside_its_own_region(offset: int) -> None:
    board = fresh()
    file = TMR + offset
    board.execute_host((op.HostWrite(file, b"\xff" * NV_BYTES),))
    wrong = InitEx(InitEx.SIZE, INIT_ES, TMR, MIB, file, NV_BYTES)
    assert psp(board, LegacyCommand.INIT_EX, wrong.pack()).status == Status.INVALID_ADDRESS
    assert board.execute_host((op.HostRead(file, NV_BYTES),)) == (b"\xff" * NV_BYTES,)
    assert psp(board, LegacyCommand.INIT, INIT).status == Status.SUCCESS


def test_a_save_area_in_the_region_fails_vmrun() -> None:
    """APM volume 2, 15.5.1: what the processor cannot load ends in VMEXIT_INVALID."""
    board = fresh("Rome")
    assert psp(board, LegacyCommand.INIT, INIT).status == Status.SUCCESS
    board.execute_host((op.Wbinvd(),))
    for command, buffer in (
        (LegacyCommand.DF_FLUSH, b""),
        (LegacyCommand.LAUNCH_START, LaunchStart(policy=4).pack()),
        (LegacyCommand.ACTIVATE, Activate(1, 1).pack()),
        (LegacyCommand.LAUNCH_UPDATE_VMSA, LaunchUpdateVmsa(1, 2 * TMR, PAGE).pack()),
    ):
        assert psp(board, command, buffer).status == Status.SUCCESS
    for spa, answer in ((TMR, VMEXIT_INVALID), (2 * TMR, 0)):
        assert board.execute_host((op.VmcbWrite("vm", 0, 1, "SEV_ES", spa), op.VmRun("vm", 0))) == (None, answer)


def test_tables_that_the_region_swallows_are_walked_no_more() -> None:
    board = fresh("Rome")
    board.execute_host((op.NestedFrames("vm", TMR, 64 * PAGE), op.NestedMap("vm", 0, 4 * TMR, PAGE)))
    board.execute_host((op.VmcbWrite("vm", 0, 0, "PLAIN", 0), op.VmRun("vm", 0)))
    assert psp(board, LegacyCommand.INIT, INIT).status == Status.SUCCESS
    (answer,) = board.execute_guest(board.vmcb("vm", 0), (op.Read(0, 16),))
    assert isinstance(answer, op.Fault)
    assert answer.kind is FaultKind.MACHINE_CHECK
    assert machine_check(board, op.NestedMap("vm", PAGE, 5 * TMR, PAGE))


@pytest.mark.parametrize("taken", ["the RMP's place", "another VM's tables"])
def test_tables_where_another_form_is_kept_are_bytes_like_all_memory(taken: str) -> None:
    board = fresh()
    last = 64 * MIB - PAGE
    place = {"the RMP's place": last, "another VM's tables": 2 * TMR}[taken]
    board.execute_host((op.NestedFrames("other", 2 * TMR, 4 * PAGE),))
    frames = op.NestedFrames("vm", place, PAGE)
    more = op.NestedFrames("vm", 3 * TMR, 8 * PAGE)
    mapped = op.NestedMap("vm", 0, 4 * TMR, PAGE)
    assert board.execute_host((frames, more, mapped, op.HostWrite(4 * TMR, b"seen"))) == (None,) * 4
    board.execute_host((op.VmcbWrite("vm", 0, 0, "PLAIN", 0), op.VmRun("vm", 0)))
    assert board.execute_guest(board.vmcb("vm", 0), (op.Read(0, 4),)) == (b"seen",)
    board.execute_host((op.HostClear(place, PAGE),))
    (answer,) = board.execute_guest(board.vmcb("vm", 0), (op.Read(PAGE, 4),))
    assert isinstance(answer, op.Fault)
