"""Page states against the table of the RMP (APM volume 2, 15.36; firmware ABI, section 5.4)."""

from __future__ import annotations

import itertools

import pytest
from owner import TARGET_CHAIN, TARGET_PDH, Owner, exported, lay_chain
from toy_machine import (
    COMMAND_PAGE,
    FIRMWARE,
    GCTX,
    GUEST_PAGE,
    OUT,
    PAGE,
    UNCOVERED,
    Machine,
    returning,
    sev_guest,
    snp_guest,
    up,
)

from psp import command_buffers as buffers
from psp.byte_layout import ByteLayout
from psp.commands import COMMANDS, LegacyCommand, SnpCommand
from psp.legacy_guest import LegacyGuestState
from psp.page_state import PageState, page_state
from psp.policy import LegacyPolicy
from psp.status import Status
from psp.system_bus import RmpEntry

ENTRIES = {
    PageState.HYPERVISOR: RmpEntry(),
    PageState.HV_FIXED: RmpEntry(immutable=True),
    PageState.FIRMWARE: FIRMWARE,
    PageState.RECLAIM: RmpEntry(assigned=True),
    PageState.CONTEXT: RmpEntry(assigned=True, immutable=True, vmsa=True),
    PageState.METADATA: RmpEntry(assigned=True, immutable=True, gpa=0x1000),
    PageState.PRE_GUEST: RmpEntry(assigned=True, immutable=True, asid=1),
    PageState.PRE_SWAP: RmpEntry(assigned=True, immutable=True, asid=1, validated=True),
    PageState.GUEST_INVALID: RmpEntry(assigned=True, asid=1),
    PageState.GUEST_VALID: RmpEntry(assigned=True, asid=1, validated=True),
    PageState.INVALID: RmpEntry(validated=True),
}
RECLAIMED = {
    PageState.FIRMWARE: PageState.RECLAIM,
    PageState.METADATA: PageState.RECLAIM,
    PageState.PRE_GUEST: PageState.GUEST_INVALID,
    PageState.PRE_SWAP: PageState.GUEST_VALID,
}


@pytest.mark.parametrize("state", PageState)
def test_every_row_of_the_table_is_told_apart(state: PageState) -> None:
    assert page_state(ENTRIES[state]) is state


def test_the_gpa_tells_metadata_from_context_whatever_the_vmsa_bit() -> None:
    assert page_state(RmpEntry(assigned=True, immutable=True, gpa=0x1000, vmsa=True)) is PageState.METADATA


def test_every_entry_has_a_state_and_only_damaged_ones_are_invalid() -> None:
    bits = [False, True]
    for assigned, validated, immutable, vmsa in itertools.product(bits, repeat=4):
        for asid, gpa in itertools.product((0, 1), (0, 0x1000)):
            entry = RmpEntry(
                assigned=assigned, validated=validated, immutable=immutable, vmsa=vmsa, asid=asid, gpa=gpa
            )  # fmt: skip
            never = (not assigned and (validated or asid > 0)) or (validated and asid == 0)
            assert (page_state(entry) is PageState.INVALID) == never


@pytest.mark.parametrize("state", PageState)
def test_reclaim_clears_immutable_of_what_may_be_reclaimed_and_refuses_the_rest(state: PageState) -> None:
    machine = up()
    machine.bus.rmp_set(OUT, ENTRIES[state])
    machine.bus.write(COMMAND_PAGE, buffers.SnpPageReclaim(OUT).pack())
    before = machine.snapshot()
    status = machine.psp.submit(SnpCommand.PAGE_RECLAIM, COMMAND_PAGE)
    if state in RECLAIMED:
        assert status == Status.SUCCESS
        assert page_state(machine.bus.rmp_entry(OUT)) is RECLAIMED[state]
    else:
        assert status == Status.INVALID_PAGE_STATE
        assert machine.snapshot() == before


@pytest.mark.parametrize(
    ("entry", "address", "status"),
    [
        (FIRMWARE, OUT | 1, Status.INVALID_PAGE_SIZE),
        (RmpEntry(assigned=True, immutable=True, large=True), OUT, Status.INVALID_PAGE_SIZE),
        (RmpEntry(assigned=True, immutable=True, large=True), OUT | 0x1000, Status.INVALID_PAGE_SIZE),
        (RmpEntry(assigned=True, immutable=True, large=True), OUT | 0x1001, Status.INVALID_ADDRESS),
        (FIRMWARE, OUT | 2, Status.INVALID_ADDRESS),
        (FIRMWARE, UNCOVERED, Status.INVALID_ADDRESS),
        (FIRMWARE, 1 << 52, Status.INVALID_ADDRESS),
        (RmpEntry(assigned=True, immutable=True, large=True), OUT | 1, Status.SUCCESS),
    ],
)
def test_reclaim_wants_the_entry_s_own_size_and_address(entry: RmpEntry, address: int, status: Status) -> None:
    machine = up()
    machine.bus.rmp_set(OUT, entry)
    machine.bus.write(COMMAND_PAGE, buffers.SnpPageReclaim(address).pack())
    before = machine.snapshot()
    assert machine.psp.submit(SnpCommand.PAGE_RECLAIM, COMMAND_PAGE) == status
    assert (machine.snapshot() == before) == (status != Status.SUCCESS)


