"""What a host may get wrong in any command: reserved bytes, lengths, buffers on each other, pages given twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from owner import TARGET_CHAIN, TARGET_PDH, exported, lay_chain
from toy_machine import (
    COMMAND_PAGE,
    FIRMWARE,
    GCTX,
    GUEST_PAGE,
    OUT,
    PAGE,
    Machine,
    context,
    new_machine,
    pre_guest,
    returning,
    sev_guest,
    snp_guest,
    up,
    update,
)

from psp import command_buffers as buffers
from psp.byte_layout import ByteLayout
from psp.commands import COMMANDS, LegacyCommand, LegacyPlatformState, SnpCommand, SnpPlatformState, is_snp
from psp.firmware import SecurityProcessor
from psp.guest_context import SnpGuestState
from psp.installed_firmware import FirmwareLevel
from psp.launch_digest import PageType
from psp.legacy_guest import LegacyGuestState
from psp.policy import LegacyPolicy
from psp.status import Status


def reserved_bytes(layout: type[ByteLayout]) -> list[int]:
    """Offsets that no field has, found by what a record of all ones does not set."""
    ones = layout.parse(b"\xff" * layout.SIZE).pack()
    return [at for at, octet in enumerate(ones) if not octet]


def machine_for(command: int) -> Machine:
    """A machine whose platform takes this command."""
    states = COMMANDS[command].states
    if is_snp(command):
        return up(legacy=False) if SnpPlatformState.INIT in states else new_machine()
    if LegacyPlatformState.WORKING in states:
        machine = up(snp=False)
        sev_guest(machine)
        return machine
    return up(snp=False) if LegacyPlatformState.INIT in states else new_machine()


WITH_RESERVED = [
    command
    for command, row in COMMANDS.items()
    if row.supported and row.layout is not None and reserved_bytes(row.layout)
]


@pytest.mark.parametrize("command", WITH_RESERVED)
def test_reserved_bytes_of_a_command_buffer_are_zero(command: int) -> None:
    layout, machine = COMMANDS[command].layout, machine_for(command)
    assert layout is not None
    for at in (reserved_bytes(layout)[0], reserved_bytes(layout)[-1]):
        machine.bus.write(COMMAND_PAGE, bytes(at) + b"\x80" + bytes(layout.SIZE - at - 1))
        before = machine.snapshot()
        assert machine.psp.submit(command, COMMAND_PAGE) == Status.INVALID_PARAM
        assert machine.snapshot() == before


def test_most_buffers_have_reserved_bytes_and_what_follows_them_is_nobody_s() -> None:
    assert len(WITH_RESERVED) > 20
    machine = up()
    behind = buffers.SnpCommit(buffers.SnpCommit.SIZE).pack() + b"\xff" * 60
    assert machine.call(SnpCommand.COMMIT, behind) == Status.SUCCESS


SIZED = {
    LegacyCommand.INIT_EX: buffers.InitEx,
    SnpCommand.SHUTDOWN_EX: buffers.SnpShutdownEx,
    SnpCommand.COMMIT: buffers.SnpCommit,
    SnpCommand.VLEK_LOAD: buffers.SnpVlekLoad,
    SnpCommand.FEATURE_INFO: buffers.SnpFeatureInfo,
    SnpCommand.VERIFY_MITIGATION: buffers.SnpVerifyMitigation,
}
"""Commands whose buffer begins with its own length."""


@pytest.mark.parametrize("command", SIZED)
def test_a_buffer_that_says_another_length_than_its_own_is_refused(command: int) -> None:
    size = SIZED[command].SIZE
    machine = machine_for(command)
    level = FirmwareLevel((1, 58, 0))
    machine.psp = SecurityProcessor(machine.bus, lambda _purpose, _count, length: bytes(length), level)
    if is_snp(command):
        assert machine.call(SnpCommand.INIT_EX, buffers.SnpInitEx(flags=buffers.SNP_INIT_RMP).pack()) == 0
    for length in (0, size - 1, size + 1, 1 << 31):
        machine.bus.write(COMMAND_PAGE, SIZED[command](length).pack())
        before = machine.snapshot()
        assert machine.psp.submit(command, COMMAND_PAGE) == Status.INVALID_LENGTH
        assert machine.snapshot() == before


# Launch.


@pytest.mark.parametrize("page_type", PageType)
def test_a_page_is_launched_once(page_type: PageType) -> None:
    machine = snp_guest(up())
    pre_guest(machine)
    assert update(machine, page_type) == Status.SUCCESS
    before = machine.snapshot()
    assert update(machine, page_type) == Status.INVALID_PAGE_STATE
    assert machine.snapshot()["RMP"] == before["RMP"]
    assert context(machine).digest != bytes(48)


@pytest.mark.parametrize(
    "changes",
    [
        {"flags": PageType.NORMAL << 1 | 1 << 5},
        {"flags": PageType.NORMAL << 1 | 1 << 31},
        {"permissions": 1},
        {"permissions": 0x20 << 8},
        {"permissions": 0x80 << 16},
        {"permissions": 0xFF << 24},
    ],
)
def test_flags_and_permissions_that_mean_nothing_are_refused(changes: dict[str, int]) -> None:
    bad = replace(buffers.SnpLaunchUpdate.of(GCTX, PageType.NORMAL, GUEST_PAGE), **changes)
    machine = snp_guest(up())
    pre_guest(machine)
    machine.bus.write(COMMAND_PAGE, bad.pack())
    before = machine.snapshot()
    assert machine.psp.submit(SnpCommand.LAUNCH_UPDATE, COMMAND_PAGE) == Status.INVALID_PARAM
    assert machine.psp.submit_launch_updates([bad.pack()] * 9, COMMAND_PAGE) == 0
    assert machine.snapshot() == before


def test_every_permission_that_there_is_may_be_given_at_launch() -> None:
    machine = snp_guest(up())
    pre_guest(machine)
    wide = replace(buffers.SnpLaunchUpdate.of(GCTX, PageType.NORMAL, GUEST_PAGE), permissions=0x1F0F_0100)
    assert machine.call(SnpCommand.LAUNCH_UPDATE, wide.pack()) == Status.SUCCESS
    assert machine.bus.rmp_entry(GUEST_PAGE).vmpl_permissions == (15, 0x01, 0x0F, 0x1F)


def test_reserved_bytes_end_a_run_of_launch_updates() -> None:
    machine = snp_guest(up())
    for at in range(4):
        pre_guest(machine)
        machine.bus.rmp_set(
            GUEST_PAGE + at * PAGE, replace(machine.bus.rmp_entry(GUEST_PAGE), gpa=0x5000 + at * PAGE)
        )
    pages = [buffers.SnpLaunchUpdate.of(GCTX, PageType.NORMAL, GUEST_PAGE + at * PAGE).pack() for at in range(4)]
    pages[2] = pages[2][:0x1C] + b"\1" + pages[2][0x1D:]
    assert machine.psp.submit_launch_updates(pages, COMMAND_PAGE) == 2


def test_the_guest_s_address_is_part_of_what_is_measured() -> None:
    digests = set()
    for gpa in (0x5000, 0x6000, 0xFFFF_FFFF_F000):
        machine = snp_guest(up())
        pre_guest(machine, gpa=gpa)
        assert update(machine) == Status.SUCCESS
        digests.add(context(machine).digest)
    assert len(digests) == 3


def test_host_data_is_set_once() -> None:
    machine = snp_guest(up(), SnpGuestState.RUNNING)
    machine.bus.write(COMMAND_PAGE, buffers.SnpLaunchFinish(GCTX, host_data=b"\1" * 32).pack())
    before = machine.snapshot()
    assert machine.psp.submit(SnpCommand.LAUNCH_FINISH, COMMAND_PAGE) == Status.INVALID_GUEST_STATE
    assert machine.snapshot() == before


# Buffers on top of each other: what firmware writes last counts, and nothing else is touched.


def changed_pages(machine: Machine, before: dict[str, object]) -> set[int]:
    pages: dict[int, bytes] = before["DRAM"]  # type: ignore[assignment]
    return {page * PAGE for page, octets in machine.bus.pages.items() if octets != pages.get(page, bytes(PAGE))}


def test_an_answer_may_lie_on_its_own_command() -> None:
    machine = snp_guest(up())
    machine.bus.rmp_set(COMMAND_PAGE, FIRMWARE)
    machine.bus.write(COMMAND_PAGE, buffers.SnpGuestStatus(GCTX, COMMAND_PAGE).pack())
    before = machine.snapshot()
    assert machine.psp.submit(SnpCommand.GUEST_STATUS, COMMAND_PAGE) == Status.SUCCESS
    found = buffers.SnpGuestStatusPage.parse(machine.bus.read(COMMAND_PAGE, 0x20))
    assert (found.asid, found.state) == (2, SnpGuestState.LAUNCH)
    assert changed_pages(machine, before) == {COMMAND_PAGE}


def test_two_outputs_at_one_place_leave_the_later_one() -> None:
    machine = up(snp=False)
    before = machine.snapshot()
    both = buffers.PdhCertExport(OUT, 0x824, OUT, 3 * 0x824).pack()
    assert returning(machine, LegacyCommand.PDH_CERT_EXPORT, both)[0] == Status.SUCCESS
    apart = up(snp=False)
    separate = buffers.PdhCertExport(OUT, 0x824, OUT + 8 * PAGE, 3 * 0x824).pack()
    assert returning(apart, LegacyCommand.PDH_CERT_EXPORT, separate)[0] == Status.SUCCESS
    assert machine.bus.read(OUT, 3 * 0x824) == apart.bus.read(OUT + 8 * PAGE, 3 * 0x824)
    assert changed_pages(machine, before) <= {COMMAND_PAGE, OUT, OUT + PAGE}


@pytest.mark.parametrize("header", [OUT, GUEST_PAGE], ids=["on the packet", "on the guest's memory"])
def test_a_packet_s_parts_may_meet_and_the_guest_goes_on(header: int) -> None:
    machine = up(snp=False)
    handle = sev_guest(machine, LegacyGuestState.RUNNING)
    machine.psp.legacy.guests[handle].policy = LegacyPolicy(0)
    lay_chain(machine, exported(machine))
    start = buffers.SendStart(
        handle, 0, TARGET_PDH, 0x824, TARGET_CHAIN, 3 * 0x824, session_address=OUT + 2 * PAGE, session_length=0x80
    )
    assert returning(machine, LegacyCommand.SEND_START, start.pack())[0] == Status.SUCCESS
    before = machine.snapshot()
    packet = buffers.SendUpdate(handle, header, 0x34, GUEST_PAGE, 64, OUT, 64).pack()
    assert returning(machine, LegacyCommand.SEND_UPDATE_DATA, packet)[0] == Status.SUCCESS
    assert changed_pages(machine, before) <= {COMMAND_PAGE, OUT, header}
    assert machine.psp.legacy.guests[handle].state is LegacyGuestState.SUPDATE
