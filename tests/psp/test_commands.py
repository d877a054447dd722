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
    """The commands that LIMITATIONS.md names; NAME_* stands for all that begin so."""
    text = " ".join((PROJECT / "LIMITATIONS.md").read_text("utf-8").split())
    names = text.partition("These commands answer UNSUPPORTED, each in every state: of the SNP interface ")[2]
    names = names.partition(". ")[0]
    return {one for pattern in re.split(r", | and ", names) for one in named(SnpCommand, pattern)}


def named(kind: type[LegacyCommand | SnpCommand], pattern: str) -> list[int]:
    found = [one for one in kind if fnmatch.fnmatchcase(one.name, pattern)]
    assert found, f"LIMITATIONS.md: {pattern} is no command"
    return found


def test_the_commands_that_are_not_built_are_those_that_limitations_names() -> None:
    assert listed_as_unsupported() == {command for command, row in COMMANDS.items() if not row.supported}


LEGACY_NUMBERS = """
01 INIT, 02 SHUTDOWN, 03 PLATFORM_RESET, 04 PLATFORM_STATUS, 05 PEK_GEN, 06 PEK_CSR, 07 PEK_CERT_IMPORT,
08 PDH_CERT_EXPORT, 09 PDH_GEN, 0A DF_FLUSH, 0B DOWNLOAD_FIRMWARE, 0C GET_ID, 0D INIT_EX, 0E NOP, 0F RING_BUFFER,
20 DECOMMISSION, 21 ACTIVATE, 22 DEACTIVATE, 23 GUEST_STATUS, 24 COPY, 25 ACTIVATE_EX, 30 LAUNCH_START,
31 LAUNCH_UPDATE_DATA, 32 LAUNCH_UPDATE_VMSA, 33 LAUNCH_MEASURE, 34 LAUNCH_SECRET, 35 LAUNCH_FINISH, 36 ATTESTATION,
40 SEND_START, 41 SEND_UPDATE_DATA, 42 SEND_UPDATE_VMSA, 43 SEND_FINISH, 44 SEND_CANCEL, 50 RECEIVE_START,
51 RECEIVE_UPDATE_DATA, 52 RECEIVE_UPDATE_VMSA, 53 RECEIVE_FINISH, 60 DBG_DECRYPT, 61 DBG_ENCRYPT, 70 SWAP_OUT,
71 SWAP_IN
"""
SNP_NUMBERS = """
81 INIT, 82 SHUTDOWN, 83 PLATFORM_STATUS, 84 DF_FLUSH, 85 INIT_EX, 86 SHUTDOWN_EX, 90 DECOMMISSION, 91 ACTIVATE,
92 GUEST_STATUS, 93 GCTX_CREATE, 94 GUEST_REQUEST, 95 ACTIVATE_EX, A0 LAUNCH_START, A1 LAUNCH_UPDATE,
A2 LAUNCH_FINISH, B0 DBG_DECRYPT, B1 DBG_ENCRYPT, B2 VERIFY_MITIGATION, C0 PAGE_SWAP_OUT, C1 PAGE_SWAP_IN,
C2 PAGE_MOVE, C3 PAGE_MD_INIT, C6 PAGE_SET_STATE, C7 PAGE_RECLAIM, C8 PAGE_UNSMASH, C9 CONFIG,
CA DOWNLOAD_FIRMWARE_EX, CB COMMIT, CD VLEK_LOAD, CE FEATURE_INFO, D0 TIO_STATUS, D1 TIO_INIT, D2 TIO_DEV_CREATE,
D3 TIO_DEV_RECLAIM, D4 TIO_DEV_CONNECT, D5 TIO_DEV_DISCONNECT, D6 TIO_DEV_STATUS, D7 TIO_DEV_MEASUREMENTS,
D8 TIO_DEV_CERTIFICATES, DA TIO_TDI_CREATE, DB TIO_TDI_RECLAIM, DC TIO_TDI_BIND, DD TIO_TDI_UNBIND, DE TIO_TDI_REPORT,
DF TIO_TDI_STATUS, E0 TIO_GUEST_REQUEST, E1 TIO_ASID_FENCE_CLEAR, E2 TIO_ASID_FENCE_STATUS, E3 TIO_TDI_INFO,
E4 TIO_ROLL_KEY
"""
"""Firmware ABI sheet, sections 3 and 4; SEV-TIO sheet, section 3."""


def numbers(text: str) -> dict[str, int]:
    return {name: int(number, 16) for number, name in (one.split() for one in text.split(","))}


@pytest.mark.parametrize(("kind", "text"), [(LegacyCommand, LEGACY_NUMBERS), (SnpCommand, SNP_NUMBERS)])
def test_every_command_of_the_firmware_abi_is_done_or_listed_as_missing(
    kind: type[LegacyCommand | SnpCommand], text: str
) -> None:
    assert {one.name: int(one) for one in kind} == numbers(text)
    psp = new_machine().psp
    handlers = {LegacyCommand: psp.legacy.handlers, SnpCommand: psp.snp.handlers}[kind]
    done, missing = set(handlers), listed_as_unsupported() & set(kind)
    assert done | missing == set(kind)
    assert not done & missing


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
