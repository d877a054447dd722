"""SNP_PAGE_UNSMASH: the reverse of PSMASH, for 512 entries that agree and for no others."""

from __future__ import annotations

from dataclasses import replace

import pytest
from toy_machine import COMMAND_PAGE, FIRMWARE, MEMORY_BYTES, PAGE, Machine, up

from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.status import Status
from psp.system_bus import LARGE_PAGE_BYTES, RmpEntry

BLOCK = 0x40_0000
PAGES = 512
RIGHTS = (0xF, 3, 0, 1)
STATES = {
    "Guest-Invalid": RmpEntry(assigned=True, gpa=0x80_0000, asid=2, vmpl_permissions=RIGHTS),
    "Guest-Valid": RmpEntry(assigned=True, gpa=0x80_0000, asid=2, validated=True, vmpl_permissions=RIGHTS),
    "Pre-Guest": RmpEntry(assigned=True, immutable=True, gpa=0x80_0000, asid=2, vmpl_permissions=RIGHTS),
    "Pre-Swap": RmpEntry(
        assigned=True, immutable=True, gpa=0x80_0000, asid=2, validated=True, vmpl_permissions=RIGHTS
    ),
}


def smashed(entry: RmpEntry) -> Machine:
    machine = up()
    for n in range(PAGES):
        machine.bus.rmp_set(BLOCK + n * PAGE, replace(entry, gpa=entry.gpa + n * PAGE))
    return machine


def unsmash(machine: Machine, spa: int = BLOCK) -> int:
    machine.bus.write(COMMAND_PAGE, buffers.SnpPageUnsmash(spa).pack())
    before = machine.snapshot()
    status = int(machine.psp.submit(SnpCommand.PAGE_UNSMASH, COMMAND_PAGE))
    assert (machine.snapshot() == before) is (status != Status.SUCCESS)
    return status


@pytest.mark.parametrize("state", STATES)
def test_entries_that_agree_become_one_of_2_mib(state: str) -> None:
    machine = smashed(STATES[state])
    assert unsmash(machine) == Status.SUCCESS
    for n in (0, 1, PAGES - 1):
        assert machine.bus.rmp_entry(BLOCK + n * PAGE) == replace(STATES[state], large=True)
    assert unsmash(machine) == Status.INVALID_PAGE_SIZE


OTHER = {
    "unassigned": lambda _: RmpEntry(),
    "another guest's": lambda entry: replace(entry, asid=3),
    "another address": lambda entry: replace(entry, gpa=entry.gpa ^ 0x100_0000),
    "immutable": lambda entry: replace(entry, immutable=True),
    "not accepted": lambda entry: replace(entry, validated=False),
    "a save area": lambda entry: replace(entry, vmsa=True),
    "other rights": lambda entry: replace(entry, vmpl_permissions=(0xF, 0, 0, 1)),
    "the firmware's": lambda _: FIRMWARE,
}


@pytest.mark.parametrize("at", [0, 1, 300, PAGES - 1])
@pytest.mark.parametrize("name", OTHER)
def test_one_entry_that_disagrees_is_enough_to_refuse(name: str, at: int) -> None:
    machine = smashed(STATES["Guest-Valid"])
    spa = BLOCK + at * PAGE
    machine.bus.rmp_set(spa, OTHER[name](machine.bus.rmp_entry(spa)))
    assert unsmash(machine) == Status.INVALID_PAGE_STATE


@pytest.mark.parametrize("entry", [RmpEntry(), RmpEntry(assigned=True), FIRMWARE, RmpEntry(immutable=True)])
def test_pages_of_nobody_and_of_firmware_are_refused(entry: RmpEntry) -> None:
    machine = up()
    for n in range(PAGES):
        machine.bus.rmp_set(BLOCK + n * PAGE, entry)
    assert unsmash(machine) == Status.INVALID_PAGE_STATE


def test_a_guest_address_between_borders_of_2_mib_is_refused() -> None:
    assert unsmash(smashed(replace(STATES["Guest-Valid"], gpa=0x80_1000))) == Status.INVALID_PAGE_STATE


@pytest.mark.parametrize(
    "spa",
    [BLOCK + PAGE, BLOCK | 1, MEMORY_BYTES - LARGE_PAGE_BYTES, MEMORY_BYTES, 1 << 51, (1 << 64) - LARGE_PAGE_BYTES],
)
def test_an_address_that_no_large_entry_can_have_is_refused(spa: int) -> None:
    assert unsmash(smashed(STATES["Guest-Valid"]), spa) == Status.INVALID_ADDRESS
