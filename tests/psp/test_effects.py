"""What allowed commands leave behind."""

from __future__ import annotations

from dataclasses import replace

from toy_machine import (
    FIRMWARE,
    GCTX,
    GUEST_PAGE,
    OUT,
    PAGE,
    POLICY,
    context,
    new_machine,
    returning,
    sev_guest,
    snp_guest,
    up,
)

from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.guest_context import SnpGuestState
from psp.status import Status
from psp.system_bus import RmpEntry


def test_an_asid_that_pages_still_carry_is_not_activated() -> None:
    machine = snp_guest(up(), SnpGuestState.INIT)
    assert machine.call(SnpCommand.LAUNCH_START, buffers.SnpLaunchStart(GCTX, POLICY).pack()) == Status.SUCCESS
    machine.bus.rmp_set(GUEST_PAGE, RmpEntry(assigned=True, asid=2))
    activate = buffers.SnpActivate(GCTX, 2).pack()
    assert machine.call(SnpCommand.ACTIVATE, activate) == Status.INVALID_CONFIG
    machine.bus.rmp_set(GUEST_PAGE, RmpEntry())
    assert machine.call(SnpCommand.ACTIVATE, activate) == Status.SUCCESS


def test_decommission_wipes_the_context_and_gives_it_back_as_a_firmware_page() -> None:
    machine = snp_guest(up())
    assert machine.bus.read(GCTX, PAGE) != bytes(PAGE)
    assert machine.call(SnpCommand.DECOMMISSION, buffers.GuestContextPage(GCTX).pack()) == Status.SUCCESS
    assert machine.bus.read(GCTX, PAGE) == bytes(PAGE)
    assert machine.bus.rmp_entry(GCTX) == FIRMWARE


def test_legacy_shutdown_takes_every_guest_s_key_and_leaves_its_asid_to_be_flushed() -> None:
    machine = up(snp=False)
    sev_guest(machine)
    assert machine.call(LegacyCommand.SHUTDOWN) == Status.SUCCESS
    assert machine.bus.keys == {}
    assert machine.psp.legacy.guests == {}
    assert machine.call(LegacyCommand.INIT, buffers.Init().pack()) == Status.SUCCESS
    assert machine.call(LegacyCommand.DF_FLUSH) == Status.WBINVD_REQUIRED


def test_a_policy_without_smt_is_met_where_smt_is_off() -> None:
    machine = snp_guest(up(), SnpGuestState.INIT)
    machine.bus.cores = replace(machine.bus.cores, smt_enabled=False)
    start = buffers.SnpLaunchStart(GCTX, 1 << 17)
    assert machine.call(SnpCommand.LAUNCH_START, start.pack()) == Status.SUCCESS


def test_a_flush_wants_wbinvd_after_the_last_asid_given_up_not_the_first() -> None:
    machine = up(snp=False)
    first, second = sev_guest(machine, asid=6), sev_guest(machine, asid=7)
    assert machine.call(LegacyCommand.DEACTIVATE, buffers.Handle(first).pack()) == Status.SUCCESS
    machine.bus.wbinvds += 1
    assert machine.call(LegacyCommand.DEACTIVATE, buffers.Handle(second).pack()) == Status.SUCCESS
    assert machine.call(LegacyCommand.DF_FLUSH) == Status.WBINVD_REQUIRED
    machine.flush(LegacyCommand.DF_FLUSH)


def test_reclaimed_metadata_keeps_no_gpa_and_a_guest_s_page_does() -> None:
    machine = up()
    for entry, gpa in ((RmpEntry(assigned=True, immutable=True, gpa=PAGE), 0), (
        RmpEntry(assigned=True, immutable=True, gpa=PAGE, asid=2), PAGE,
    )):  # fmt: skip
        machine.bus.rmp_set(OUT, entry)
        assert machine.call(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(OUT).pack()) == Status.SUCCESS
        assert machine.bus.rmp_entry(OUT) == replace(entry, immutable=False, gpa=gpa)


def test_platform_statuses_count_guests_and_know_the_rmp() -> None:
    fresh = new_machine()
    assert fresh.call(SnpCommand.PLATFORM_STATUS, buffers.SnpAddress(OUT).pack()) == Status.SUCCESS
    empty = buffers.SnpPlatformStatus.parse(fresh.bus.read(OUT, 0x20))
    assert (empty.state, empty.flags, empty.guest_count) == (0, 0, 0)

    machine = snp_guest(up())
    sev_guest(machine)
    machine.bus.rmp_set(OUT, FIRMWARE)
    assert machine.call(SnpCommand.PLATFORM_STATUS, buffers.SnpAddress(OUT).pack()) == Status.SUCCESS
    found = buffers.SnpPlatformStatus.parse(machine.bus.read(OUT, 0x20))
    assert (found.state, found.flags, found.guest_count) == (1, 1, 1)
    status, answer = returning(machine, LegacyCommand.PLATFORM_STATUS, buffers.PlatformStatus().pack())
    assert status == Status.SUCCESS
    assert buffers.PlatformStatus.parse(answer) == buffers.PlatformStatus(1, 55, 2, 0, 40 << 24, 1)


def test_host_data_of_launch_finish_is_kept() -> None:
    machine = snp_guest(up())
    finish = buffers.SnpLaunchFinish(GCTX, host_data=bytes(range(32)))
    assert machine.call(SnpCommand.LAUNCH_FINISH, finish.pack()) == Status.SUCCESS
    assert context(machine).host_data == bytes(range(32))
