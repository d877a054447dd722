"""A function's memory, its interrupts, and what a TDI makes of both."""

from __future__ import annotations

import hashlib

import pytest
from toy_function import BAR0, BAR2, REGIONS, Bus, function, program

from tio.ide import IdeStream
from tio.pci import Command, DeviceControl, MsixControl, PciFunction, Register
from tio.pci.msix import ENTRY_BYTES
from tio.tdisp import ErrorCode, LockFlags, LockRequest, Tampering, Tdi, TdispError, TdiState

STREAM, SESSION, OFFSET = 9, 1, -0x8_0000_0000
ONES = 0xFFFF_FFFF


def with_tdi(flags: LockFlags = LockFlags.LOCK_MSIX, offset: int = OFFSET) -> tuple[PciFunction, Tdi]:
    """A function whose TDI runs."""
    one, _, _ = function()
    one.tdi = Tdi(one, lambda length: hashlib.sha256(b"nonce").digest()[:length])
    one.space.changed = one.tdi.tamper
    one.tdi.start(one.tdi.lock_interface(SESSION, LockRequest(flags, STREAM, offset), IdeStream(STREAM)))
    return one, one.tdi


def trusted(one: PciFunction, address: int, value: int) -> bool:
    return one.store(address, value, 4, tee=True, stream_id=STREAM)


def test_memory_answers_where_it_was_programmed_and_enabled() -> None:
    one, device, _ = function()
    assert one.store(BAR0 + 0x10, 0xABCD, 4)
    assert one.load(BAR0 + 0x10, 4) == 0xABCD
    assert device.kept == {(0, 0x10): 0xABCD}
    for address in (BAR0 - 4, BAR0 + 0x6000, BAR0 + 0x5FFE, BAR2 + 0x2000, 0):
        assert one.load(address, 4) == ONES
        assert not one.store(address, 1, 4)
    one.space.write(Register.COMMAND, 0, 2)
    assert one.load(BAR0 + 0x10, 4) == ONES


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda one: one.space.write(Register.COMMAND, Command.MEMORY_SPACE, 2), "Enable"),
        (lambda one: one.space.write(Register.COMMAND, Command.BUS_MASTER, 2), "Enable"),
        (lambda one: one.space.write(0x14, 0) or one.space.write(0x10, 0), "not programmed"),
        (lambda one: one.space.write(0x1C, 0x10) or one.space.write(0x18, 0x2000), "overlap"),
        (lambda one: one.space.write(Register.EXPANSION_ROM, 1), "ROM"),
        (lambda one: one.space.write(Register.DEVICE_CONTROL, DeviceControl.PHANTOM_FUNCTIONS, 2), "phantom"),
    ],
)
def test_a_configuration_that_cannot_be_locked_is_refused(change: object, why: str) -> None:
    one, _, _ = function()
    change(one)  # type: ignore[operator]
    tdi = Tdi(one, bytes)
    with pytest.raises(TdispError, match=why) as refused:
        tdi.lock_interface(SESSION, LockRequest(0, STREAM), IdeStream(STREAM))
    assert refused.value.code is ErrorCode.INVALID_DEVICE_CONFIGURATION
    assert tdi.state is TdiState.CONFIG_UNLOCKED


def test_the_report_says_where_each_region_is_moved_by_the_offset() -> None:
    _, tdi = with_tdi()
    found = [(one.first_page, one.pages, one.attributes, one.range_id) for one in tdi.report().ranges]
    bars = {0: BAR0, 2: BAR2}
    expected = [
        ((bars[one.bar] + one.offset + OFFSET) >> 12, one.length >> 12, one.attributes, one.bar) for one in REGIONS
    ]
    assert found == expected
    assert tdi.report().specific == b"a toy"


