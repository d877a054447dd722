"""RING_BUFFER: commands from two queues in memory, and the way back to the mailbox."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_machine import COMMAND_PAGE, FIRMWARE, GCTX, MEMORY_BYTES, PAGE, snp_guest, up

from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.guest_context import SnpGuestState
from psp.launch_digest import PageType
from psp.status import Status

LOW, LOW_STATUS, HIGH, HIGH_STATUS = 0x10_0000, 0x10_1000, 0x10_2000, 0x10_4000
RESPONSE, GO_ON, PAUSED = 1 << 31, 1 << 30, 1 << 30
ORDER = buffers.RingBuffer(LOW, LOW_STATUS, HIGH, HIGH_STATUS, 1, 2)


@pytest.fixture
def machine():
    made = up(snp=False)
    assert made.call(LegacyCommand.RING_BUFFER, ORDER.pack()) == Status.SUCCESS
    return made


def put(machine, queue, index, command, buffer=COMMAND_PAGE):
    entry = command.to_bytes(2, "little") + bytes(6) + buffer.to_bytes(8, "little")
    machine.bus.write(queue + 16 * index, entry)


def go_on(machine, low=0, high=0):
    """Say how far the queues are filled; the heads that firmware leaves, and whether it paused."""
    mailbox = machine.psp.mailbox
    mailbox.write_address(mailbox.address_low, high << 16 | low)
    mailbox.write_response(RESPONSE | GO_ON | 1 << 29)
    assert mailbox.response == RESPONSE
    heads = mailbox.address_low
    return heads & 0x7FF, heads >> 16 & 0x7FF, bool(heads & PAUSED)


def status(machine, queue, index):
    return int.from_bytes(machine.bus.read(queue + 16 * index, 2), "little")


def test_commands_are_carried_out_in_order_and_high_priority_first(machine):
    seen = []
    execute = machine.psp.mailbox.ring._execute
    machine.psp.mailbox.ring._execute = lambda command, spa: seen.append((command, spa)) or execute(command, spa)
    put(machine, LOW, 0, LegacyCommand.NOP)
    put(machine, LOW, 1, LegacyCommand.PLATFORM_STATUS, 0x6000)
    put(machine, HIGH, 0, LegacyCommand.PDH_GEN)
    assert go_on(machine, 2, 1) == (2, 1, False)
    assert seen == [
        (LegacyCommand.PDH_GEN, COMMAND_PAGE),
        (LegacyCommand.NOP, COMMAND_PAGE),
        (LegacyCommand.PLATFORM_STATUS, 0x6000),
    ]
    assert buffers.PlatformStatus.parse(machine.bus.read(0x6000, 12)).state == 1
    assert go_on(machine, 2, 1) == (2, 1, False)
    assert len(seen) == 3


def test_a_command_that_fails_stops_both_queues_with_its_status_and_may_be_tried_again(machine):
    put(machine, HIGH, 0, LegacyCommand.NOP)
    put(machine, HIGH, 1, LegacyCommand.DECOMMISSION)
    put(machine, HIGH, 2, LegacyCommand.NOP)
    put(machine, LOW, 0, LegacyCommand.NOP)
    machine.bus.write(LOW_STATUS, b"\xee" * 16)
    assert go_on(machine, 1, 3) == (0, 1, True)
    assert [status(machine, HIGH_STATUS, at) for at in range(2)] == [0, Status.INVALID_PLATFORM_STATE]
    assert status(machine, LOW_STATUS, 0) == 0xEEEE
    put(machine, HIGH, 1, LegacyCommand.NOP)
    assert go_on(machine, 1, 3) == (1, 3, False)
    assert machine.bus.read(LOW_STATUS, 16) == bytes(16)


def test_indices_go_round_and_are_those_of_the_queue(machine):
    for at in range(256):
        put(machine, LOW, at, LegacyCommand.NOP)
    assert go_on(machine, 255) == (255, 0, False)
    assert go_on(machine, 1) == (1, 0, False)
    assert go_on(machine, 0x7FF) == (255, 0, False)
    for at in range(512):
        put(machine, HIGH, at, LegacyCommand.NOP)
    assert go_on(machine, 255, 511) == (255, 511, False)


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (LegacyCommand.RING_BUFFER, Status.INVALID_COMMAND),
        (0x7FFF, Status.INVALID_COMMAND),
        (0xFFFF, Status.INVALID_COMMAND),
        (LegacyCommand.INIT, Status.INVALID_PLATFORM_STATE),
        (SnpCommand.PAGE_SET_STATE, Status.UNSUPPORTED),
    ],
)
def test_a_queued_command_has_the_status_that_it_would_have_alone(machine, command, answer):
    put(machine, LOW, 0, command)
    assert go_on(machine, 1) == (0, 0, True)
    assert status(machine, LOW_STATUS, 0) == answer


def test_a_command_in_the_mailbox_ends_the_mode_and_is_not_carried_out(machine):
    before = machine.psp.legacy.keys.pdh_seed
    assert machine.call(LegacyCommand.PDH_GEN) == Status.RB_MODE_EXITED
    assert machine.psp.legacy.keys.pdh_seed == before
    assert machine.call(LegacyCommand.PDH_GEN) == Status.SUCCESS
    assert machine.psp.mailbox.ring is None


def test_no_launch_goes_past_the_queues():
    machine = snp_guest(up(), SnpGuestState.LAUNCH)
    for page in (LOW_STATUS, HIGH_STATUS, HIGH_STATUS + PAGE):
        machine.bus.rmp_set(page, FIRMWARE)
    assert machine.call(LegacyCommand.RING_BUFFER, ORDER.pack()) == Status.SUCCESS
    pages = [buffers.SnpLaunchUpdate.of(GCTX, PageType.ZERO, 0x20_0000 + at * PAGE).pack() for at in range(9)]
    assert machine.psp.submit_launch_updates(pages, COMMAND_PAGE) == 0


def test_after_snp_init_statuses_go_only_to_firmware_pages_also_later():
    machine = up()
    order = ORDER.pack()
    assert machine.call(LegacyCommand.RING_BUFFER, order) == Status.INVALID_PAGE_STATE
    for page in (LOW_STATUS, HIGH_STATUS, HIGH_STATUS + PAGE):
        machine.bus.rmp_set(page, FIRMWARE)
    assert machine.call(LegacyCommand.RING_BUFFER, order) == Status.SUCCESS
    put(machine, LOW, 0, LegacyCommand.PDH_GEN)
    machine.bus.rmp.pop(LOW_STATUS // PAGE)
    before = machine.snapshot()
    assert go_on(machine, 1) == (0, 0, True)
    assert machine.snapshot() == before  # not carried out, for there is nowhere to say so


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=256), st.binary(max_size=256), st.lists(st.integers(0, (1 << 32) - 1), max_size=6))
def test_whatever_lies_in_the_queues_and_registers_is_answered(high, low, words):
    made = up(snp=False)
    assert made.call(LegacyCommand.RING_BUFFER, ORDER.pack()) == Status.SUCCESS
    made.bus.write(HIGH, high)
    made.bus.write(LOW, low)
    mailbox = made.psp.mailbox
    for word in words:
        mailbox.write_address(word, word >> 3 ^ word << 5)
        mailbox.write_response(word | GO_ON)
        assert mailbox.response >> 31
        assert Status(mailbox.response & 0xFFFF) in Status


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"low_pages": 0}, Status.INVALID_PARAM),
        ({"low_pages": 2}, Status.INVALID_PARAM),
        ({"high_pages": 0}, Status.INVALID_PARAM),
        ({"high_pages": 9}, Status.INVALID_PARAM),
        ({"flags": 2}, Status.INVALID_PARAM),
        ({"low_commands": LOW + 16}, Status.INVALID_ADDRESS),
        ({"high_statuses": HIGH_STATUS + 8}, Status.INVALID_ADDRESS),
        ({"high_commands": MEMORY_BYTES - PAGE}, Status.INVALID_ADDRESS),
        ({"low_statuses": 1 << 60}, Status.INVALID_ADDRESS),
    ],
)
def test_bad_queues_are_refused_and_the_mailbox_stays(changes, answer):
    machine = up(snp=False)
    assert machine.call(LegacyCommand.RING_BUFFER, dataclasses.replace(ORDER, **changes).pack()) == answer
    assert machine.psp.mailbox.ring is None
    assert machine.call(LegacyCommand.NOP) == Status.SUCCESS


def test_without_queues_the_bit_that_goes_on_is_a_command_that_is_none():
    machine = up(snp=False)
    machine.psp.mailbox.write_response(GO_ON)
    assert machine.psp.mailbox.response == RESPONSE | Status.INVALID_COMMAND
