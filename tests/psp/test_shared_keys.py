"""LAUNCH_START with another guest's handle: two guests with one memory key, which may have one ASID."""

import pytest
from toy_machine import FIRMWARE, GUEST_PAGE, OUT, PAGE, Machine, returning, sev_guest, up

from psp import command_buffers as buffers
from psp.commands import LegacyCommand
from psp.legacy_guest import LegacyGuestState
from psp.status import Status

ASID, OTHER = 6, 7


def start(machine: Machine, handle: int, policy: int = 1) -> tuple[int, int]:
    status, answer = returning(machine, LegacyCommand.LAUNCH_START, buffers.LaunchStart(handle, policy).pack())
    return status, buffers.LaunchStart.parse(answer).handle


def activate(machine: Machine, handle: int, asid: int) -> int:
    return machine.call(LegacyCommand.ACTIVATE, buffers.Activate(handle, asid).pack())


def deactivate(machine: Machine, handle: int) -> int:
    return machine.call(LegacyCommand.DEACTIVATE, buffers.Handle(handle).pack())


@pytest.fixture
def machine() -> Machine:
    """A running guest, 1, with an ASID, and another, 2, with its key and without one."""
    made = up()
    policy = 0  # may be debugged, and shared
    status, handle = start(made, 0, policy)
    assert (status, handle) == (Status.SUCCESS, 1)
    assert activate(made, 1, ASID) == Status.SUCCESS
    assert start(made, 1, policy) == (Status.SUCCESS, 2)
    return made


def test_a_guest_with_another_s_key_reads_its_memory(machine):
    for handle in (1, 2):
        machine.psp.legacy.guests[handle].state = LegacyGuestState.RUNNING
    machine.bus.write_guest(GUEST_PAGE, b"s" * PAGE, ASID)
    assert activate(machine, 2, OTHER) == Status.SUCCESS
    machine.bus.rmp_set(OUT, FIRMWARE)
    debug = buffers.Debug(2, GUEST_PAGE, OUT, 64).pack()
    assert machine.call(LegacyCommand.DBG_DECRYPT, debug) == Status.SUCCESS
    assert machine.bus.read(OUT, 64) == b"s" * 64


def test_each_has_its_own_transport_keys_digest_and_state(machine):
    one, other = machine.psp.legacy.guests.values()
    assert one.key == other.key
    assert one.transport != other.transport
    assert one.digest is not other.digest
    assert other.state is LegacyGuestState.LUPDATE


def test_guests_of_one_key_may_have_one_asid_and_the_key_goes_with_the_last(machine):
    key = machine.bus.keys[ASID]
    assert activate(machine, 2, ASID) == Status.SUCCESS
    assert activate(machine, 2, OTHER) == Status.ACTIVE
    assert deactivate(machine, 1) == Status.SUCCESS
    assert machine.bus.keys == {ASID: key}
    assert machine.call(LegacyCommand.DECOMMISSION, buffers.Handle(1).pack()) == Status.SUCCESS
    stranger = start(machine, 0)[1]
    assert activate(machine, stranger, ASID) == Status.ASID_OWNED
    assert deactivate(machine, 2) == Status.SUCCESS
    assert machine.bus.keys == {}
    # Whoever had it last, its lines are in the caches.
    assert activate(machine, stranger, ASID) == Status.WBINVD_REQUIRED
    machine.flush(LegacyCommand.DF_FLUSH)
    assert activate(machine, stranger, ASID) == Status.SUCCESS


def test_a_guest_with_a_key_of_its_own_gets_nobody_s_asid():
    machine = up()
    sev_guest(machine, asid=ASID)
    status, stranger = start(machine, 0)
    assert status == Status.SUCCESS
    assert activate(machine, stranger, ASID) == Status.ASID_OWNED


def test_the_hold_of_an_asid_is_its_guests_together(machine):
    def activate_ex(handle: int, asid: int, thread: int) -> int:
        machine.bus.write(0x5000, thread.to_bytes(4, "little"))
        return machine.call(LegacyCommand.ACTIVATE_EX, buffers.ActivateEx(0x18, handle, asid, 1, 0x5000).pack())

    assert activate_ex(2, ASID, 0) == Status.ASID_OWNED  # the other may run everywhere
    assert activate_ex(2, OTHER, 0) == Status.SUCCESS
    assert activate(machine, start(machine, 2, 0)[1], OTHER) == Status.ASID_OWNED  # nor may one that runs everywhere
    assert start(machine, 2, 0) == (Status.SUCCESS, 4)
    assert activate_ex(4, OTHER, 9) == Status.SUCCESS
    assert machine.bus.only_on == {OTHER: frozenset({0, 1})}
    assert deactivate(machine, 2) == Status.SUCCESS
    assert machine.bus.only_on == {OTHER: frozenset({0, 1})}
    assert deactivate(machine, 4) == Status.SUCCESS
    assert machine.bus.only_on == {}


def test_shutdown_takes_every_key():
    machine = up()
    assert start(machine, 0)[0] == Status.SUCCESS
    assert activate(machine, 1, ASID) == Status.SUCCESS
    status, other = start(machine, 1)
    assert status == (Status.SUCCESS)
    assert activate(machine, other, ASID) == Status.SUCCESS
    assert machine.call(LegacyCommand.SHUTDOWN) == Status.SUCCESS
    assert machine.bus.keys == {}