@pytest.mark.parametrize("offset", [0, OFFSET, 0x7000_0000])
def test_a_running_interface_keeps_others_out_of_its_memory(offset: int) -> None:
    one, _ = with_tdi(offset=offset)
    assert trusted(one, BAR0, 7)
    assert one.load(BAR0, 4) == ONES
    assert not one.store(BAR0, 8, 4)
    assert not one.store(BAR0, 8, 4, tee=True, stream_id=STREAM + 1)
    assert one.load(BAR0, 4, tee=True, stream_id=STREAM) == 7
    assert one.store(BAR0 + 0x4000, 5, 4)  # a region for everybody
    assert one.load(BAR0 + 0x4000, 4) == 5
    assert one.refused == 3


def test_what_the_host_changes_takes_a_running_interface_to_error_and_its_data_is_gone() -> None:
    for offset, value, width in ((0x14, 0x30, 4), (Register.COMMAND, 0, 2), (Register.DEVICE_CONTROL, 1 << 15, 2)):
        one, tdi = with_tdi()
        trusted(one, BAR0, 7)
        one.space.write(offset, value, width)
        assert tdi.state is TdiState.ERROR
        program(one)
        assert one.load(BAR0, 4, tee=True, stream_id=STREAM) == ONES
        tdi.stop()
        assert one.load(BAR0, 4) == 0


def set_vector(one: PciFunction, number: int, address: int, data: int, **packet: object) -> None:
    at = BAR2 + number * ENTRY_BYTES
    for offset, value in ((0, address & ONES), (4, address >> 32), (8, data), (12, 0)):
        one.store(at + offset, value, 4, **packet)  # type: ignore[arg-type]


def test_a_vector_writes_its_data_to_its_address_once_it_is_unmasked() -> None:
    one, _, _ = function()
    bus = Bus()
    set_vector(one, 1, 0xFEE0_0000, 0x41)
    assert not one.interrupt(1, bus)  # MSI-X is off
    one.space.write(Register.MSIX_CONTROL, MsixControl.ENABLE, 2)
    assert one.interrupt(1, bus)
    assert bus.written == [(0xFEE0_0000, bytes.fromhex("41000000"))]
    assert not one.interrupt(2, bus)  # masked since reset
    assert one.load(BAR2 + 0x1000, 4) == 1 << 2
    one.interrupts = bus
    one.space.write(Register.MSIX_CONTROL, MsixControl.ENABLE | MsixControl.FUNCTION_MASK, 2)
    set_vector(one, 2, 0xFEE0_1000, 0x42)
    assert len(bus.written) == 1  # the whole function is masked
    one.space.write(Register.MSIX_CONTROL, MsixControl.ENABLE, 2)
    assert bus.written[-1] == (0xFEE0_1000, bytes.fromhex("42000000"))
    assert (one.load(BAR2 + 0x1000, 4), one.interrupt(9, bus)) == (0, False)
    bus.refuses = True
    assert not one.interrupt(1, bus)
    assert one.msix.lost == 1
    assert not one.store(BAR2 + 0x1000, 1, 4)  # pending bits are read-only


@pytest.mark.parametrize("locked", [True, False])
def test_the_vector_table_is_the_guests_alone_where_it_was_locked(locked: bool) -> None:
    one, tdi = with_tdi(LockFlags.LOCK_MSIX if locked else LockFlags(0))
    set_vector(one, 0, 0xFEE0_0000, 0x66)
    taken = one.load(BAR2 + 8, 4, tee=locked, stream_id=STREAM if locked else None) == 0x66
    assert taken is not locked
    assert tdi.state is TdiState.RUN
    if locked:
        set_vector(one, 0, 0xFEE0_0000, 0x55, tee=True, stream_id=STREAM)
        assert one.load(BAR2 + 8, 4, tee=True, stream_id=STREAM) == 0x55
        one.space.write(Register.MSIX_CONTROL, MsixControl.ENABLE, 2)
        assert (tdi.state, tdi.why) == (TdiState.ERROR, Tampering.MSIX)
