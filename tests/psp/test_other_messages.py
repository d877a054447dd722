"""MSG_CPUID_REQ, and MSG_TSC_INFO_REQ with Secure TSC."""

import struct

import pytest
from asking_guest import RESPONSE, ask, running, sealed, submit
from toy_machine import (
    COMMAND_PAGE,
    FIRMWARE,
    GCTX,
    GUEST_PAGE,
    PAGE,
    POLICY,
    context,
    pre_guest,
    snp_guest,
    up,
    update,
)

from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.guest_context import SnpGuestState
from psp.guest_message import MessageType
from psp.launch_digest import LaunchDigest, PageType
from psp.status import Status

GHZ = 2_000_000
"""kHz of the toy machine."""


def status_of(answer):
    return int.from_bytes(answer[:4], "little")


# CPUID.


def entry(leaf, eax, ebx):
    return struct.pack("<IIQQIIIIQ", leaf, 0, 0, 0, eax, ebx, 0, 0, 0)


def table(*entries, count=None):
    return struct.pack("<I12x", len(entries) if count is None else count) + b"".join(entries)


HONEST = entry(0x8000_001F, 1 << 1 | 1 << 3 | 1 << 4, 51 | 5 << 6)
ADDRESSES = entry(0x8000_0008, 48, 0)


@pytest.mark.parametrize("entries", [(), (HONEST,), (HONEST, ADDRESSES, entry(1, 7, 7)), (entry(1, 7, 7),) * 64])
def test_allowed_values_come_back_as_they_went(entries):
    answer = ask(running(), MessageType.CPUID_REQ, table(*entries))
    assert answer == struct.pack("<II8x", 0, len(entries)) + b"".join(entries)


def test_values_that_are_not_allowed_come_back_as_those_that_are():
    lie = entry(0x8000_001F, 0, 47 | 5 << 6)
    answer = ask(running(), MessageType.CPUID_REQ, table(ADDRESSES, lie))
    assert answer == struct.pack("<II8x", Status.INVALID_PARAM, 2) + ADDRESSES + HONEST


def test_a_table_that_is_too_long_or_has_something_in_what_is_reserved_is_refused():
    machine = running()
    many = table(*(entry(1, 0, 0),) * 65)
    odd = table(HONEST).replace(bytes(12), bytes(11) + b"\1", 1)
    for payload in (many, odd):
        assert ask(machine, MessageType.CPUID_REQ, payload) == struct.pack("<II8x", Status.INVALID_PARAM, 0)


@pytest.mark.parametrize("payload", [b"", bytes(15), table(HONEST, count=0), table(HONEST, count=2), table()[:-1]])
def test_a_table_of_another_length_than_it_says_is_no_message(payload):
    machine = running()
    message = sealed(context(machine).vmpck(0), 1, MessageType.CPUID_REQ, payload)
    assert submit(machine, message) == Status.INVALID_PARAM
    assert context(machine).message_counts[0] == 0


# Secure TSC.


def launched_with(khz):
    machine = snp_guest(up(), SnpGuestState.INIT)
    start = buffers.SnpLaunchStart(GCTX, POLICY, desired_tsc_khz=khz)
    status = machine.call(SnpCommand.LAUNCH_START, start.pack())
    assert machine.call(SnpCommand.ACTIVATE, buffers.SnpActivate(GCTX, 2).pack()) == (0 if not status else 2)
    return machine, status


@pytest.mark.parametrize(
    ("khz", "scale"), [(0, 1 << 32), (GHZ, 1 << 32), (GHZ // 2, 1 << 31), (3 * GHZ, 3 << 32), (255 * GHZ, 255 << 32)]
)
def test_a_running_guest_is_told_how_its_clock_is_scaled(khz, scale):
    machine, status = launched_with(khz)
    assert status == 0
    assert machine.call(SnpCommand.LAUNCH_FINISH, buffers.SnpLaunchFinish(GCTX).pack()) == 0
    machine.bus.rmp_set(RESPONSE, FIRMWARE)
    answer = ask(machine, MessageType.TSC_INFO_REQ, bytes(128))
    assert answer == struct.pack("<IIQQI100x", 0, 0, scale, 0, 0)


def test_a_frequency_that_no_scale_gives_is_refused():
    for khz in (GHZ * 256, 0xFFFF_FFFF):
        assert launched_with(khz)[1] == Status.INVALID_PARAM


@pytest.mark.parametrize("at", [0, 64, 127])
def test_the_request_is_zeros(at):
    machine = running()
    payload = bytes(at) + b"\1" + bytes(127 - at)
    assert status_of(ask(machine, MessageType.TSC_INFO_REQ, payload)) == Status.INVALID_PARAM


@pytest.mark.parametrize("khz", [0, GHZ // 2])
@pytest.mark.parametrize("in_runs", [False, True])
def test_firmware_sets_the_clock_of_first_save_areas_after_it_measured_them(khz, in_runs):
    machine, _ = launched_with(khz)
    area = bytes(range(256)) * 16
    pre_guest(machine, area)
    one = buffers.SnpLaunchUpdate.of(GCTX, PageType.VMSA, GUEST_PAGE).pack()
    if not (in_runs and machine.psp.submit_launch_updates([one], COMMAND_PAGE)):
        assert update(machine, PageType.VMSA) == 0
    clock = struct.pack("<QQ", 1 << 31, 0) if khz else area[0x2F0:0x300]
    assert machine.bus.read_guest(GUEST_PAGE, PAGE, 2) == area[:0x2F0] + clock + area[0x300:]
    expected = LaunchDigest()
    expected.update(PageType.VMSA, 0x5000, area)
    assert context(machine).digest == expected.value
