"""Registers as a host finds and programs them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_function import BAR0, IDENTITY, function

from tio.pci import Command, ConfigurationSpace, DeviceControl, MsixControl, Register
from tio.tdisp import Tampering

POWER_CONTROL = 0x94


def test_the_header_says_who_the_function_is() -> None:
    space = function(programmed=False)[0].space
    assert space.read(0) == 0x1234_1AF4
    assert space.read(Register.REVISION) == 0x12_0000_03
    assert space.read(Register.SUBSYSTEM_VENDOR_ID) == 0x5678_1AF4
    assert space.read(Register.STATUS, 2) & 1 << 4


def test_capabilities_are_found_by_walking_the_list() -> None:
    space = function(programmed=False)[0].space
    found, at = [], space.read(Register.CAPABILITIES, 1)
    while at:
        found.append(space.read(at, 1))
        at = space.read(at + 1, 1)
    assert found == [0x10, 0x11, 0x01]  # PCI Express, MSI-X, power management
    plain = ConfigurationSpace(IDENTITY, {})
    assert plain.read(plain.read(0x41, 1), 1) == 0x01
    root = ConfigurationSpace(IDENTITY, {}, root_port=3)
    assert root.read(0x41, 1) == 0
    assert space.read(Register.DEVICE_CAPABILITIES) >> 30 & 1  # TEE-IO
    assert space.read(Register.DEVICE_CAPABILITIES) >> 28 & 1  # function-level reset
    assert space.read(Register.MSIX_CONTROL, 2) == 3  # four vectors
    assert (space.read(Register.MSIX_TABLE), space.read(Register.MSIX_PBA)) == (2, 0x1002)


@pytest.mark.parametrize(("bar", "size"), [(0, 0x8000), (2, 0x2000)])
def test_a_bar_is_sized_by_writing_ones(bar: int, size: int) -> None:
    """The base specification's way: what stays zero is the size, the low bits say memory of 64 bits."""
    space = function(programmed=False)[0].space
    at = 0x10 + 4 * bar
    assert space.read(at) & 0xF == 0b1100
    space.write(at, 0xFFFF_FFFF)
    space.write(at + 4, 0xFFFF_FFFF)
    answer = space.read(at + 4) << 32 | space.read(at) & ~0xF
    assert -answer & (1 << 64) - 1 == size
    assert space.read(0x20) == 0  # there is no third


def test_read_only_registers_stay() -> None:
    space = function()[0].space
    for offset in (Register.VENDOR_ID, Register.CLASS_CODE & ~3, Register.DEVICE_CAPABILITIES, Register.MSIX_TABLE):
        before = space.read(offset)
        space.write(offset, before ^ 0xFFFF_FFFF)
        assert space.read(offset) == before
    space.write(Register.MSIX_CONTROL, 0xFFFF, 2)
    assert space.read(Register.MSIX_CONTROL, 2) == 3 | MsixControl.ENABLE | MsixControl.FUNCTION_MASK


@pytest.mark.parametrize(
    ("offset", "value", "width", "events"),
    [
        (0x10, 0x0010_8000, 4, [Tampering.BAR]),
        (0x11, 0x90, 1, [Tampering.BAR]),
        (0x10, BAR0 & 0xFFFF_FFFF, 4, []),  # what is there already
        (Register.EXPANSION_ROM, 1, 4, [Tampering.BAR]),
        (Register.COMMAND, Command.BUS_MASTER, 2, [Tampering.MEMORY_SPACE]),
        (Register.COMMAND, Command.MEMORY_SPACE, 2, [Tampering.MEMORY_SPACE]),
        (Register.COMMAND, 0x406, 2, []),  # interrupts off
        (Register.MSIX_CONTROL, MsixControl.ENABLE, 2, [Tampering.MSIX]),
        (Register.DEVICE_CONTROL, DeviceControl.FUNCTION_LEVEL_RESET, 2, [Tampering.FUNCTION_RESET]),
        (Register.DEVICE_CONTROL + 1, 0x80, 1, [Tampering.FUNCTION_RESET]),
        (Register.DEVICE_CONTROL, 0x20, 2, []),  # a payload size
        (POWER_CONTROL, 3, 2, [Tampering.POWER_STATE]),
        (POWER_CONTROL, 1, 2, []),  # D1, which is not supported
        (POWER_CONTROL, 0x8100, 4, []),
    ],
)
def test_what_a_write_does_to_a_lock(offset: int, value: int, width: int, events: list[Tampering]) -> None:
    one, _, heard = function()
    one.space.write(offset, value, width)
    assert heard == events