@pytest.mark.parametrize("state", PageState)
def test_a_context_is_made_of_a_firmware_page_and_of_no_other(state: PageState) -> None:
    machine = up()
    machine.bus.rmp_set(GCTX, ENTRIES[state])
    machine.bus.write(COMMAND_PAGE, buffers.GuestContextPage(GCTX).pack())
    before = machine.snapshot()
    status = machine.psp.submit(SnpCommand.GCTX_CREATE, COMMAND_PAGE)
    assert status == (Status.SUCCESS if state is PageState.FIRMWARE else Status.INVALID_PAGE_STATE)
    assert (machine.snapshot() == before) == (status != Status.SUCCESS)


RETURNING = sorted(command for command, row in COMMANDS.items() if row.writes_buffer)
SEND_UPDATES = {LegacyCommand.SEND_UPDATE_DATA, LegacyCommand.SEND_UPDATE_VMSA}
WITHOUT_GUEST = {LegacyCommand.PEK_CSR}
"""Commands that may come in INIT only."""


def returned_fields(machine: Machine, command: int) -> bytes:
    """The buffer of a command that returns fields in it, and a machine in which it will succeed."""
    later = {LegacyCommand.ATTESTATION, LegacyCommand.SEND_START, *SEND_UPDATES}
    state = LegacyGuestState.RUNNING if command in later else LegacyGuestState.LUPDATE
    handle = 0 if command in WITHOUT_GUEST else sev_guest(machine, state)
    if command in SEND_UPDATES:
        machine.psp.legacy.guests[handle].state = LegacyGuestState.SUPDATE
        machine.psp.legacy.guests[handle].policy = LegacyPolicy.ES
        machine.bus.seal_save_area(GUEST_PAGE, machine.psp.legacy.guests[handle].asid)
    if command == LegacyCommand.SEND_START:
        lay_chain(machine, exported(machine))
    received = Owner(machine).start() if command == LegacyCommand.RECEIVE_START else buffers.LaunchStart()
    for spa in range(OUT, OUT + 3 * PAGE, PAGE):
        machine.bus.rmp_set(spa, FIRMWARE)
    buffers_of: dict[int, ByteLayout] = {
        LegacyCommand.PLATFORM_STATUS: buffers.PlatformStatus(),
        LegacyCommand.GUEST_STATUS: buffers.GuestStatus(handle),
        LegacyCommand.LAUNCH_START: buffers.LaunchStart(policy=1),
        LegacyCommand.LAUNCH_MEASURE: buffers.LaunchMeasure(handle, OUT, 48),
        LegacyCommand.ATTESTATION: buffers.Attestation(handle, OUT, bytes(16), 0xD0),
        LegacyCommand.SEND_START: buffers.SendStart(
            handle, 0, TARGET_PDH, 0x824, TARGET_CHAIN, 3 * 0x824, session_address=OUT, session_length=0x80
        ),
        LegacyCommand.SEND_UPDATE_DATA: buffers.SendUpdate(handle, OUT, 0x34, GUEST_PAGE, 64, OUT + PAGE, 64),
        LegacyCommand.SEND_UPDATE_VMSA: buffers.SendUpdate(handle, OUT, 0x34, GUEST_PAGE, PAGE, OUT + PAGE, PAGE),
        LegacyCommand.RECEIVE_START: received,
        LegacyCommand.PEK_CSR: buffers.Output(OUT, 0x824),
        LegacyCommand.GET_ID: buffers.Output(OUT, 128),
        LegacyCommand.PDH_CERT_EXPORT: buffers.PdhCertExport(OUT, 0x824, OUT + PAGE, 3 * 0x824),
    }
    return buffers_of[command].pack()


@pytest.mark.parametrize("state", [state for state in PageState if state is not PageState.FIRMWARE])
@pytest.mark.parametrize("command", RETURNING)
def test_after_snp_init_a_returning_buffer_must_be_firmware_s(command: int, state: PageState) -> None:
    machine = up()
    buffer = returned_fields(machine, command)
    machine.bus.write(COMMAND_PAGE, buffer)
    machine.bus.rmp_set(COMMAND_PAGE, ENTRIES[state])
    before = machine.snapshot()
    assert machine.psp.submit(command, COMMAND_PAGE) == Status.INVALID_PAGE_STATE
    assert machine.snapshot() == before
    assert returning(machine, command, buffer)[0] == Status.SUCCESS


@pytest.mark.parametrize("command", RETURNING)
def test_before_snp_init_any_memory_will_do(command: int) -> None:
    machine = up(snp=False)
    assert machine.call(command, returned_fields(machine, command), UNCOVERED) == Status.SUCCESS


