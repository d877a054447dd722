"""The SEV interface: guests, measurement, ASIDs."""

from __future__ import annotations

import hashlib

import pytest
from toy_machine import (
    COMMAND_PAGE,
    FIRMWARE,
    GCTX,
    GUEST_PAGE,
    OUT,
    PAGE,
    returning,
    sev_guest,
    up,
)

from psp import command_buffers as buffers
from psp.commands import COMMANDS, LegacyCommand, LegacyPlatformState
from psp.launch_digest import launch_measure
from psp.legacy_guest import LegacyGuestState
from psp.status import Status


def test_a_sev_launch_is_measured_with_its_nonce() -> None:
    machine = up()
    handle = sev_guest(machine)
    data = bytes(range(256)) * 32
    machine.bus.write(GUEST_PAGE, data)
    for spa in range(GUEST_PAGE, GUEST_PAGE + len(data), PAGE):
        machine.bus.rmp_set(spa, FIRMWARE)
    launch = buffers.LaunchUpdateData(handle, GUEST_PAGE, len(data))
    assert machine.call(LegacyCommand.LAUNCH_UPDATE_DATA, launch.pack()) == 0
    assert machine.bus.read_guest(GUEST_PAGE, len(data), 6) == data
    machine.bus.rmp_set(OUT, FIRMWARE)
    measure = buffers.LaunchMeasure(handle, OUT, 48).pack()
    assert returning(machine, LegacyCommand.LAUNCH_MEASURE, measure)[0] == 0
    answer = machine.bus.read(OUT, 48)
    guest = machine.psp.legacy.guests[handle]
    expected = launch_measure(guest.transport.tik, (1, 55, 40), 1, hashlib.sha256(data).digest(), answer[32:])
    assert answer[:32] == expected


def test_a_short_measurement_buffer_is_told_the_length() -> None:
    machine = up()
    handle = sev_guest(machine)
    status, back = returning(machine, LegacyCommand.LAUNCH_MEASURE, buffers.LaunchMeasure(handle, OUT, 47).pack())
    assert status == Status.INVALID_LENGTH
    assert buffers.LaunchMeasure.parse(back).length == 48
    assert machine.psp.legacy.guests[handle].state is LegacyGuestState.LUPDATE


_LEGACY_ALLOWED = {
    LegacyCommand.LAUNCH_UPDATE_DATA: {LegacyGuestState.LUPDATE},
    LegacyCommand.LAUNCH_MEASURE: {LegacyGuestState.LUPDATE},
    LegacyCommand.LAUNCH_FINISH: {LegacyGuestState.LSECRET},
}


@pytest.mark.parametrize("command", _LEGACY_ALLOWED)
@pytest.mark.parametrize("state", [LegacyGuestState.LUPDATE, LegacyGuestState.LSECRET, LegacyGuestState.RUNNING])
def test_a_sev_command_in_a_guest_state_that_forbids_it_changes_nothing(
    command: LegacyCommand, state: LegacyGuestState
) -> None:
    if state in _LEGACY_ALLOWED[command]:
        return
    machine = up(snp=False)
    handle = sev_guest(machine, state)
    size = COMMANDS[command].layout.SIZE  # type: ignore[union-attr]
    machine.bus.write(COMMAND_PAGE, handle.to_bytes(4, "little").ljust(size, b"\0"))
    before = machine.snapshot()
    assert machine.psp.submit(command, COMMAND_PAGE) == Status.INVALID_GUEST_STATE
    assert machine.snapshot() == before


@pytest.mark.parametrize(
    ("address", "length", "status"),
    [
        (GUEST_PAGE, 0, Status.INVALID_LENGTH),
        (GUEST_PAGE, 17, Status.INVALID_LENGTH),
        (GUEST_PAGE + 8, 16, Status.INVALID_ADDRESS),
        ((1 << 24) - 16, 32, Status.INVALID_ADDRESS),
        (GCTX, PAGE, Status.INVALID_PAGE_STATE),
    ],
)
def test_launch_update_data_refuses_bad_ranges(address: int, length: int, status: Status) -> None:
    machine = up()
    handle = sev_guest(machine)
    machine.bus.rmp_set(GUEST_PAGE, FIRMWARE)
    launch = buffers.LaunchUpdateData(handle, address, length)
    assert machine.call(LegacyCommand.LAUNCH_UPDATE_DATA, launch.pack()) == status
    assert machine.psp.legacy_launch_record(handle).digest == hashlib.sha256(b"").digest()


@pytest.mark.parametrize("asid", [0, 4, 9])
def test_sev_guests_get_only_asids_from_the_split_on(asid: int) -> None:
    machine = up()
    handle = sev_guest(machine)
    assert machine.call(LegacyCommand.DEACTIVATE, buffers.Handle(handle).pack()) == 0
    assert machine.call(LegacyCommand.ACTIVATE, buffers.Activate(handle, asid).pack()) == Status.INVALID_ASID


def test_a_sev_asid_comes_back_only_after_wbinvd_and_df_flush() -> None:
    machine = up()
    handle = sev_guest(machine)
    assert machine.call(LegacyCommand.DEACTIVATE, buffers.Handle(handle).pack()) == 0
    activate = buffers.Activate(handle, 6).pack()
    assert machine.call(LegacyCommand.ACTIVATE, activate) == Status.WBINVD_REQUIRED
    machine.bus.wbinvds += 1
    assert machine.call(LegacyCommand.ACTIVATE, activate) == Status.DFFLUSH_REQUIRED
    assert machine.call(LegacyCommand.DF_FLUSH) == 0
    assert machine.call(LegacyCommand.ACTIVATE, activate) == 0


def test_the_last_guest_takes_the_platform_back_to_init() -> None:
    machine = up()
    handle = sev_guest(machine)
    assert machine.psp.legacy.state is LegacyPlatformState.WORKING
    assert machine.call(LegacyCommand.DECOMMISSION, buffers.Handle(handle).pack()) == Status.ACTIVE
    assert machine.call(LegacyCommand.DEACTIVATE, buffers.Handle(handle).pack()) == 0
    assert machine.call(LegacyCommand.DECOMMISSION, buffers.Handle(handle).pack()) == 0
    assert machine.psp.legacy.state is LegacyPlatformState.INIT
    assert machine.call(LegacyCommand.DECOMMISSION, buffers.Handle(handle).pack()) == Status.INVALID_PLATFORM_STATE


def test_contexts_run_out() -> None:
    machine = up(snp=False)
    statuses = [machine.call(LegacyCommand.LAUNCH_START, buffers.LaunchStart(policy=1).pack()) for _ in range(9)]
    assert statuses == [Status.SUCCESS] * 8 + [Status.RESOURCE_LIMIT]
