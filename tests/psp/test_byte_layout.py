"""Records are read and written where their tables say."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psp import command_buffers as buffers
from psp import swap_buffers, update_buffers
from psp.byte_layout import ByteLayout
from psp.commands import COMMANDS, LegacyCommand, SnpCommand, command_name, measured_bytes
from psp.tsm import exchange_records, status_records, tio_buffers

LAYOUTS = [
    one
    for module in (buffers, swap_buffers, update_buffers, tio_buffers, status_records, exchange_records)
    for _, one in inspect.getmembers(module, inspect.isclass)
    if issubclass(one, ByteLayout) and one.SIZE
]
SIZES = {
    LegacyCommand.INIT: 0x14, LegacyCommand.PLATFORM_STATUS: 0x0C, LegacyCommand.ACTIVATE: 0x08,
    LegacyCommand.DEACTIVATE: 0x04, LegacyCommand.DECOMMISSION: 0x04, LegacyCommand.LAUNCH_FINISH: 0x04,
    LegacyCommand.GUEST_STATUS: 0x0D, LegacyCommand.LAUNCH_START: 0x24, LegacyCommand.LAUNCH_UPDATE_DATA: 0x14,
    LegacyCommand.LAUNCH_MEASURE: 0x14, LegacyCommand.LAUNCH_UPDATE_VMSA: 0x14, LegacyCommand.LAUNCH_SECRET: 0x34,
    LegacyCommand.ATTESTATION: 0x24, LegacyCommand.DBG_DECRYPT: 0x1C, LegacyCommand.DBG_ENCRYPT: 0x1C,
    LegacyCommand.PEK_CSR: 0x0C, LegacyCommand.PEK_CERT_IMPORT: 0x1C, LegacyCommand.PDH_CERT_EXPORT: 0x1C,
    LegacyCommand.INIT_EX: 0x24, LegacyCommand.COPY: 0x18, LegacyCommand.SEND_START: 0x44,
    LegacyCommand.SEND_UPDATE_DATA: 0x34, LegacyCommand.SEND_UPDATE_VMSA: 0x34, LegacyCommand.SEND_FINISH: 0x04,
    LegacyCommand.SEND_CANCEL: 0x04, LegacyCommand.RECEIVE_START: 0x24, LegacyCommand.RECEIVE_UPDATE_DATA: 0x34,
    LegacyCommand.RECEIVE_UPDATE_VMSA: 0x34, LegacyCommand.RECEIVE_FINISH: 0x04,
    LegacyCommand.GET_ID: 0x0C, SnpCommand.INIT_EX: 0x40, SnpCommand.SHUTDOWN_EX: 0x08,
    SnpCommand.PLATFORM_STATUS: 0x08, SnpCommand.GCTX_CREATE: 0x08, SnpCommand.ACTIVATE: 0x0C,
    SnpCommand.DECOMMISSION: 0x08, SnpCommand.GUEST_STATUS: 0x10, SnpCommand.LAUNCH_START: 0x30,
    SnpCommand.LAUNCH_UPDATE: 0x20, SnpCommand.LAUNCH_FINISH: 0x40, SnpCommand.PAGE_RECLAIM: 0x08,
    SnpCommand.PAGE_UNSMASH: 0x08, SnpCommand.FEATURE_INFO: 0x10, SnpCommand.GUEST_REQUEST: 0x18,
    SnpCommand.DBG_DECRYPT: 0x18, SnpCommand.DBG_ENCRYPT: 0x18,
    SnpCommand.PAGE_MD_INIT: 0x10, SnpCommand.PAGE_SWAP_OUT: 0x30, SnpCommand.PAGE_SWAP_IN: 0x30,
    SnpCommand.PAGE_MOVE: 0x20, SnpCommand.CONFIG: 0x40, SnpCommand.COMMIT: 0x04, SnpCommand.VLEK_LOAD: 0x10,
    LegacyCommand.RING_BUFFER: 0x28, LegacyCommand.ACTIVATE_EX: 0x18, SnpCommand.ACTIVATE_EX: 0x20,
    LegacyCommand.SWAP_OUT: 0x28, LegacyCommand.SWAP_IN: 0x20, SnpCommand.VERIFY_MITIGATION: 0x40,
    LegacyCommand.DOWNLOAD_FIRMWARE: 0x0C, SnpCommand.DOWNLOAD_FIRMWARE_EX: 0x18,
    SnpCommand.TIO_STATUS: 16, SnpCommand.TIO_INIT: 16, SnpCommand.TIO_DEV_CREATE: 32, SnpCommand.TIO_DEV_RECLAIM: 16,
    SnpCommand.TIO_DEV_CONNECT: 80, SnpCommand.TIO_DEV_DISCONNECT: 48, SnpCommand.TIO_DEV_STATUS: 32,
    SnpCommand.TIO_DEV_MEASUREMENTS: 80, SnpCommand.TIO_DEV_CERTIFICATES: 48, SnpCommand.TIO_TDI_CREATE: 48,
    SnpCommand.TIO_TDI_RECLAIM: 32, SnpCommand.TIO_TDI_BIND: 80, SnpCommand.TIO_TDI_UNBIND: 64,
    SnpCommand.TIO_TDI_REPORT: 64, SnpCommand.TIO_TDI_STATUS: 64, SnpCommand.TIO_GUEST_REQUEST: 80,
    SnpCommand.TIO_ASID_FENCE_CLEAR: 32, SnpCommand.TIO_ASID_FENCE_STATUS: 32, SnpCommand.TIO_TDI_INFO: 48,
    SnpCommand.TIO_ROLL_KEY: 48,
}  # fmt: skip
"""Firmware ABI sheet, sections 3 and 4; SWAP_*: migration sheet, section 1; TIO_*: SEV-TIO sheet, section 3."""


@given(st.lists(st.binary(min_size=0x20, max_size=0x20), min_size=1, max_size=4), st.booleans())
@settings(max_examples=25)
def test_many_records_are_read_as_each_alone(records: list[bytes], clean: bool) -> None:
    layout = buffers.SnpLaunchUpdate
    if clean:
        records = [layout.parse(one).pack() for one in records]
    assert layout.values_of_all(records) == [layout.values(one) for one in records]
    assert layout.reserved_of_all_are_zero(records) is all(layout.reserved_is_zero(one) for one in records)
    assert not layout.reserved_of_all_are_zero([*records, b""])


def test_buffers_have_the_sizes_of_the_specification() -> None:
    assert {command: row.layout.SIZE for command, row in COMMANDS.items() if row.layout is not None} == SIZES


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_fields_lie_in_order_inside_the_record(layout: type[ByteLayout]) -> None:
    end = 0
    for field in dataclasses.fields(layout):
        assert field.metadata["offset"] >= end
        end = field.metadata["offset"] + field.metadata["width"]
    assert end <= layout.SIZE


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_what_is_packed_is_parsed_again(layout: type[ByteLayout], data: st.DataObject) -> None:
    octets = data.draw(st.binary(min_size=layout.SIZE, max_size=layout.SIZE + 8))
    record = layout.parse(octets)
    assert len(record.pack()) == layout.SIZE
    assert layout.parse(record.pack()) == record
    covered = {
        at
        for field in dataclasses.fields(layout)
        for at in range(field.metadata["offset"], field.metadata["offset"] + field.metadata["width"])
    }
    assert record.pack() == bytes(octets[at] if at in covered else 0 for at in range(layout.SIZE))


def test_records_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 8 bytes, got 7"):
        buffers.Activate.parse(bytes(7))
    with pytest.raises(OverflowError):
        buffers.Activate(handle=1 << 32).pack()
    with pytest.raises(OverflowError, match="gosvw: expected at most 16 bytes, got 17"):
        buffers.SnpLaunchStart(gosvw=bytes(17)).pack()


def test_two_layouts_of_one_name_are_two_layouts() -> None:
    other = dataclasses.make_dataclass("Handle", [("wide", int, buffers.at(0, 8))], bases=(ByteLayout,), frozen=True)
    other.SIZE = 8  # type: ignore[attr-defined]
    assert buffers.Handle(7).pack() == bytes([7, 0, 0, 0])
    assert other(7).pack() == bytes([7, 0, 0, 0, 0, 0, 0, 0])  # type: ignore[call-arg,attr-defined]


def test_a_launch_command_s_bytes_are_known_from_its_buffer() -> None:
    assert measured_bytes(SnpCommand.LAUNCH_UPDATE, b"") == 4096
    assert measured_bytes(LegacyCommand.LAUNCH_UPDATE_VMSA, b"") == 4096
    assert measured_bytes(LegacyCommand.LAUNCH_UPDATE_DATA, buffers.LaunchUpdateData(1, 0, 48).pack()) == 48
    assert measured_bytes(LegacyCommand.LAUNCH_UPDATE_DATA, b"") == 0
    assert measured_bytes(LegacyCommand.LAUNCH_START, bytes(64)) == 0


def test_commands_have_the_specification_s_names() -> None:
    assert command_name(0xA1) == "SNP_LAUNCH_UPDATE"
    assert command_name(0x31) == "LAUNCH_UPDATE_DATA"
    assert command_name(0x10) == "command 0x10"
