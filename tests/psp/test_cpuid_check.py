"""A CPUID page that would lead a guest astray is refused, and says what would do."""

import struct

import pytest
from toy_machine import COMMAND_PAGE, GCTX, GUEST_PAGE, PAGE, pre_guest, snp_guest, up, update

from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.cpuid_check import corrected
from psp.launch_digest import PageType
from psp.status import Status
from psp.system_bus import CpuidFacts

C_BIT, REDUCED, WIDTH = 51, 5, 48
"""The toy machine's."""


def table(*leaves):
    """A page of (function, EAX, EBX) leaves."""
    entries = b"".join(struct.pack("<IIQQIIIIQ", leaf, 0, 0, 0, eax, ebx, 0x11, 0x22, 0) for leaf, eax, ebx in leaves)
    return (len(leaves).to_bytes(4, "little").ljust(16, b"\0") + entries).ljust(PAGE, b"\0")


# EAX bits 1, 3 and 4: a guest that may be launched so has SEV, SEV-ES and SEV-SNP.
RIGHT = (0x8000_001F, 0x1B, 0x4000 | REDUCED << 6 | C_BIT)
CASES = [
    ((0x8000_001F, 0x1B, 0x4000 | REDUCED << 6 | 47), RIGHT),
    ((0x8000_001F, 0x1B, 0x4000 | 1 << 6 | C_BIT), RIGHT),
    ((0x8000_001F, 0x1B, 0x4000), RIGHT),
    ((0x8000_001F, 0x0, 0x4000 | REDUCED << 6 | C_BIT), (0x8000_001F, 0x1A, 0x4000 | REDUCED << 6 | C_BIT)),
    ((0x8000_001F, 0xB, 0x4000 | REDUCED << 6 | C_BIT), RIGHT),
    ((0x8000_0008, 0x3034, 0), (0x8000_0008, 0x3030, 0)),
    ((0x8000_0008, 0xFF, 7), (0x8000_0008, WIDTH, 7)),
]


@pytest.mark.parametrize(("wrong", "allowed"), CASES)
def test_a_wrong_value_is_refused_with_the_allowed_one_in_its_place(wrong, allowed):
    machine = snp_guest(up())
    other = (0x1, 0x00A0_0F11, 0x1234)
    pre_guest(machine, table(other, wrong))
    before = machine.snapshot()
    machine.bus.write(COMMAND_PAGE, buffers.SnpLaunchUpdate.of(GCTX, PageType.CPUID, GUEST_PAGE).pack())
    assert machine.psp.submit(SnpCommand.LAUNCH_UPDATE, COMMAND_PAGE) == Status.INVALID_PARAM
    assert machine.bus.read(GUEST_PAGE, PAGE) == table(other, allowed)
    after = machine.snapshot()
    assert {name for name in after if after[name] != before[name]} == {"DRAM"}
    assert not machine.bus.rmp_entry(GUEST_PAGE).validated
    # The host reads it, and comes again.
    assert update(machine, PageType.CPUID) == 0
    assert machine.bus.read_guest(GUEST_PAGE, PAGE, 2) == table(other, allowed)


FREE = [(0x8000_0008, 0x3030, 0), (0x8000_0008, 40, 0), (0x7, 0xFFFF_FFFF, 0xFFFF_FFFF)]


@pytest.mark.parametrize("leaf", [RIGHT, *FREE])
def test_what_is_right_or_has_no_rule_goes_in_as_it_is(leaf):
    machine = snp_guest(up())
    pre_guest(machine, table(leaf))
    assert update(machine, PageType.CPUID) == 0
    assert machine.bus.read_guest(GUEST_PAGE, PAGE, 2) == table(leaf)


def test_entries_behind_the_count_are_nobody_s():
    machine = snp_guest(up())
    page = table((0x8000_001F, 0, 0))
    pre_guest(machine, bytes(4) + page[4:])
    assert update(machine, PageType.CPUID) == 0


def test_a_guest_is_shown_no_feature_that_the_processor_lacks_and_may_be_shown_fewer():
    """AVX-512 and INVPCID asked of a processor that has INVPCID alone; index 1 of the function has no rule."""
    facts = CpuidFacts(C_BIT, REDUCED, WIDTH, ((7, 0, (0xFFFF_FFFF, 0xFFFE_FFFF, 0xFFFF_FFFF, 0xFFFF_FFFF)),))

    def page(index, ebx):
        entry = struct.pack("<IIQQIIIIQ", 7, index, 0, 0, 1, ebx, 0x11, 0x22, 0)
        return ((1).to_bytes(4, "little").ljust(16, b"\0") + entry).ljust(PAGE, b"\0")

    avx_512, invpcid = 1 << 16, 1 << 10
    assert corrected(page(0, avx_512 | invpcid), facts) == page(0, invpcid)
    assert corrected(page(0, 0), facts) == page(0, 0)
    assert corrected(page(1, avx_512), facts) == page(1, avx_512)