def test_a_function_level_reset_forgets_what_was_programmed() -> None:
    one, device, _ = function()
    one.space.write(Register.DEVICE_CONTROL, DeviceControl.FUNCTION_LEVEL_RESET, 2)
    assert (one.space.bar_address(0), one.space.command, one.space.control) == (0, Command(0), 0)
    assert device.calls == ["reset"]


def test_a_function_in_d3hot_neither_answers_nor_asks_and_comes_back_as_new() -> None:
    one, device, heard = function()
    one.space.write(POWER_CONTROL, 3, 2)
    assert (one.space.read(POWER_CONTROL, 2), one.space.command) == (3, Command(0))
    assert one.space.read(Register.COMMAND, 2) == 6
    assert one.load(BAR0 + 0x10, 4) == 0xFFFF_FFFF
    assert device.calls == []
    one.space.write(POWER_CONTROL, 2, 2)
    assert one.space.read(POWER_CONTROL, 2) == 3
    one.space.write(POWER_CONTROL, 0, 2)
    assert heard == [Tampering.POWER_STATE] * 2
    assert (one.space.bar_address(0), one.space.read(Register.COMMAND, 2)) == (0, 0)
    assert device.calls == ["reset"]


def test_another_bus_number_is_another_requester() -> None:
    one, _, heard = function()
    one.space.write(Register.COMMAND, 6, 2, bus=1)
    one.space.write(Register.COMMAND, 6, 2, bus=1)
    assert heard == []
    one.space.write(Register.COMMAND, 6, 2, bus=2)
    assert heard == [Tampering.REQUESTER_ID]


class Mailbox:
    """An extended capability of three double words."""

    capability_id, size_bytes = 0x2E, 12

    def __init__(self) -> None:
        self.words = {4: 0x1111_1111, 8: 0}

    def load(self, offset: int) -> int:
        return self.words[offset]

    def store(self, offset: int, value: int) -> Tampering | None:
        self.words[offset] = value
        return Tampering.IDE_CONTROL if offset == 8 else None


def test_extended_capabilities_are_chained_and_answer_for_themselves() -> None:
    first, second = Mailbox(), Mailbox()
    space = ConfigurationSpace(IDENTITY, {}, extended=(first, second))
    heard: list[Tampering] = []
    space.changed = heard.append
    assert space.read(0x100) == 0x2E | 1 << 16 | 0x10C << 20
    assert space.read(0x10C) == 0x2E | 1 << 16
    assert space.extended_at(second) == 0x10C
    assert space.read(0x104) == 0x1111_1111
    space.write(0x105, 0xAB, 1)
    space.write(0x114, 0x77)
    assert (first.words[4], second.words[8], heard) == (0x1111_AB11, 0x77, [Tampering.IDE_CONTROL])
    space.write(0x100, 0)  # a header stays
    assert space.read(0x100) == 0x2E | 1 << 16 | 0x10C << 20
    assert space.read(0x200) == 0


@pytest.mark.parametrize("bars", [{1: 0x1000}, {0: 0x800}, {0: 0x3000}, {6: 0x1000}])
def test_a_bar_that_cannot_be_is_refused(bars: dict[int, int]) -> None:
    with pytest.raises(ValueError, match="BAR"):
        ConfigurationSpace(IDENTITY, bars)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-8, 5000), st.integers(-1, 1 << 33), st.sampled_from((0, 1, 2, 3, 4, 8))), max_size=20
    )
)
def test_any_access_is_answered(accesses: list[tuple[int, int, int]]) -> None:
    one, _, _ = function()
    for offset, value, width in accesses:
        one.space.write(offset, value, width)
        assert 0 <= one.space.read(offset, width) < 1 << 8 * max(1, width)
    assert one.space.read(0) == 0x1234_1AF4
