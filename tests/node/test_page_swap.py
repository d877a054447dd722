"""A running guest's page leaves a real board's memory and comes back to another frame; the guest notices nothing."""

import pytest
from toy_guests import SECOND, look, make_host, run, start

from node import operations as op
from node.generation import Generation
from node.guest import GuestState
from node.vmsa import VMSA_FIELDS
from psp import command_buffers as buffers
from psp import swap_buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.legacy_swap import VMSA
from psp.status import Status
from psp.system_bus import PAGE_BYTES, RmpEntry

FIRMWARE = RmpEntry(assigned=True, immutable=True)


@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_a_page_goes_and_returns_while_its_guest_lives(product):
    host = make_host(product=product)
    guest = start(host, "vm", Generation.SEV_SNP)
    record = host.hypervisor.launched("vm")
    gpa, gctx = record.launched_gpas[0], record.gctx
    spa = record.spa_of(gpa)
    before = look(host, guest, gpa, PAGE_BYTES)
    command, mdata, away, home = (
        host.hypervisor.frames.allocate(PAGE_BYTES, PAGE_BYTES)[0][0] for _ in range(4)
    )
    entry = RmpEntry(assigned=True, immutable=True, gpa=gpa, asid=record.asid)

    def do(*batch):
        for answer in host.board.execute_host(batch):
            assert answer in (None, 0) or answer.status == 0

    def call(number, buffer):
        do(op.PspCommand(number, command, buffer.pack()))

    do(*(op.RmpUpdate(frame, PAGE_BYTES, FIRMWARE) for frame in (mdata, away)))
    call(SnpCommand.PAGE_MD_INIT, swap_buffers.SnpPageMdInit(gctx, mdata))
    do(op.RmpUpdate(spa, PAGE_BYTES, entry))  # of a valid page only immutable changes
    call(SnpCommand.PAGE_SWAP_OUT, swap_buffers.SnpPageSwapOut(gctx, spa, away, mdata))
    call(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(spa))
    do(op.RmpUpdate(spa, PAGE_BYTES, RmpEntry()), op.NestedUnmap("vm", gpa, PAGE_BYTES))
    assert isinstance(look(host, guest, gpa, 16), op.Fault)
    (outside,) = host.board.execute_host((op.HostRead(away, PAGE_BYTES),))
    assert before[:16] not in outside

    do(op.RmpUpdate(home, PAGE_BYTES, entry))
    call(SnpCommand.PAGE_SWAP_IN, swap_buffers.SnpPageSwapIn(gctx, away, home, mdata))
    call(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(home))
    do(op.NestedMap("vm", gpa, home, PAGE_BYTES))
    assert look(host, guest, gpa, PAGE_BYTES) == before

    # And on to a third frame, in one step.
    third = host.hypervisor.frames.allocate(PAGE_BYTES, PAGE_BYTES)[0][0]
    do(op.RmpUpdate(home, PAGE_BYTES, entry), op.RmpUpdate(third, PAGE_BYTES, entry))
    call(SnpCommand.PAGE_MOVE, swap_buffers.SnpPageMove(gctx, 0, home, third))
    call(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(third))
    do(op.NestedUnmap("vm", gpa, PAGE_BYTES), op.NestedMap("vm", gpa, third, PAGE_BYTES))
    assert look(host, guest, gpa, PAGE_BYTES) == before


def test_registers_of_an_es_guest_go_and_return_but_not_damaged():
    host = make_host(product="Rome")
    guest = start(host, "vm", Generation.SEV_ES, "busy")
    run(host, SECOND // 20)
    units = guest.vcpus[0].registers.r13
    host.pause("vm")
    run(host, SECOND // 10)
    assert guest.state is GuestState.PAUSED
    area = guest.vcpus[0].save_area_spa
    away, mdata, command = (host.hypervisor.frames.allocate(PAGE_BYTES, PAGE_BYTES)[0][0] for _ in range(3))
    handle = host.hypervisor.launched("vm").handle

    def call(number, buffer):
        (answer,) = host.board.execute_host((op.PspCommand(number, command, buffer.pack()),))
        return answer.status

    leaving = swap_buffers.SwapOut(handle, VMSA << 1, area, away, mdata)
    (whole,) = host.board.execute_host((op.HostRead(area, PAGE_BYTES),))
    host.board.execute_host((op.HostWrite(area + VMSA_FIELDS["RIP"].offset, bytes(16)),))
    assert call(LegacyCommand.SWAP_OUT, leaving) == Status.BAD_MEASUREMENT
    host.board.execute_host((op.HostWrite(area, whole),))
    assert call(LegacyCommand.SWAP_OUT, leaving) == 0
    host.board.execute_host((op.HostWrite(area, bytes(PAGE_BYTES)),))
    returning = swap_buffers.SwapIn(handle, VMSA << 1, away, area, mdata)
    host.board.execute_host((op.HostWrite(away, b"\xff"),))
    assert call(LegacyCommand.SWAP_IN, returning) == Status.BAD_MEASUREMENT
    assert call(LegacyCommand.SWAP_OUT, leaving) == Status.BAD_MEASUREMENT  # what lies there is nobody's registers
    host.board.execute_host((op.HostWrite(area, whole),))
    assert call(LegacyCommand.SWAP_OUT, leaving) == 0
    host.board.execute_host((op.HostWrite(area, bytes(PAGE_BYTES)),))
    assert call(LegacyCommand.SWAP_IN, returning) == 0
    host.resume("vm")
    run(host, SECOND // 5)
    assert guest.state is GuestState.RUNNING
    assert guest.vcpus[0].registers.r13 > units > 0
