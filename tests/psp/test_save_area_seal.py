"""LAUNCH_UPDATE_VMSA leaves an integrity value of exactly what the guest's key reads."""

from __future__ import annotations

import hashlib

from toy_machine import GUEST_PAGE, OUT, PAGE, new_machine, returning

from psp import command_buffers as buffers
from psp.commands import LegacyCommand
from psp.status import Status

VMSA = hashlib.shake_128(b"registers").digest(PAGE)
TMR = 0xA0_0000


def test_a_save_area_is_sealed_with_its_encryption_and_not_before() -> None:
    machine = new_machine()
    init = buffers.Init(buffers.INIT_ES, TMR, 1 << 20).pack()
    assert machine.call(LegacyCommand.INIT, init) == Status.SUCCESS
    machine.flush(LegacyCommand.DF_FLUSH)
    status, answer = returning(machine, LegacyCommand.LAUNCH_START, buffers.LaunchStart(policy=5).pack())
    assert status == Status.SUCCESS
    handle = buffers.LaunchStart.parse(answer).handle
    machine.bus.write(GUEST_PAGE, VMSA)
    update = buffers.LaunchUpdateVmsa(handle, GUEST_PAGE, PAGE).pack()
    assert machine.call(LegacyCommand.LAUNCH_UPDATE_VMSA, update) == Status.INACTIVE
    assert machine.bus.sealed == {}
    assert machine.call(LegacyCommand.ACTIVATE, buffers.Activate(handle, 4).pack()) == Status.SUCCESS
    data = buffers.LaunchUpdateData(handle, OUT, PAGE).pack()
    assert machine.call(LegacyCommand.LAUNCH_UPDATE_DATA, data) == Status.SUCCESS
    assert machine.bus.sealed == {}
    assert machine.call(LegacyCommand.LAUNCH_UPDATE_VMSA, update) == Status.SUCCESS
    assert machine.bus.sealed == {GUEST_PAGE: VMSA}
    assert machine.bus.read(GUEST_PAGE, PAGE) != VMSA
