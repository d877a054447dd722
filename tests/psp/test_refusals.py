"""What the security processor does not model is refused with the status of the specification; see LIMITATIONS."""

from __future__ import annotations

import pytest
from toy_machine import (
    COMMAND_PAGE,
    FIRMWARE,
    GCTX,
    GUEST_PAGE,
    OUT,
    PAGE,
    POLICY,
    Machine,
    new_machine,
    pre_guest,
    returning,
    sev_guest,
    snp_guest,
    up,
)

from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.guest_context import SnpGuestState
from psp.launch_digest import PageType
from psp.page_state import PageState, page_state
from psp.status import Status


def refused(machine: Machine, command: int, buffer: bytes) -> int:
    """The status of a command that must leave everything as it was."""
    machine.bus.write(COMMAND_PAGE, buffer)
    before = machine.snapshot()
    status = int(machine.psp.submit(command, COMMAND_PAGE))
    assert machine.snapshot() == before
    return status


def test_an_es_policy_fails_unless_init_was_for_es() -> None:
    es = buffers.LaunchStart(policy=1 | 1 << 2).pack()
    assert refused(up(snp=False), LegacyCommand.LAUNCH_START, es) == Status.POLICY_FAILURE


@pytest.mark.parametrize("policy", [1 << 6, 1 << 15, 2 << 16, 1 << 16 | 56 << 24])
def test_a_sev_policy_with_reserved_bits_or_a_newer_api_fails(policy: int) -> None:
    start = buffers.LaunchStart(policy=policy).pack()
    assert refused(up(snp=False), LegacyCommand.LAUNCH_START, start) == Status.POLICY_FAILURE


@pytest.mark.parametrize("policy", [0, 1, 1 << 16 | 55 << 24, 0x3B])
def test_a_sev_policy_that_can_be_met_is_taken(policy: int) -> None:
    assert up(snp=False).call(LegacyCommand.LAUNCH_START, buffers.LaunchStart(policy=policy).pack()) == Status.SUCCESS


@pytest.mark.parametrize(("theirs", "ours"), [(3, 1), (1, 3), (3, 3), (0, 1)])
def test_a_guest_that_forbids_it_or_has_another_policy_shares_its_key_with_nobody(theirs: int, ours: int) -> None:
    machine = up(snp=False)
    handle = sev_guest(machine)
    machine.psp.legacy.guests[handle].policy = theirs
    start = buffers.LaunchStart(handle=handle, policy=ours).pack()
    assert refused(machine, LegacyCommand.LAUNCH_START, start) == Status.POLICY_FAILURE
    start = buffers.LaunchStart(handle=handle + 1, policy=1).pack()
    assert refused(machine, LegacyCommand.LAUNCH_START, start) == Status.INVALID_GUEST


@pytest.mark.parametrize("bit", range(3, 32))
def test_snp_init_offers_no_option_but_to_clear_the_rmp_fix_ranges_and_tell_nobody_of_energy(bit: int) -> None:
    status = refused(new_machine(), SnpCommand.INIT_EX, buffers.SnpInitEx(flags=1 | 1 << bit).pack())
    assert status == (Status.UNSUPPORTED if bit <= 4 else Status.INVALID_PARAM)


@pytest.mark.parametrize("bit", range(32))
def test_snp_shutdown_does_not_stop_the_cores_checks(bit: int) -> None:
    shutdown = buffers.SnpShutdownEx(8, 1 << bit).pack()
    if bit == 0:
        assert up(legacy=False).call(SnpCommand.SHUTDOWN_EX, shutdown) == Status.SUCCESS
    else:
        status = refused(up(legacy=False), SnpCommand.SHUTDOWN_EX, shutdown)
        assert status == (Status.UNSUPPORTED if bit == 1 else Status.INVALID_PARAM)


def test_snp_shutdown_reclaims_contexts_only() -> None:
    machine = snp_guest(up(legacy=False))
    machine.bus.rmp_set(OUT, FIRMWARE)
    assert machine.call(SnpCommand.SHUTDOWN_EX, buffers.SnpShutdownEx(8).pack()) == Status.SUCCESS
    assert page_state(machine.bus.rmp_entry(GCTX)) is PageState.RECLAIM
    assert page_state(machine.bus.rmp_entry(OUT)) is PageState.FIRMWARE
    assert machine.bus.keys == {}
    assert not machine.psp.snp.guests.pages.spas