def output_pages(machine: Machine, command: int, spa: int) -> dict[int, bytes]:
    """Commands that write to an address in their buffer; the guest is one that any of them may be for."""
    handle = 0
    if command not in WITHOUT_GUEST:
        handle = sev_guest(machine, LegacyGuestState.RUNNING if command in IN_RUNNING else LegacyGuestState.LUPDATE)
        machine.bus.rmp.pop(OUT // PAGE, None)
        machine.psp.legacy.guests[handle].policy = LegacyPolicy.ES
    for page in (GUEST_PAGE, GUEST_PAGE + PAGE):
        machine.bus.rmp_set(page, FIRMWARE)
    return {
        SnpCommand.PLATFORM_STATUS: buffers.SnpAddress(spa).pack(),
        SnpCommand.FEATURE_INFO: buffers.SnpFeatureInfo(0x10, 0, spa).pack(),
        SnpCommand.GUEST_STATUS: buffers.SnpGuestStatus(GCTX, spa).pack(),
        LegacyCommand.LAUNCH_MEASURE: buffers.LaunchMeasure(handle, spa, 48).pack(),
        LegacyCommand.ATTESTATION: buffers.Attestation(handle, spa, bytes(16), 0xD0).pack(),
        LegacyCommand.PEK_CSR: buffers.Output(spa, 0x824).pack(),
        LegacyCommand.GET_ID: buffers.Output(spa, 64).pack(),
        LegacyCommand.PDH_CERT_EXPORT: buffers.PdhCertExport(spa, 0x824, GUEST_PAGE, 3 * 0x824).pack(),
        LegacyCommand.LAUNCH_UPDATE_VMSA: buffers.LaunchUpdateVmsa(handle, spa, PAGE).pack(),
        LegacyCommand.DBG_DECRYPT: buffers.Debug(handle, OUT, spa, 32).pack(),
        LegacyCommand.DBG_ENCRYPT: buffers.Debug(handle, OUT, spa, 32).pack(),
    }


WRITING = [
    SnpCommand.PLATFORM_STATUS, SnpCommand.FEATURE_INFO, SnpCommand.GUEST_STATUS, LegacyCommand.LAUNCH_MEASURE,
    LegacyCommand.ATTESTATION, LegacyCommand.PEK_CSR, LegacyCommand.GET_ID, LegacyCommand.PDH_CERT_EXPORT,
    LegacyCommand.LAUNCH_UPDATE_VMSA, LegacyCommand.DBG_DECRYPT, LegacyCommand.DBG_ENCRYPT,
]  # fmt: skip
DEBUG = {LegacyCommand.DBG_DECRYPT, LegacyCommand.DBG_ENCRYPT}
IN_RUNNING = {LegacyCommand.ATTESTATION, *DEBUG}


@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize("where", ["wrong state", "half outside", "no entry", "no memory"])
def test_after_snp_init_output_goes_only_to_firmware_pages(command: int, where: str) -> None:
    machine = snp_guest(up())
    spa = {"wrong state": OUT, "half outside": OUT + 0xFF8, "no entry": UNCOVERED, "no memory": 1 << 60}[where]
    machine.bus.write(COMMAND_PAGE, output_pages(machine, command, spa)[command])
    if where == "half outside":
        machine.bus.rmp_set(OUT, FIRMWARE)
    machine.bus.rmp_set(COMMAND_PAGE, FIRMWARE)
    before = machine.snapshot()
    unaligned = where == "half outside" and command in {LegacyCommand.LAUNCH_UPDATE_VMSA, *DEBUG}
    expected = Status.INVALID_ADDRESS if where == "no memory" or unaligned else Status.INVALID_PAGE_STATE
    assert machine.psp.submit(command, COMMAND_PAGE) == expected
    assert machine.snapshot() == before


@pytest.mark.parametrize("state", PageState)
def test_after_snp_init_a_sev_guest_is_launched_only_in_pages_lent_to_firmware(state: PageState) -> None:
    machine = up()
    handle = sev_guest(machine)
    machine.bus.rmp_set(OUT - 4096, ENTRIES[PageState.FIRMWARE])
    machine.bus.rmp_set(OUT, ENTRIES[state])
    update = buffers.LaunchUpdateData(handle, OUT - 16, 32).pack()
    machine.bus.write(COMMAND_PAGE, update)
    before = machine.snapshot()
    status = machine.psp.submit(LegacyCommand.LAUNCH_UPDATE_DATA, COMMAND_PAGE)
    assert status == (Status.SUCCESS if state is PageState.FIRMWARE else Status.INVALID_PAGE_STATE)
    assert (machine.snapshot() == before) == (status != Status.SUCCESS)


def test_memory_outside_the_rmp_can_never_be_lent_to_firmware() -> None:
    machine = up()
    handle = sev_guest(machine)
    update = buffers.LaunchUpdateData(handle, UNCOVERED, 4096).pack()
    assert machine.call(LegacyCommand.LAUNCH_UPDATE_DATA, update) == Status.INVALID_PAGE_STATE
