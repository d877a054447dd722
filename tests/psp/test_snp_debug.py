"""SNP_DBG_DECRYPT and SNP_DBG_ENCRYPT: pages of a guest whose policy allows it, and no other's."""

import dataclasses

import pytest
from toy_machine import (
    COMMAND_PAGE,
    FIRMWARE,
    GCTX,
    GUEST_PAGE,
    OUT,
    PAGE,
    POLICY,
    UNCOVERED,
    change_context,
    pre_guest,
    snp_guest,
    up,
)

from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.guest_context import SnpGuestState
from psp.policy import SnpPolicy
from psp.status import Status

ASID = 2
INSIDE = bytes(range(256)) * 16


def debuggable(policy=SnpPolicy.DEBUG):
    machine = snp_guest(up(), SnpGuestState.RUNNING)
    change_context(machine, policy=POLICY | policy)
    pre_guest(machine, immutable=False, validated=True)
    machine.bus.write_guest(GUEST_PAGE, INSIDE, ASID)
    machine.bus.rmp_set(OUT, FIRMWARE)
    return machine


def refused(machine, command, buffer):
    machine.bus.write(COMMAND_PAGE, buffer.pack())
    before = machine.snapshot()
    status = machine.psp.submit(command, COMMAND_PAGE)
    assert machine.snapshot() == before
    return status


def test_a_debuggable_guest_s_page_goes_out_and_in():
    machine = debuggable()
    out = buffers.SnpDebug(GCTX, GUEST_PAGE, OUT).pack()
    assert machine.call(SnpCommand.DBG_DECRYPT, out) == Status.SUCCESS
    assert machine.bus.read(OUT, PAGE) == INSIDE
    machine.bus.write(OUT, b"new".ljust(PAGE, b"."))
    into = buffers.SnpDebug(GCTX, OUT, GUEST_PAGE).pack()
    assert machine.call(SnpCommand.DBG_ENCRYPT, into) == Status.SUCCESS
    assert machine.bus.read_guest(GUEST_PAGE, PAGE, ASID) == b"new".ljust(PAGE, b".")


@pytest.mark.parametrize("command", [SnpCommand.DBG_DECRYPT, SnpCommand.DBG_ENCRYPT])
def test_without_the_debug_bit_nothing_goes(command):
    machine = debuggable(policy=0)
    source, destination = (GUEST_PAGE, OUT) if command == SnpCommand.DBG_DECRYPT else (OUT, GUEST_PAGE)
    assert refused(machine, command, buffers.SnpDebug(GCTX, source, destination)) == Status.POLICY_FAILURE


CASES = [
    (SnpCommand.DBG_DECRYPT, {"source": OUT}, Status.INVALID_PAGE_OWNER),
    (SnpCommand.DBG_DECRYPT, {"source": UNCOVERED}, Status.INVALID_ADDRESS),
    (SnpCommand.DBG_DECRYPT, {"source": GUEST_PAGE + 16}, Status.INVALID_ADDRESS),
    (SnpCommand.DBG_DECRYPT, {"source": 1 << 50}, Status.INVALID_ADDRESS),
    (SnpCommand.DBG_DECRYPT, {"destination": GUEST_PAGE}, Status.INVALID_PAGE_STATE),
    (SnpCommand.DBG_DECRYPT, {"destination": OUT + PAGE}, Status.INVALID_PAGE_STATE),
    (SnpCommand.DBG_DECRYPT, {"destination": GCTX}, Status.INVALID_PAGE_STATE),
    (SnpCommand.DBG_DECRYPT, {"destination": 1 << 50}, Status.INVALID_ADDRESS),
    (SnpCommand.DBG_DECRYPT, {"gctx": OUT}, Status.INVALID_GUEST),
    (SnpCommand.DBG_ENCRYPT, {"destination": OUT}, Status.INVALID_PAGE_OWNER),
    (SnpCommand.DBG_ENCRYPT, {"destination": GCTX}, Status.INVALID_PAGE_OWNER),
    (SnpCommand.DBG_ENCRYPT, {"destination": UNCOVERED}, Status.INVALID_ADDRESS),
    (SnpCommand.DBG_ENCRYPT, {"source": 1 << 50}, Status.INVALID_ADDRESS),
    (SnpCommand.DBG_ENCRYPT, {"source": OUT + 1}, Status.INVALID_ADDRESS),
]


@pytest.mark.parametrize(("command", "changes", "status"), CASES)
def test_pages_of_others_and_no_pages_are_refused(command, changes, status):
    source, destination = (GUEST_PAGE, OUT) if command == SnpCommand.DBG_DECRYPT else (OUT, GUEST_PAGE)
    buffer = dataclasses.replace(buffers.SnpDebug(GCTX, source, destination), **changes)
    assert refused(debuggable(), command, buffer) == status
