"""SNP_INIT is SNP_INIT_EX without a buffer; both leave a fresh RMP and ASIDs that wait for a flush."""

from __future__ import annotations

import dataclasses

import pytest
from toy_machine import Machine, new_machine

from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand, SnpPlatformState
from psp.status import Status
from psp.system_bus import RmpEntry

OUT = 0x30_0000
INITS = [
    (SnpCommand.INIT, b""),
    (SnpCommand.INIT_EX, buffers.SnpInitEx(flags=buffers.SNP_INIT_RMP).pack()),
]


@pytest.mark.parametrize(("command", "buffer"), INITS)
def test_initialisation_clears_the_rmp_and_brings_the_platform_up(command: int, buffer: bytes) -> None:
    machine = new_machine()
    machine.bus.rmp_set(OUT, RmpEntry(assigned=True, gpa=0x5000, asid=3))
    assert machine.call(command, buffer) == Status.SUCCESS
    assert machine.bus.rmp_entry(OUT) == RmpEntry()
    assert machine.psp.snp.state is SnpPlatformState.INIT
    assert machine.call(SnpCommand.DF_FLUSH) == Status.WBINVD_REQUIRED
    assert machine.call(command, buffer) == Status.INVALID_PLATFORM_STATE


@pytest.mark.parametrize(("command", "buffer"), INITS)
@pytest.mark.parametrize("wrong", ["snp_enabled", "mtrr_fix_dram_mod_enabled", "hsave_pa_zero"])
def test_initialisation_demands_every_setting_of_the_cores(command: int, buffer: bytes, wrong: str) -> None:
    machine = new_machine()
    machine.bus.cores = dataclasses.replace(machine.bus.cores, **{wrong: False})
    machine.bus.rmp_set(OUT, RmpEntry(assigned=True, gpa=0x5000, asid=3))
    assert machine.call(command, buffer) == Status.INVALID_CONFIG
    assert machine.bus.rmp_entry(OUT).asid == 3


@pytest.mark.parametrize("flags", [0, buffers.SNP_INIT_RMP, 1 << 1, 1 << 31])
def test_legacy_firmware_that_is_up_comes_before_every_other_reason(flags: int) -> None:
    machine = new_machine()
    assert machine.call(LegacyCommand.INIT, buffers.Init().pack()) == Status.SUCCESS
    assert machine.call(SnpCommand.INIT_EX, buffers.SnpInitEx(flags=flags).pack()) == Status.INVALID_PLATFORM_STATE
    assert machine.call(SnpCommand.INIT) == Status.INVALID_PLATFORM_STATE


def shut_down(machine: Machine) -> None:
    assert machine.call(SnpCommand.SHUTDOWN_EX, buffers.SnpShutdownEx(length=8).pack()) == Status.SUCCESS


def test_a_second_initialisation_may_keep_the_rmp() -> None:
    machine = new_machine()
    assert machine.call(SnpCommand.INIT) == Status.SUCCESS
    shut_down(machine)
    machine.bus.rmp_set(OUT, RmpEntry(assigned=True, gpa=0x5000, asid=3))
    assert machine.call(SnpCommand.INIT_EX, buffers.SnpInitEx().pack()) == Status.SUCCESS
    assert machine.bus.rmp_entry(OUT).asid == 3


def test_shutdown_gives_back_contexts_and_leaves_other_firmware_pages() -> None:
    machine = new_machine()
    assert machine.call(SnpCommand.INIT) == Status.SUCCESS
    firmware = RmpEntry(assigned=True, immutable=True)
    machine.bus.rmp_set(OUT, firmware)
    machine.bus.rmp_set(OUT + 4096, firmware)
    assert machine.call(SnpCommand.GCTX_CREATE, buffers.GuestContextPage(OUT).pack()) == Status.SUCCESS
    shut_down(machine)
    assert machine.bus.rmp_entry(OUT) == RmpEntry(assigned=True)
    assert machine.bus.rmp_entry(OUT + 4096) == firmware
