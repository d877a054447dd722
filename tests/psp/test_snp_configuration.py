"""SNP_CONFIG, SNP_COMMIT, SNP_VLEK_LOAD and SNP_SHUTDOWN."""

import dataclasses

import pytest
from toy_machine import COMMAND_PAGE, FIRMWARE, OUT, context, new_machine, snp_guest, up

from psp import command_buffers as buffers
from psp.commands import SnpCommand, SnpPlatformState
from psp.installed_firmware import FirmwareLevel, TcbOf, tcb_at_most
from psp.status import Status
from psp.vlek import Hashstick

TCB = 0xD116_0000_0000_0704
"""In the order of Milan: microcode, SNP, reserved, TEE, bootloader."""
BLOB = 0x43_0000
STICK = bytes(range(128)) * 3


OLD = 0x7308_0000_0000_0003


@pytest.fixture
def machine():
    """A host that was switched on with OLD, and runs TCB now, provisionally."""
    made = up()
    firmware = made.psp.firmware
    firmware.current = FirmwareLevel((1, 52, 4), OLD)
    firmware.commit()
    firmware.install(FirmwareLevel((1, 55, 29), TCB))
    return made


def status_page(machine):
    machine.bus.rmp_set(OUT, FIRMWARE)
    assert machine.call(SnpCommand.PLATFORM_STATUS, buffers.SnpAddress(OUT).pack()) == 0
    return buffers.SnpPlatformStatus.parse(machine.bus.read(OUT, 0x20))


def refused(machine, command, buffer):
    machine.bus.write(COMMAND_PAGE, buffer)
    before = machine.snapshot()
    status = machine.psp.submit(command, COMMAND_PAGE)
    assert machine.snapshot() == before
    return status


def commit(machine):
    return machine.call(SnpCommand.COMMIT, buffers.SnpCommit(4).pack())


def test_provisional_firmware_reports_what_is_committed(machine):
    assert machine.psp.firmware.provisional
    assert (status_page(machine).current_tcb, status_page(machine).reported_tcb) == (TCB, OLD)
    assert commit(machine) == 0
    assert not machine.psp.firmware.provisional
    assert (status_page(machine).current_tcb, status_page(machine).reported_tcb) == (TCB, TCB)


def test_no_tcb_is_the_highest_that_may_be_reported(machine):
    for limit, reported in ((TcbOf.COMMITTED, OLD), (TcbOf.CURRENT, TCB)):
        machine.psp.firmware.reported_limit = limit
        assert machine.call(SnpCommand.CONFIG, buffers.SnpConfig(OLD - 1).pack()) == 0
        assert status_page(machine).reported_tcb == OLD - 1
        assert machine.call(SnpCommand.CONFIG, buffers.SnpConfig(0).pack()) == 0
        assert status_page(machine).reported_tcb == reported


@pytest.mark.parametrize(("whose", "tcb"), [(TcbOf.COMMITTED, OLD), (TcbOf.CURRENT, TCB)])
def test_a_guest_keeps_the_tcb_it_was_launched_at(machine, whose, tcb):
    machine.psp.firmware.launched_at = whose
    snp_guest(machine)
    assert context(machine).launch_tcb == tcb
    assert commit(machine) == 0
    assert context(machine).launch_tcb == tcb


def test_what_is_reported_is_at_most_what_is_committed_in_every_component(machine):
    config = buffers.SnpConfig(TCB)
    assert refused(machine, SnpCommand.CONFIG, config.pack()) == Status.INVALID_PARAM
    assert commit(machine) == 0
    assert machine.call(SnpCommand.CONFIG, config.pack()) == 0
    assert (status_page(machine).current_tcb, status_page(machine).reported_tcb) == (TCB, TCB)
    for component in range(8):
        above = (TCB & ~(0xFF << 8 * component)) | ((TCB >> 8 * component & 0xFF) + 1) << 8 * component
        assert refused(machine, SnpCommand.CONFIG, buffers.SnpConfig(above).pack()) == Status.INVALID_PARAM
    lower = TCB - (1 << 56) - 1
    assert machine.call(SnpCommand.CONFIG, buffers.SnpConfig(lower).pack()) == 0
    assert status_page(machine).reported_tcb == lower


