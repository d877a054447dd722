"""DBG_DECRYPT and DBG_ENCRYPT: a hypervisor sees into a guest that allows it, and into no other."""

import dataclasses

import pytest
from toy_machine import COMMAND_PAGE, FIRMWARE, GUEST_PAGE, MEMORY_BYTES, OUT, PAGE, sev_guest, up

from psp import command_buffers as buffers
from psp.commands import LegacyCommand
from psp.legacy_guest import LegacyGuestState
from psp.policy import LegacyPolicy
from psp.status import Status

ASID = 6
INSIDE = bytes(range(256)) * 16


def debuggable(*, snp=False, policy=0):
    machine = up(snp=snp)
    handle = sev_guest(machine, LegacyGuestState.RUNNING)
    machine.psp.legacy.guests[handle].policy = policy
    machine.bus.write_guest(GUEST_PAGE, INSIDE, ASID)
    for spa in (OUT, GUEST_PAGE):
        machine.bus.rmp_set(spa, FIRMWARE)
    return machine, handle


@pytest.mark.parametrize("snp", [False, True])
def test_debug_decrypt_gives_out_what_the_guest_has(snp):
    machine, handle = debuggable(snp=snp)
    assert machine.call(LegacyCommand.DBG_DECRYPT, buffers.Debug(handle, GUEST_PAGE, OUT, PAGE).pack()) == 0
    assert machine.bus.read(OUT, PAGE) == INSIDE


@pytest.mark.parametrize("snp", [False, True])
def test_debug_encrypt_gives_the_guest_what_lies_there(snp):
    machine, handle = debuggable(snp=snp)
    machine.bus.write(OUT, b"new".ljust(PAGE, b"."))
    assert machine.call(LegacyCommand.DBG_ENCRYPT, buffers.Debug(handle, OUT, GUEST_PAGE, PAGE).pack()) == 0
    assert machine.bus.read_guest(GUEST_PAGE, PAGE, ASID) == b"new".ljust(PAGE, b".")


CASES = [
    ({"length": 0}, Status.INVALID_LENGTH),
    ({"length": 24}, Status.INVALID_LENGTH),
    ({"source": GUEST_PAGE + 8}, Status.INVALID_ADDRESS),
    ({"destination": OUT + 4}, Status.INVALID_ADDRESS),
    ({"source": 1 << 48}, Status.INVALID_ADDRESS),
    ({"destination": MEMORY_BYTES - 16}, Status.INVALID_ADDRESS),
    ({"length": 0xFFFF_FFF0}, Status.INVALID_ADDRESS),
    ({"handle": 0}, Status.INVALID_GUEST),
]


def refused(machine, command, buffer):
    machine.bus.write(COMMAND_PAGE, buffer.pack())
    before = machine.snapshot()
    status = machine.psp.submit(command, COMMAND_PAGE)
    assert machine.snapshot() == before
    return status


@pytest.mark.parametrize("command", [LegacyCommand.DBG_DECRYPT, LegacyCommand.DBG_ENCRYPT])
@pytest.mark.parametrize(("changes", "status"), CASES)
def test_bad_ranges_are_refused(command, changes, status):
    machine, handle = debuggable()
    buffer = dataclasses.replace(buffers.Debug(handle, GUEST_PAGE, OUT, 32), **changes)
    assert refused(machine, command, buffer) == status


@pytest.mark.parametrize("command", [LegacyCommand.DBG_DECRYPT, LegacyCommand.DBG_ENCRYPT])
def test_nodbg_and_an_inactive_guest_refuse(command):
    machine, handle = debuggable(policy=LegacyPolicy.NODBG)
    assert refused(machine, command, buffers.Debug(handle, GUEST_PAGE, OUT, 32)) == Status.POLICY_FAILURE
    machine, handle = debuggable()
    assert machine.call(LegacyCommand.DEACTIVATE, buffers.Handle(handle).pack()) == 0
    assert refused(machine, command, buffers.Debug(handle, GUEST_PAGE, OUT, 32)) == Status.INACTIVE
