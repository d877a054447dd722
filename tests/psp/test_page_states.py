"""Page states against the table of the RMP (APM volume 2, 15.36; firmware ABI, section 5.4)."""

from __future__ import annotations

import itertools

import pytest
from toy_machine import COMMAND_PAGE, FIRMWARE, GCTX, OUT, UNCOVERED, Machine, returning, sev_guest, snp_guest, up

from psp import command_buffers as buffers
from psp.commands import COMMANDS, LegacyCommand, SnpCommand
from psp.page_state import PageState, page_state
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


def returned_fields(machine: Machine) -> dict[int, bytes]:
    """Commands that return fields in their own buffer."""
    handle = sev_guest(machine)
    machine.bus.rmp_set(OUT, FIRMWARE)
    return {
        LegacyCommand.PLATFORM_STATUS: buffers.PlatformStatus().pack(),
        LegacyCommand.GUEST_STATUS: buffers.GuestStatus(handle).pack(),
        LegacyCommand.LAUNCH_START: buffers.LaunchStart(policy=1).pack(),
        LegacyCommand.LAUNCH_MEASURE: buffers.LaunchMeasure(handle, OUT, 48).pack(),
    }


def test_the_commands_that_return_fields_are_known() -> None:
    assert set(returned_fields(up())) == {command for command, row in COMMANDS.items() if row.writes_buffer}


@pytest.mark.parametrize("state", [state for state in PageState if state is not PageState.FIRMWARE])
@pytest.mark.parametrize("command", sorted(command for command, row in COMMANDS.items() if row.writes_buffer))
def test_after_snp_init_a_returning_buffer_must_be_firmware_s(command: int, state: PageState) -> None:
    machine = up()
    buffer = returned_fields(machine)[command]
    machine.bus.write(COMMAND_PAGE, buffer)
    machine.bus.rmp_set(COMMAND_PAGE, ENTRIES[state])
    before = machine.snapshot()
    assert machine.psp.submit(command, COMMAND_PAGE) == Status.INVALID_PAGE_STATE
    assert machine.snapshot() == before
    assert returning(machine, command, buffer)[0] == Status.SUCCESS


@pytest.mark.parametrize("command", sorted(command for command, row in COMMANDS.items() if row.writes_buffer))
def test_before_snp_init_any_memory_will_do(command: int) -> None:
    machine = up(snp=False)
    assert machine.call(command, returned_fields(machine)[command], UNCOVERED) == Status.SUCCESS


def output_pages(machine: Machine, spa: int) -> dict[int, bytes]:
    """Commands that write to an address in their buffer."""
    return {
        SnpCommand.PLATFORM_STATUS: buffers.SnpAddress(spa).pack(),
        SnpCommand.FEATURE_INFO: buffers.SnpFeatureInfo(0x10, 0, spa).pack(),
        SnpCommand.GUEST_STATUS: buffers.SnpGuestStatus(GCTX, spa).pack(),
        LegacyCommand.LAUNCH_MEASURE: buffers.LaunchMeasure(sev_guest(machine), spa, 48).pack(),
    }


@pytest.mark.parametrize(
    "command",
    [SnpCommand.PLATFORM_STATUS, SnpCommand.FEATURE_INFO, SnpCommand.GUEST_STATUS, LegacyCommand.LAUNCH_MEASURE],
)
@pytest.mark.parametrize("where", ["wrong state", "half outside", "no entry", "no memory"])
def test_after_snp_init_output_goes_only_to_firmware_pages(command: int, where: str) -> None:
    machine = snp_guest(up())
    spa = {"wrong state": OUT, "half outside": OUT + 0xFF8, "no entry": UNCOVERED, "no memory": 1 << 60}[where]
    if where == "half outside":
        machine.bus.rmp_set(OUT, FIRMWARE)
    machine.bus.write(COMMAND_PAGE, output_pages(machine, spa)[command])
    machine.bus.rmp_set(COMMAND_PAGE, FIRMWARE)
    before = machine.snapshot()
    expected = Status.INVALID_ADDRESS if where == "no memory" else Status.INVALID_PAGE_STATE
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