def test_components_are_compared_each_by_itself():
    assert tcb_at_most(0x01_00, 0x01_00)
    assert not tcb_at_most(0x00_02, 0x01_00)  # a lower number, and yet above in one component


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
def test_masks_show_in_the_platform_s_status(machine, flags):
    assert machine.call(SnpCommand.CONFIG, buffers.SnpConfig(0, flags).pack()) == 0
    assert status_page(machine).policy_flags & 3 == flags


@pytest.mark.parametrize("config", [buffers.SnpConfig(0, 4), buffers.SnpConfig(0, 0, b"\0\1")])
def test_what_is_not_defined_in_a_configuration_is_refused(machine, config):
    assert refused(machine, SnpCommand.CONFIG, config.pack()) == Status.INVALID_PARAM


@pytest.mark.parametrize("length", [0, 3, 5])
def test_commit_wants_its_own_length(machine, length):
    assert refused(machine, SnpCommand.COMMIT, buffers.SnpCommit(length).pack()) == Status.INVALID_LENGTH


def chip_key(machine):
    return machine.psp.legacy.keys.chip.symmetric_key("sev-vlek-wrapping")


def lay(machine, blob):
    machine.bus.write(BLOB, blob)
    return buffers.SnpVlekLoad(0x10, 0, BLOB)


def test_a_hashstick_wrapped_for_the_chip_is_taken(machine):
    load = lay(machine, Hashstick(STICK, TCB).wrapped(chip_key(machine), b"i" * 12))
    assert STICK[:16] not in machine.bus.read(BLOB, 0x1B0)
    assert not status_page(machine).policy_flags & 4
    assert machine.call(SnpCommand.VLEK_LOAD, load.pack()) == 0
    assert status_page(machine).policy_flags & 4
    assert machine.psp.snp.configuration.vlek == Hashstick(STICK, TCB)


@pytest.mark.parametrize("changed", [True, False])
def test_a_vlek_goes_when_another_tcb_is_reported(machine, changed):
    load = lay(machine, Hashstick(STICK, OLD).wrapped(chip_key(machine), b"i" * 12))
    assert machine.call(SnpCommand.VLEK_LOAD, load.pack()) == 0
    assert machine.call(SnpCommand.CONFIG, buffers.SnpConfig(OLD - changed).pack()) == 0
    assert bool(status_page(machine).policy_flags & 4) != changed


def test_a_vlek_goes_with_a_commit_that_changes_what_is_reported_and_with_no_other(machine):
    load = lay(machine, Hashstick(STICK, OLD).wrapped(chip_key(machine), b"i" * 12)).pack()
    for kept in (False, True):
        assert machine.call(SnpCommand.VLEK_LOAD, load) == 0
        assert commit(machine) == 0
        assert bool(status_page(machine).policy_flags & 4) == kept


@pytest.mark.parametrize("at", [0, 0x10, 0x18F, 0x190, 0x1A0, 0x1AF])
def test_a_damaged_hashstick_is_no_key(machine, at):
    blob = bytearray(Hashstick(STICK, TCB).wrapped(chip_key(machine), b"i" * 12))
    blob[at] ^= 1
    assert refused(machine, SnpCommand.VLEK_LOAD, lay(machine, bytes(blob)).pack()) == Status.INVALID_KEY


def test_a_hashstick_for_another_chip_or_a_tcb_that_is_not_there_is_no_key(machine):
    key = chip_key(machine)
    strangers = Hashstick(STICK, TCB).wrapped(b"k" * 32, b"i" * 12), Hashstick(STICK, TCB + 1).wrapped(key, b"i" * 12)
    for blob in strangers:
        assert refused(machine, SnpCommand.VLEK_LOAD, lay(machine, blob).pack()) == Status.INVALID_KEY


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"length": 0x0F}, Status.INVALID_LENGTH),
        ({"version": 1}, Status.INVALID_PARAM),
        ({"address": 1 << 60}, Status.INVALID_ADDRESS),
    ],
)
def test_bad_fields_of_vlek_load_are_refused(machine, changes, status):
    load = dataclasses.replace(lay(machine, bytes(0x1B0)), **changes)
    assert refused(machine, SnpCommand.VLEK_LOAD, load.pack()) == status


def test_the_older_shutdown_ends_guests_as_the_newer_does():
    machine = snp_guest(up(legacy=False))
    assert machine.call(SnpCommand.SHUTDOWN) == 0
    assert machine.psp.snp.state is SnpPlatformState.UNINIT
    assert machine.bus.keys == {}
    assert new_machine().call(SnpCommand.SHUTDOWN) == Status.INVALID_PLATFORM_STATE
