"""Pages of a device have RMP entries like memory; no command on memory takes them for it."""

from __future__ import annotations

import pytest
from device_bench import CONTEXT, MMIO, PORT, RID, new_bench
from toy_machine import FIRMWARE, GCTX, GUEST_PAGE, OUT, change_context, snp_guest

from psp import command_buffers as buffers
from psp import swap_buffers, tsm
from psp.commands import SnpCommand
from psp.guest_context import SnpGuestState
from psp.launch_digest import PageType
from psp.policy import SnpPolicy
from psp.status import Status
from psp.system_bus import RmpEntry

POLICY = 0x3_0000
PRE_GUEST = RmpEntry(assigned=True, immutable=True, gpa=0x5000, asid=2)
RUNNING, LAUNCH = SnpGuestState.RUNNING, SnpGuestState.LAUNCH
ROWS = {
    "GCTX_CREATE": (SnpCommand.GCTX_CREATE, buffers.GuestContextPage(MMIO), FIRMWARE, RUNNING),
    "LAUNCH_UPDATE": (
        SnpCommand.LAUNCH_UPDATE, buffers.SnpLaunchUpdate.of(GCTX, PageType.NORMAL, MMIO), PRE_GUEST, LAUNCH
    ),
    "PAGE_MD_INIT": (SnpCommand.PAGE_MD_INIT, swap_buffers.SnpPageMdInit(GCTX, MMIO), FIRMWARE, RUNNING),
    "PAGE_SWAP_OUT": (
        SnpCommand.PAGE_SWAP_OUT, swap_buffers.SnpPageSwapOut(GCTX, MMIO, OUT, flags=1 << 4), PRE_GUEST, RUNNING
    ),
    "PAGE_SWAP_OUT to": (
        SnpCommand.PAGE_SWAP_OUT, swap_buffers.SnpPageSwapOut(GCTX, GUEST_PAGE, MMIO, flags=1 << 4), FIRMWARE, RUNNING
    ),
    "PAGE_SWAP_IN": (
        SnpCommand.PAGE_SWAP_IN, swap_buffers.SnpPageSwapIn(GCTX, OUT, MMIO, flags=1 << 4), PRE_GUEST, RUNNING
    ),
    "PAGE_MOVE": (SnpCommand.PAGE_MOVE, swap_buffers.SnpPageMove(GCTX, 0, MMIO, GUEST_PAGE), PRE_GUEST, RUNNING),
    "PAGE_MOVE to": (SnpCommand.PAGE_MOVE, swap_buffers.SnpPageMove(GCTX, 0, GUEST_PAGE, MMIO), PRE_GUEST, RUNNING),
    "DBG_DECRYPT": (SnpCommand.DBG_DECRYPT, buffers.SnpDebug(GCTX, MMIO, OUT), PRE_GUEST, RUNNING),
    "DBG_ENCRYPT": (SnpCommand.DBG_ENCRYPT, buffers.SnpDebug(GCTX, OUT, MMIO), PRE_GUEST, RUNNING),
    "TIO_DEV_CREATE": (
        SnpCommand.TIO_DEV_CREATE, tsm.DeviceCreate(32, 0, tsm.data_page(MMIO), RID, PORT), FIRMWARE, RUNNING
    ),
    "TIO_DEV_STATUS": (SnpCommand.TIO_DEV_STATUS, tsm.DeviceStatus(32, 0, CONTEXT, MMIO), FIRMWARE, RUNNING),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_page_of_a_device_is_no_memory_to_any_command(name: str) -> None:
    command, buffer, entry, state = ROWS[name]
    bench = new_bench()
    if command != SnpCommand.TIO_DEV_CREATE:
        bench.create()
    machine = snp_guest(bench.machine, state)
    change_context(machine, policy=POLICY | SnpPolicy.DEBUG)
    bench.lend(OUT)
    machine.bus.rmp_set(GUEST_PAGE, PRE_GUEST)
    machine.bus.rmp_set(MMIO, entry)
    machine.bus.write(0x1000, buffer.pack())
    before = bench.snapshot()
    assert machine.psp.submit(command, 0x1000) == Status.INVALID_ADDRESS
    assert bench.snapshot() == before


def test_launches_in_runs_take_no_page_of_a_device_either() -> None:
    bench = new_bench()
    snp_guest(bench.machine, LAUNCH)
    bench.machine.bus.rmp_set(MMIO, PRE_GUEST)
    run = [buffers.SnpLaunchUpdate.of(GCTX, PageType.NORMAL, MMIO).pack()]
    assert bench.machine.psp.submit_launch_updates(run, 0x1000) == 0


def test_a_page_of_a_device_that_was_lent_is_taken_back() -> None:
    bench = new_bench()
    bench.machine.bus.rmp_set(MMIO, FIRMWARE)
    assert bench.machine.call(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(MMIO).pack()) == Status.SUCCESS
    assert not bench.machine.bus.rmp_entry(MMIO).immutable
