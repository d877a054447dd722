"""SNP_SHUTDOWN_EX with x86 shutdown: cores ask the RMP nothing any more, until SNP is brought up again."""

from __future__ import annotations

import struct

import pytest
from rmp_laboratory import COMMAND_PAGE, GUEST_SPA, VMS, Laboratory, give, laboratory, page_of

from node import operations as op
from node.core_msrs import SNP_EN, Msr
from node.host_bring_up import bring_up_steps, refusal
from node.host_instructions import VMEXIT_INVALID
from node.platform import HostMode, Platform
from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.status import Status
from psp.system_bus import PAGE_BYTES, RmpEntry

LIST = 48 << 20
BOTH = buffers.SNP_SHUTDOWN_IOMMU | buffers.SNP_SHUTDOWN_X86


def shut(lab: Laboratory, flags: int = BOTH) -> int:
    for vm in VMS:
        lab.host(op.VmPreempt(vm, 0))
    assert not lab.firmware(LegacyCommand.SHUTDOWN)
    status = lab.firmware(SnpCommand.SHUTDOWN_EX, buffers.SnpShutdownEx(8, flags))
    if status == Status.DFFLUSH_REQUIRED:
        lab.host(op.Wbinvd())
        assert not lab.firmware(SnpCommand.DF_FLUSH)
        status = lab.firmware(SnpCommand.SHUTDOWN_EX, buffers.SnpShutdownEx(8, flags))
    return status


def is_refused(answer: object) -> bool:
    return isinstance(answer, op.Fault) and answer.kind is op.FaultKind.RMP_FAULT


@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_pages_of_guests_and_the_table_are_the_hosts_again(product: str) -> None:
    lab = laboratory(product)
    give(lab, page_of(), validate=True)
    table = lab.board.rmp.layout.ranges()[0][0]
    for spa in (GUEST_SPA, table):
        assert is_refused(lab.host(op.HostWrite(spa, b"mine"))[0])
    assert shut(lab) == Status.SUCCESS
    assert all(not value & SNP_EN for value in lab.board.msrs.values(Msr.SYSCFG))
    for spa in (GUEST_SPA, table, table + (16 << 10)):
        assert lab.host(op.HostWrite(spa, b"mine"), op.HostRead(spa, 4)) == (None, b"mine")


def test_without_the_flag_the_cores_go_on_checking() -> None:
    lab = laboratory()
    give(lab, page_of(), validate=True)
    assert shut(lab, buffers.SNP_SHUTDOWN_IOMMU) == Status.SUCCESS
    assert is_refused(lab.host(op.HostWrite(GUEST_SPA, b"mine"))[0])
    assert lab.host(op.RmpUpdate(GUEST_SPA, PAGE_BYTES, RmpEntry())) == (0,)


def test_instructions_of_the_rmp_are_gone_and_snp_guests_do_not_run() -> None:
    lab = laboratory()
    assert shut(lab) == Status.SUCCESS
    undefined = op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0)
    assert lab.host(op.RmpUpdate(GUEST_SPA, PAGE_BYTES, RmpEntry()), op.PSmash(GUEST_SPA)) == (undefined, undefined)
    assert lab.host(op.VmRun("one", 0)) == (VMEXIT_INVALID,)
    (answer,) = lab.board.execute_guest(lab.board.vmcb("one", 0), (op.Read(0, 8),))
    assert isinstance(answer, op.Fault)