@pytest.mark.parametrize("bit", range(22, 25))
def test_snp_policies_that_demand_other_memory_protection_fail(bit: int) -> None:
    machine = snp_guest(up(), SnpGuestState.INIT)
    start = buffers.SnpLaunchStart(GCTX, POLICY | 1 << bit)
    assert refused(machine, SnpCommand.LAUNCH_START, start.pack()) == Status.POLICY_FAILURE


@pytest.mark.parametrize("flags", [2, 8, 12])
def test_launch_finish_has_no_author_without_an_id_block_and_no_other_flags(flags: int) -> None:
    machine = snp_guest(up())
    finish = buffers.SnpLaunchFinish(GCTX, flags=flags)
    assert refused(machine, SnpCommand.LAUNCH_FINISH, finish.pack()) == Status.INVALID_PARAM


def test_cpuid_values_are_taken_as_the_host_gives_them() -> None:
    machine = snp_guest(up())
    invented = (1).to_bytes(4, "little").ljust(16, b"\0") + b"\xff" * 48
    pre_guest(machine, invented.ljust(PAGE, b"\0"))
    update = buffers.SnpLaunchUpdate.of(GCTX, PageType.CPUID, GUEST_PAGE)
    assert machine.call(SnpCommand.LAUNCH_UPDATE, update.pack()) == Status.SUCCESS


@pytest.mark.parametrize("length", [0, 0x0F, 0x11])
def test_feature_info_wants_its_own_length(length: int) -> None:
    machine = up()
    machine.bus.rmp_set(OUT, FIRMWARE)
    asked = buffers.SnpFeatureInfo(length, 0, OUT)
    assert refused(machine, SnpCommand.FEATURE_INFO, asked.pack()) == Status.INVALID_LENGTH


def test_feature_info_offers_what_init_and_policies_may_ask_and_platform_status_says_that_it_may_be_asked() -> None:
    machine = up()
    machine.bus.rmp_set(OUT, FIRMWARE)
    machine.bus.write(OUT, b"\xee" * 16)
    assert machine.call(SnpCommand.FEATURE_INFO, buffers.SnpFeatureInfo(0x10, 0, OUT).pack()) == Status.SUCCESS
    assert machine.bus.read(OUT, 16) == bytes(8) + (0b11_0100).to_bytes(4, "little") + bytes(4)
    assert (
        refused(machine, SnpCommand.FEATURE_INFO, buffers.SnpFeatureInfo(0x10, 1, OUT).pack()) == Status.INVALID_PARAM
    )
    assert machine.call(SnpCommand.PLATFORM_STATUS, buffers.SnpAddress(OUT).pack()) == Status.SUCCESS
    assert buffers.SnpPlatformStatus.parse(machine.bus.read(OUT, 0x20)).policy_flags == 1 << 3


def test_statuses_report_what_was_launched() -> None:
    machine = snp_guest(up(), SnpGuestState.RUNNING)
    machine.bus.rmp_set(OUT, FIRMWARE)
    assert machine.call(SnpCommand.GUEST_STATUS, buffers.SnpGuestStatus(GCTX, OUT).pack()) == Status.SUCCESS
    page = buffers.SnpGuestStatusPage.parse(machine.bus.read(OUT, 0x20))
    assert (page.policy, page.asid, page.state) == (POLICY, 2, 2)
    handle = sev_guest(machine)
    _, answer = returning(machine, LegacyCommand.GUEST_STATUS, buffers.GuestStatus(handle).pack())
    assert buffers.GuestStatus.parse(answer) == buffers.GuestStatus(handle, 1, 6, 1)


@pytest.mark.parametrize(("command", "spa"), [(0x8001, COMMAND_PAGE), (0x1_0001, COMMAND_PAGE), (-1, COMMAND_PAGE)])
def test_a_command_wider_than_its_field_is_no_other_command(command: int, spa: int) -> None:
    machine = new_machine()
    assert machine.psp.submit(command, spa) == Status.INVALID_COMMAND
    assert machine.psp.submit(LegacyCommand.INIT, spa + (1 << 64)) == Status.INVALID_ADDRESS
