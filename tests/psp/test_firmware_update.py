"""DOWNLOAD_FIRMWARE and SNP_DOWNLOAD_FIRMWARE_EX: what is taken, what is refused, and what it does to guests."""

import dataclasses
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_machine import COMMAND_PAGE, Machine, ToyBus, context, new_machine, returning, sev_guest, snp_guest, up

from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.firmware import SecurityProcessor
from psp.installed_firmware import FirmwareLevel, tcb_at_most
from psp.product_line import PRODUCT_LINES
from psp.sev_firmware_image import LEAST_BYTES, MOST_BYTES, SevFirmware, signed_image
from psp.status import Status
from psp.update_buffers import DownloadFirmware, SnpDownloadFirmwareEx

IMAGE = 0x48_0000
VERSION, SVN = (1, 55, 40), 0x17
"""Of the toy machine, a Genoa."""
NEWER = SevFirmware((1, 55, 50), SVN + 1)


def load_ex(machine, image, flags=0, **changes):
    machine.bus.write(IMAGE, image)
    load = SnpDownloadFirmwareEx(0x18, 0, IMAGE, len(image), flags)
    return answer(machine, SnpCommand.DOWNLOAD_FIRMWARE_EX, dataclasses.replace(load, **changes))


def load(machine, image):
    machine.bus.write(IMAGE, image)
    return answer(machine, LegacyCommand.DOWNLOAD_FIRMWARE, DownloadFirmware(IMAGE, len(image)))


def answer(machine, command, buffer):
    """The status; whatever is refused has changed nothing."""
    machine.bus.write(COMMAND_PAGE, buffer.pack())
    before = machine.snapshot()
    status = machine.psp.submit(command, COMMAND_PAGE)
    assert status == Status.SUCCESS or machine.snapshot() == before
    return status


def snp_only():
    return up(legacy=False)


def genoa(firmware):
    return signed_image("Genoa", firmware)


def test_an_update_is_provisional_until_it_is_committed():
    machine = snp_only()
    firmware = machine.psp.firmware
    before = firmware.current
    assert load_ex(machine, genoa(NEWER)) == Status.SUCCESS
    assert firmware.current == FirmwareLevel((1, 55, 50), before.tcb + (1 << 48))
    assert (firmware.committed, firmware.reported_tcb) == (before, before.tcb)
    assert load_ex(machine, genoa(SevFirmware(VERSION, SVN))) == Status.SUCCESS
    assert firmware.current == before
    assert not firmware.provisional


@pytest.mark.parametrize("at_once", [False, True])
def test_what_is_committed_never_runs_below_again(at_once):
    machine = snp_only()
    assert load_ex(machine, genoa(NEWER), flags=at_once) == Status.SUCCESS
    if not at_once:
        assert machine.call(SnpCommand.COMMIT, buffers.SnpCommit(4).pack()) == Status.SUCCESS
    assert not machine.psp.firmware.provisional
    assert load_ex(machine, genoa(SevFirmware(VERSION, SVN))) == Status.BAD_SVN
    assert load_ex(machine, genoa(SevFirmware((1, 55, 49), SVN + 1))) == Status.BAD_VERSION
    assert load_ex(machine, genoa(NEWER)) == Status.SUCCESS


def test_both_interfaces_speak_as_the_firmware_that_runs():
    machine = snp_only()
    assert load_ex(machine, genoa(SevFirmware((1, 60, 2), 30))) == Status.SUCCESS
    _, status = returning(machine, LegacyCommand.PLATFORM_STATUS, bytes(12))
    said = buffers.PlatformStatus.parse(status)
    assert (said.api_major, said.api_minor, said.config >> 24) == (1, 60, 2)
    assert machine.call(LegacyCommand.INIT, buffers.Init().pack()) == Status.SUCCESS
    policy = buffers.LaunchStart(policy=1 | 1 << 16 | 60 << 24).pack()
    assert returning(machine, LegacyCommand.LAUNCH_START, policy)[0] == Status.SUCCESS
    assert returning(up(), LegacyCommand.LAUNCH_START, policy)[0] == Status.POLICY_FAILURE


def test_an_owner_s_signature_outlives_an_update():
    """Certificates say which firmware made their key, or an owner would have signed another one."""
    machine = new_machine()
    keys = machine.psp.legacy.keys
    assert machine.call(LegacyCommand.INIT, buffers.Init().pack()) == Status.SUCCESS
    assert machine.call(LegacyCommand.SHUTDOWN) == Status.SUCCESS
    before = keys.pek_request()
    assert load(machine, genoa(SevFirmware((1, 60, 2), 30))) == Status.SUCCESS
    assert keys.pek_request() == before
    keys.generate_pdh()
    assert (keys.chain().pdh.api_minor, keys.chain().pek.api_minor) == (60, 55)


def test_guests_run_on_under_other_firmware():
    machine = snp_guest(snp_only())
    before = context(machine)
    assert load_ex(machine, genoa(NEWER), flags=1) == Status.SUCCESS
    assert context(machine) == before


