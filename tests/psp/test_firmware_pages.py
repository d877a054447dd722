"""What firmware itself uses it neither gives away nor lets a command touch (firmware ABI, PAGE_RECLAIM)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_machine import (
    COMMAND_PAGE,
    FIRMWARE,
    GCTX,
    GUEST_PAGE,
    OUT,
    PAGE,
    POLICY,
    RMP_BYTES,
    RMP_SPA,
    Machine,
    change_context,
    new_machine,
    sev_guest,
    snp_guest,
)

from psp import command_buffers as buffers
from psp.byte_layout import ByteLayout
from psp.commands import COMMANDS, LegacyCommand, LegacyPlatformState, SnpCommand, is_snp
from psp.firmware_pages import FirmwarePages
from psp.guest_context import SnpGuestState
from psp.legacy_guest import LegacyGuestState
from psp.policy import LegacyPolicy
from psp.status import Status
from psp.system_bus import LARGE_PAGE_BYTES, IommuBuffer, IommuConfiguration, RmpEntry

LOG, SEMAPHORE, TMR = 0x50_0000, 0x58_0000, 0x80_0000
IDLE = LegacyPlatformState.INIT
"""Of the same number as SNP's."""
SHUT_DOWN_IOMMUS = buffers.SnpShutdownEx(8, buffers.SNP_SHUTDOWN_IOMMU).pack()


def at_work(*, large: bool = True) -> Machine:
    """SNP and SEV-ES up, with an IOMMU that writes a log, and the RMP's pages taken as a board takes them."""
    machine = new_machine()
    logs = (IommuBuffer(LOG, 2 * PAGE, PAGE), IommuBuffer(SEMAPHORE, PAGE, 1))
    machine.bus.iommu = IommuConfiguration(enabled=True, supports_snp=True, buffers=logs)
    assert machine.call(SnpCommand.INIT) == Status.SUCCESS
    machine.bus.rmp_set_pages(RMP_SPA, RMP_BYTES, FIRMWARE)
    machine.flush(SnpCommand.DF_FLUSH)
    if large:
        machine.bus.rmp_set(TMR, RmpEntry(assigned=True, immutable=True, large=True))
    else:
        machine.bus.rmp_set_pages(TMR, LARGE_PAGE_BYTES, FIRMWARE)
    init = buffers.Init(buffers.INIT_ES, TMR, LARGE_PAGE_BYTES)
    assert machine.call(LegacyCommand.INIT, init.pack()) == Status.SUCCESS
    machine.flush(LegacyCommand.DF_FLUSH)
    return machine


def refused(machine: Machine, command: int, buffer: ByteLayout, spa: int = COMMAND_PAGE) -> int:
    """The status of a command that must change nothing."""
    machine.bus.write(spa, buffer.pack())
    before = machine.snapshot()
    status = int(machine.psp.submit(command, spa))
    assert machine.snapshot() == before
    return status


def reclaim(machine: Machine, address: int) -> int:
    return machine.call(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(address).pack())


IN_USE = {
    "first page of the RMP": RMP_SPA,
    "last page of the RMP": RMP_SPA + RMP_BYTES - PAGE,
    "log": LOG,
    "last page of the log": LOG + PAGE,
    "semaphore": SEMAPHORE,
    "trusted region": TMR | 1,
}
NEXT_TO_IT = (OUT, RMP_SPA - PAGE, RMP_SPA + RMP_BYTES, LOG - PAGE, LOG + 2 * PAGE, SEMAPHORE + PAGE, TMR - PAGE)


@pytest.mark.parametrize("page", IN_USE)
def test_what_firmware_uses_is_not_reclaimed(page: str) -> None:
    status = refused(at_work(), SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(IN_USE[page]))
    assert status == Status.INVALID_PAGE_STATE


def test_a_trusted_region_of_small_pages_is_not_reclaimed_either() -> None:
    machine = at_work(large=False)
    for page in (TMR, TMR + (1 << 20) - PAGE):
        assert refused(machine, SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(page)) == Status.INVALID_PAGE_STATE