def test_bytes_of_the_table_stay_as_they_were_and_count_no_more() -> None:
    lab = laboratory("Milan")
    give(lab, page_of(), validate=True)
    rmp = lab.board.rmp
    spa = rmp.layout.entry_spa(GUEST_SPA // PAGE_BYTES)
    before = lab.board.dram.read(spa, 16)
    assert any(before)
    assert shut(lab) == Status.SUCCESS
    assert lab.host(op.HostRead(spa, 16)) == (before,)
    assert rmp.entry(GUEST_SPA) == RmpEntry()
    # The host's own bytes there take nobody a page.
    assert lab.host(op.HostWrite(spa, b"\xff" * 16), op.HostWrite(GUEST_SPA, b"mine")) == (None, None)


def bring_up(lab: Laboratory) -> list[str]:
    product = lab.board.product
    (syscfg,) = lab.host(op.ReadMsr(0, Msr.SYSCFG))
    return [refusal(step, lab.host(*step.batch)) for step in bring_up_steps(product, COMMAND_PAGE, syscfg, 0)]


@pytest.mark.parametrize("product", ["Milan", "Turin"])
@pytest.mark.parametrize("mode", [HostMode.SME, HostMode.TSME])
def test_snp_comes_up_again_and_checks_as_before(product: str, mode: HostMode) -> None:
    lab = laboratory(product, Platform(mode=mode))
    give(lab, page_of(), validate=True)
    assert shut(lab) == Status.SUCCESS
    assert set(bring_up(lab)) == {""}
    assert lab.board.rmp.entry(GUEST_SPA) == RmpEntry()
    assert lab.host(op.HostWrite(GUEST_SPA, b"mine")) == (None,)
    assert lab.host(op.RmpUpdate(GUEST_SPA, PAGE_BYTES, page_of())) == (0,)
    assert is_refused(lab.host(op.HostWrite(GUEST_SPA, b"mine"))[0])
    table = lab.board.rmp.layout.ranges()[0][0]
    assert is_refused(lab.host(op.HostWrite(table, b"mine"))[0])


def test_with_snp_en_again_and_no_init_the_bytes_that_lie_there_are_entries() -> None:
    lab = laboratory("Milan")
    give(lab, page_of(), validate=True)
    assert shut(lab) == Status.SUCCESS
    (syscfg,) = lab.host(op.ReadMsr(0, Msr.SYSCFG))
    assert lab.host(op.WriteMsr(None, Msr.SYSCFG, syscfg | SNP_EN)) == (None,)
    assert lab.board.rmp.entry(GUEST_SPA).asid == 1
    assert is_refused(lab.host(op.HostWrite(GUEST_SPA, b"mine"))[0])


def test_the_place_of_the_table_may_be_another_then() -> None:
    lab = laboratory("Milan")
    old = lab.board.rmp.layout.base
    assert shut(lab) == Status.SUCCESS
    at = 32 << 20
    assert lab.host(op.WriteMsr(None, Msr.RMP_BASE, at), op.WriteMsr(None, Msr.RMP_END, at + (1 << 20) - 1)) == (
        None, None,
    )  # fmt: skip
    assert set(bring_up(lab)) == {""}
    assert lab.board.rmp.layout.base == at
    assert lab.host(op.HostWrite(old, b"mine")) == (None,)
    assert is_refused(lab.host(op.HostWrite(at, b"mine"))[0])


def test_a_platform_whose_cores_nobody_reaches_does_not_offer_it() -> None:
    lab = laboratory("Milan", Platform(x86_snp_shutdown=False))
    assert shut(lab) == Status.INVALID_PARAM
    assert not lab.board.bus.can_release_cores


def test_one_core_that_differs_loses_snp_too() -> None:
    board = laboratory("Milan").board
    board.msrs.write(3, Msr.SYSCFG, board.msrs.read(3, Msr.SYSCFG) | 1 << 18)
    board.msrs.leave_snp()
    assert all(not value & SNP_EN for value in board.msrs.values(Msr.SYSCFG))
    assert board.msrs.read(3, Msr.SYSCFG) ^ board.msrs.read(0, Msr.SYSCFG) == 1 << 18


@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_a_page_above_memory_is_not_set_to_any_state(product: str) -> None:
    lab = laboratory(product)
    end, at = lab.board.dram.size_bytes, 40 << 20
    assert lab.host(*[op.RmpUpdate(spa, PAGE_BYTES, RmpEntry(assigned=True, immutable=True)) for spa in (at, end)]) == (
        0, 0,
    )  # fmt: skip
    for spa, status in ((end, Status.INVALID_ADDRESS), (at, Status.SUCCESS)):
        lab.host(op.HostWrite(LIST, struct.pack("<IIQII", 1, 0, spa, 1, 0)))
        assert lab.firmware(SnpCommand.PAGE_SET_STATE, buffers.SnpPageSetState(0x10, 0, LIST)) == status
        assert lab.board.rmp.entry(spa).assigned is (status != Status.SUCCESS)
    assert lab.host(op.HostWrite(at, b"mine"), op.RmpUpdate(at, PAGE_BYTES, page_of())) == (None, 2)