def test_firmware_that_lays_guests_out_in_another_way_waits_for_a_shutdown():
    image = genoa(dataclasses.replace(NEWER, needs_shutdown=True))
    machine = snp_only()
    assert load_ex(machine, image) == Status.SHUTDOWN_REQUIRED
    machine.flush(SnpCommand.DF_FLUSH)
    assert machine.call(SnpCommand.SHUTDOWN_EX, buffers.SnpShutdownEx(8).pack()) == Status.SUCCESS
    assert load_ex(machine, image) == Status.SUCCESS


def test_no_firmware_comes_under_the_sev_interface_at_work():
    for machine in (up(snp=False), up()):
        assert load_ex(machine, genoa(NEWER)) == Status.INVALID_PLATFORM_STATE
        assert load(machine, genoa(NEWER)) == Status.INVALID_PLATFORM_STATE
    working = up(snp=False)
    sev_guest(working)
    assert load_ex(working, genoa(NEWER)) == Status.INVALID_PLATFORM_STATE


def test_the_older_command_commits_and_does_not_come_under_snp():
    machine = new_machine()
    assert load(machine, genoa(NEWER)) == Status.SUCCESS
    assert not machine.psp.firmware.provisional
    assert load(machine, genoa(SevFirmware(VERSION, SVN))) == Status.BAD_SVN
    assert load(snp_only(), genoa(NEWER)) == Status.INVALID_PLATFORM_STATE


@pytest.mark.parametrize("line", ["Milan", "Turin", "Rome"])
def test_an_image_for_another_line_is_not_signed_for_this_one(line):
    assert load_ex(snp_only(), signed_image(line, NEWER)) == Status.BAD_SIGNATURE


@given(st.integers(0, len(genoa(NEWER)) - 1), st.integers(0, 7))
@settings(max_examples=20, deadline=None)
def test_an_image_with_a_changed_bit_is_refused(position, bit):
    image = bytearray(genoa(NEWER))
    image[position] ^= 1 << bit
    assert load_ex(MACHINE, bytes(image)) == Status.BAD_SIGNATURE


MACHINE = snp_only()


@pytest.mark.parametrize(
    ("image", "changes", "status"),
    [
        (genoa(NEWER), {"length": 0x17}, Status.INVALID_LENGTH),
        (genoa(NEWER), {"length": 0x19}, Status.INVALID_LENGTH),
        (genoa(NEWER), {"reserved": 1}, Status.INVALID_PARAM),
        (genoa(NEWER), {"flags": 2}, Status.INVALID_PARAM),
        (genoa(NEWER), {"flags": 1 << 31}, Status.INVALID_PARAM),
        (genoa(NEWER), {"image_address": IMAGE + 16}, Status.INVALID_ADDRESS),
        (genoa(NEWER), {"image_address": 1 << 60}, Status.INVALID_ADDRESS),
        (genoa(NEWER), {"image_length": 0}, Status.INVALID_LENGTH),
        (genoa(NEWER), {"image_length": LEAST_BYTES - 1}, Status.INVALID_LENGTH),
        (genoa(NEWER), {"image_length": MOST_BYTES + 1}, Status.INVALID_LENGTH),
        (genoa(NEWER)[:-1], {}, Status.BAD_SIGNATURE),
        (genoa(NEWER) + b"\0", {}, Status.BAD_SIGNATURE),
        (bytes(LEAST_BYTES), {}, Status.BAD_SIGNATURE),
        (bytes(MOST_BYTES), {}, Status.BAD_SIGNATURE),
    ],
)
def test_what_is_wrong_with_a_download_has_its_status(image, changes, status):
    assert load_ex(MACHINE, image, **changes) == status


def test_without_security_versions_old_holes_come_back():
    """A Naples takes every image that was ever signed for it (Buhren et al. 2019)."""
    level, line = FirmwareLevel((0, 24, 15)), PRODUCT_LINES["Naples"]
    bus = ToyBus()
    psp = SecurityProcessor(bus, lambda *about: hashlib.shake_128(repr(about).encode()).digest(about[-1]), level, line)
    machine = Machine(bus, psp)
    assert load(machine, signed_image("Naples", SevFirmware((0, 17, 11)))) == Status.SUCCESS
    assert psp.firmware.committed == FirmwareLevel((0, 17, 11))


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(36, 44), st.integers(20, 26), st.booleans())), max_size=8))
@settings(max_examples=25, deadline=None)
def test_the_inequalities_hold_whatever_is_loaded_and_committed(steps):
    machine = snp_only()
    firmware = machine.psp.firmware
    for step in steps:
        least = firmware.committed
        if step is None:
            machine.call(SnpCommand.COMMIT, buffers.SnpCommit(4).pack())
        else:
            build, svn, at_once = step
            load_ex(machine, genoa(SevFirmware((1, 55, build), svn)), flags=at_once)
        assert tcb_at_most(firmware.reported_tcb, firmware.committed.tcb)
        assert tcb_at_most(firmware.committed.tcb, firmware.current.tcb)
        assert least.version <= firmware.committed.version <= firmware.current.version
        assert tcb_at_most(firmware.launch_tcb, firmware.committed.tcb)