@pytest.mark.parametrize("page", NEXT_TO_IT)
def test_pages_lent_to_firmware_are_reclaimed_up_to_the_very_neighbours(page: int) -> None:
    machine = at_work()
    machine.bus.rmp_set(page, FIRMWARE)
    assert reclaim(machine, page) == Status.SUCCESS
    assert machine.bus.rmp_entry(page) == RmpEntry(assigned=True)


def test_a_large_page_that_holds_something_in_use_is_not_reclaimed() -> None:
    machine = at_work()
    around = LOG // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES
    machine.bus.rmp_set(around, RmpEntry(assigned=True, immutable=True, large=True))
    status = refused(machine, SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(around | 1))
    assert status == Status.INVALID_PAGE_STATE


@pytest.mark.parametrize("page", [RMP_SPA, LOG, SEMAPHORE])
def test_no_context_is_made_of_what_firmware_uses(page: int) -> None:
    status = refused(at_work(), SnpCommand.GCTX_CREATE, buffers.GuestContextPage(page))
    assert status == Status.INVALID_PAGE_STATE


WITH_BUFFER = sorted(
    command
    for command, row in COMMANDS.items()
    if row.supported and row.layout is not None and not row.states.isdisjoint({IDLE, LegacyPlatformState.WORKING})
)


@pytest.mark.parametrize("page", [RMP_SPA, LOG, SEMAPHORE, TMR])
@pytest.mark.parametrize("command", WITH_BUFFER)
def test_no_command_s_buffer_lies_in_what_firmware_uses(command: int, page: int) -> None:
    machine = at_work()
    if IDLE not in COMMANDS[command].states:
        sev_guest(machine)
    before = machine.snapshot()
    status = machine.psp.submit(command, page + PAGE - 8)
    assert status == (Status.INVALID_PAGE_STATE if is_snp(command) else Status.INVALID_ADDRESS)
    assert machine.snapshot() == before


def outputs(machine: Machine, spa: int) -> dict[int, ByteLayout]:
    """Commands that would write at an address, of guests that allow everything."""
    snp_guest(machine, SnpGuestState.RUNNING)
    change_context(machine, policy=POLICY | 1 << 19)
    machine.bus.rmp_set(GUEST_PAGE, RmpEntry(assigned=True, asid=2, validated=True))
    running, launching = sev_guest(machine, LegacyGuestState.RUNNING), sev_guest(machine, asid=7)
    for handle in (running, launching):
        machine.psp.legacy.guests[handle].policy = LegacyPolicy.ES
    machine.bus.rmp_set(COMMAND_PAGE, FIRMWARE)
    machine.bus.rmp_set(OUT, FIRMWARE)
    return {
        SnpCommand.PLATFORM_STATUS: buffers.SnpAddress(spa),
        SnpCommand.FEATURE_INFO: buffers.SnpFeatureInfo(0x10, 0, spa),
        SnpCommand.GUEST_STATUS: buffers.SnpGuestStatus(GCTX, spa),
        SnpCommand.DBG_DECRYPT: buffers.SnpDebug(GCTX, GUEST_PAGE, spa),
        LegacyCommand.LAUNCH_UPDATE_DATA: buffers.LaunchUpdateData(launching, spa, PAGE),
        LegacyCommand.LAUNCH_UPDATE_VMSA: buffers.LaunchUpdateVmsa(launching, spa, PAGE),
        LegacyCommand.LAUNCH_MEASURE: buffers.LaunchMeasure(launching, spa, 48),
        LegacyCommand.ATTESTATION: buffers.Attestation(running, spa, bytes(16), 0xD0),
        LegacyCommand.DBG_DECRYPT: buffers.Debug(running, OUT, spa, 32),
        LegacyCommand.DBG_ENCRYPT: buffers.Debug(running, OUT, spa, 32),
        LegacyCommand.GET_ID: buffers.Output(spa, 64),
    }


