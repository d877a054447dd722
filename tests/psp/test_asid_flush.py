"""An ASID comes back only after WBINVD on all cores and a flush of the data fabric, by either interface."""

from __future__ import annotations

import pytest
from toy_machine import Machine, new_machine

from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.status import Status
from psp.system_bus import RmpEntry

COMMAND_PAGE, GCTX = 0x1000, 0x10_0000
SEV_ASID, SNP_ASID = 6, 2
FIRMWARE = RmpEntry(assigned=True, immutable=True)


def machine_with_both() -> Machine:
    machine = new_machine()
    assert machine.call(SnpCommand.INIT_EX, buffers.SnpInitEx(flags=buffers.SNP_INIT_RMP).pack()) == Status.SUCCESS
    machine.flush(SnpCommand.DF_FLUSH)
    assert machine.call(LegacyCommand.INIT, buffers.Init().pack()) == Status.SUCCESS
    machine.flush(LegacyCommand.DF_FLUSH)
    return machine


def sev_guest(machine: Machine) -> int:
    machine.bus.rmp_set(COMMAND_PAGE, FIRMWARE)
    assert machine.call(LegacyCommand.LAUNCH_START, buffers.LaunchStart(policy=1).pack()) == Status.SUCCESS
    machine.bus.rmp_set(COMMAND_PAGE, RmpEntry())
    return buffers.LaunchStart.parse(machine.bus.read(COMMAND_PAGE, buffers.LaunchStart.SIZE)).handle


def snp_guest(machine: Machine) -> None:
    machine.bus.rmp_set(GCTX, FIRMWARE)
    assert machine.call(SnpCommand.GCTX_CREATE, buffers.GuestContextPage(GCTX).pack()) == Status.SUCCESS
    assert machine.call(SnpCommand.LAUNCH_START, buffers.SnpLaunchStart(GCTX, 0x3_0000).pack()) == Status.SUCCESS


def activate_sev(machine: Machine, handle: int) -> int:
    return machine.call(LegacyCommand.ACTIVATE, buffers.Activate(handle, SEV_ASID).pack())


def activate_snp(machine: Machine) -> int:
    return machine.call(SnpCommand.ACTIVATE, buffers.SnpActivate(GCTX, SNP_ASID).pack())


@pytest.mark.parametrize("flush", [SnpCommand.DF_FLUSH, LegacyCommand.DF_FLUSH])
def test_a_flush_of_either_interface_cleans_the_asids_of_both(flush: int) -> None:
    machine = machine_with_both()
    handle = sev_guest(machine)
    assert activate_sev(machine, handle) == Status.SUCCESS
    snp_guest(machine)
    assert activate_snp(machine) == Status.SUCCESS
    assert machine.call(LegacyCommand.DEACTIVATE, buffers.Handle(handle).pack()) == Status.SUCCESS
    assert machine.call(SnpCommand.DECOMMISSION, buffers.GuestContextPage(GCTX).pack()) == Status.SUCCESS
    snp_guest(machine)
    assert activate_sev(machine, handle) == Status.WBINVD_REQUIRED
    assert activate_snp(machine) == Status.WBINVD_REQUIRED
    machine.flush(flush)
    assert activate_sev(machine, handle) == Status.SUCCESS
    assert activate_snp(machine) == Status.SUCCESS


@pytest.mark.parametrize("flush", [SnpCommand.DF_FLUSH, LegacyCommand.DF_FLUSH])
def test_a_flush_without_a_wbinvd_since_the_last_release_cleans_nothing(flush: int) -> None:
    machine = machine_with_both()
    handle = sev_guest(machine)
    assert activate_sev(machine, handle) == Status.SUCCESS
    assert machine.call(LegacyCommand.DEACTIVATE, buffers.Handle(handle).pack()) == Status.SUCCESS
    assert machine.call(flush) == Status.WBINVD_REQUIRED
    assert activate_sev(machine, handle) == Status.WBINVD_REQUIRED
    machine.bus.wbinvds += 1
    assert activate_sev(machine, handle) == Status.DFFLUSH_REQUIRED
    assert machine.call(flush) == Status.SUCCESS
    assert activate_sev(machine, handle) == Status.SUCCESS


def test_other_asids_stay_usable_while_one_is_dirty() -> None:
    machine = machine_with_both()
    handle = sev_guest(machine)
    assert activate_sev(machine, handle) == Status.SUCCESS
    assert machine.call(LegacyCommand.DEACTIVATE, buffers.Handle(handle).pack()) == Status.SUCCESS
    other = buffers.Activate(handle, SEV_ASID + 1).pack()
    assert machine.call(LegacyCommand.ACTIVATE, other) == Status.SUCCESS


def test_after_initialisation_no_asid_is_usable_before_a_flush() -> None:
    machine = new_machine()
    assert machine.call(LegacyCommand.INIT, buffers.Init().pack()) == Status.SUCCESS
    assert machine.call(LegacyCommand.LAUNCH_START, buffers.LaunchStart(policy=1).pack()) == Status.SUCCESS
    handle = buffers.LaunchStart.parse(machine.bus.read(COMMAND_PAGE, buffers.LaunchStart.SIZE)).handle
    assert activate_sev(machine, handle) == Status.WBINVD_REQUIRED
    machine.flush(LegacyCommand.DF_FLUSH)
    assert activate_sev(machine, handle) == Status.SUCCESS
