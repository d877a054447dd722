"""Every number that can be rung has its answer, and addresses are checked."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest
from toy_machine import (
    COMMAND_PAGE,
    new_machine,
    sev_guest,
    up,
)

from psp import command_buffers as buffers
from psp.commands import COMMANDS, LegacyCommand, LegacyPlatformState, SnpCommand, SnpPlatformState, is_snp
from psp.status import Status

PROJECT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", sorted(command for command, row in COMMANDS.items() if not row.supported))
def test_a_command_that_is_not_built_answers_unsupported_in_every_state(command: int) -> None:
    for machine in (new_machine(), up()):
        before = machine.snapshot()
        assert machine.psp.submit(command, COMMAND_PAGE) == Status.UNSUPPORTED
        assert machine.snapshot() == before


@pytest.mark.parametrize("command", [0x00, 0x10, 0x37, 0x80, 0x96, 0xC4, 0xC5, 0xCC, 0x7FFF])
def test_a_number_that_is_no_command_is_invalid(command: int) -> None:
    assert up().psp.submit(command, COMMAND_PAGE) == Status.INVALID_COMMAND


def listed_as_unsupported() -> set[int]:
    """The commands that LIMITATIONS.md names; NAME_* stands for all that begin so, "all of TIO" for TIO_*."""
    text = " ".join((PROJECT / "LIMITATIONS.md").read_text("utf-8").split())
    text = text.partition("These commands answer UNSUPPORTED, each in every state: of the legacy interface ")[2]
    legacy, _, rest = text.partition("; of the SNP interface ")
    snp = rest.partition(". ")[0].replace("all of TIO", "TIO_*")
    return {
        one
        for kind, names in ((LegacyCommand, legacy), (SnpCommand, snp))
        for pattern in re.split(r", | and ", names)
        for one in named(kind, pattern)
    }


def named(kind: type[LegacyCommand | SnpCommand], pattern: str) -> list[int]:
    found = [one for one in kind if fnmatch.fnmatchcase(one.name, pattern)]
    assert found, f"LIMITATIONS.md: {pattern} is no command"
    return found


def test_the_commands_that_are_not_built_are_those_that_limitations_names() -> None:
    assert listed_as_unsupported() == {command for command, row in COMMANDS.items() if not row.supported}


def test_every_command_of_both_interfaces_is_in_the_table() -> None:
    assert set(COMMANDS) == {*LegacyCommand, *SnpCommand}


@pytest.mark.parametrize("command", sorted(command for command, row in COMMANDS.items() if row.supported))
def test_a_command_in_a_platform_state_that_forbids_it_is_refused(command: int) -> None:
    row = COMMANDS[command]
    situations = (
        [(SnpPlatformState.UNINIT, new_machine()), (SnpPlatformState.INIT, up())]
        if is_snp(command)
        else [(LegacyPlatformState.UNINIT, new_machine()), (LegacyPlatformState.INIT, up())]
    )
    if not is_snp(command):
        working = up()
        sev_guest(working)
        situations.append((LegacyPlatformState.WORKING, working))
    for state, machine in situations:
        if state in row.states:
            continue
        buffer = b"" if row.layout is None else bytes(row.layout.SIZE)
        machine.bus.write(COMMAND_PAGE, buffer)
        before = machine.snapshot()
        assert machine.psp.submit(command, COMMAND_PAGE) == Status.INVALID_PLATFORM_STATE
        assert machine.snapshot() == before


def test_the_mailbox_registers_carry_command_address_and_status() -> None:
    machine = new_machine()
    mailbox = machine.psp.mailbox
    mailbox.write_address(0x2000, 0)
    mailbox.write_response(LegacyCommand.PLATFORM_STATUS << 16)
    assert mailbox.response == 1 << 31 | Status.SUCCESS
    status = buffers.PlatformStatus.parse(machine.bus.read(0x2000, buffers.PlatformStatus.SIZE))
    assert (status.api_major, status.api_minor, status.state) == (1, 55, 0)
    mailbox.write_response(0x00 << 16)
    assert mailbox.response == 1 << 31 | Status.INVALID_COMMAND


def test_a_buffer_outside_of_memory_is_an_invalid_address() -> None:
    machine = up()
    for spa in (machine.bus.dram_bytes, machine.bus.dram_bytes - 4, 1 << 60):
        assert machine.psp.submit(SnpCommand.ACTIVATE, spa) == Status.INVALID_ADDRESS