@pytest.mark.parametrize("page", [RMP_SPA, LOG, SEMAPHORE, TMR])
@pytest.mark.parametrize("command", outputs(at_work(), OUT))
def test_no_command_writes_to_what_firmware_uses(command: int, page: int) -> None:
    machine = at_work()
    status = refused(machine, command, outputs(machine, page)[command])
    assert status == (Status.INVALID_PAGE_STATE if is_snp(command) else Status.INVALID_ADDRESS)
    elsewhere = at_work()
    assert elsewhere.call(command, outputs(elsewhere, OUT)[command].pack()) == Status.SUCCESS


def test_a_range_that_only_reaches_the_rmp_is_refused_whole() -> None:
    machine = at_work()
    handle = sev_guest(machine)
    machine.bus.rmp_set(RMP_SPA - PAGE, FIRMWARE)
    update = buffers.LaunchUpdateData(handle, RMP_SPA - PAGE, PAGE + 16)
    assert refused(machine, LegacyCommand.LAUNCH_UPDATE_DATA, update) == Status.INVALID_ADDRESS


@pytest.mark.parametrize("page", [RMP_SPA, LOG])
def test_no_trusted_region_is_laid_over_what_firmware_uses_after_snp_either(page: int) -> None:
    machine = at_work()
    assert machine.call(LegacyCommand.SHUTDOWN) == Status.SUCCESS
    machine.flush(SnpCommand.DF_FLUSH)
    assert machine.call(SnpCommand.SHUTDOWN_EX, buffers.SnpShutdownEx(8).pack()) == Status.SUCCESS
    init = buffers.Init(buffers.INIT_ES, page, 1 << 20)
    assert refused(machine, LegacyCommand.INIT, init) == Status.INVALID_ADDRESS


# What ends the firmware's use.


def ended(machine: Machine, shutdown: bytes) -> None:
    assert machine.call(LegacyCommand.SHUTDOWN) == Status.SUCCESS
    machine.flush(SnpCommand.DF_FLUSH)
    assert machine.call(SnpCommand.SHUTDOWN_EX, shutdown) == Status.SUCCESS


def status_at(machine: Machine, spa: int) -> int:
    return int(machine.psp.submit(LegacyCommand.PLATFORM_STATUS, spa))


def test_the_trusted_region_is_reclaimed_after_shutdown() -> None:
    machine = at_work()
    assert machine.call(LegacyCommand.SHUTDOWN) == Status.SUCCESS
    assert reclaim(machine, TMR | 1) == Status.SUCCESS
    assert machine.bus.rmp_entry(TMR) == RmpEntry(assigned=True, large=True)


def test_logs_are_the_host_s_after_the_iommus_are_shut_down_and_the_rmp_is_not() -> None:
    machine = at_work()
    ended(machine, SHUT_DOWN_IOMMUS)
    for page in (LOG, LOG + PAGE, SEMAPHORE):
        assert machine.bus.rmp_entry(page) == RmpEntry(assigned=True)
        assert status_at(machine, page) == Status.SUCCESS
    assert status_at(machine, RMP_SPA) == Status.INVALID_ADDRESS


def test_logs_stay_firmware_s_while_the_iommus_go_on() -> None:
    machine = at_work()
    ended(machine, buffers.SnpShutdownEx(8).pack())
    assert status_at(machine, LOG) == Status.INVALID_ADDRESS


@given(
    st.sampled_from(["rmp", "iommu_buffers", "trusted_region"]),
    st.tuples(st.integers(0, 40 * PAGE), st.integers(1, 10 * PAGE)),
    st.integers(0, 60 * PAGE),
    st.integers(1, 10 * PAGE),
)
def test_a_range_is_in_use_if_they_share_a_page(name: str, taken: tuple[int, int], spa: int, length: int) -> None:
    def pages_of(start: int, size: int) -> set[int]:
        return {at // PAGE for at in (*range(start, start + size, PAGE), start + size - 1)}

    pages = FirmwarePages()
    assert not pages.in_use(spa, length)
    setattr(pages, name, (taken,))
    assert pages.in_use(spa, length) == bool(pages_of(*taken) & pages_of(spa, length))
