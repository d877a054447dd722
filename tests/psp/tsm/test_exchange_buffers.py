"""What a host may get wrong in the buffers of an exchange and in the pages of contexts."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from device_bench import (
    CONTEXT,
    OUTPUT,
    PORT,
    REQUEST,
    RESPONSE,
    RID,
    SCATTER,
    SCRATCH,
    STATUS,
    TDI_CONTEXT,
    Bench,
    connected,
    new_bench,
    with_guest,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_machine import FIRMWARE, GCTX, MEMORY_BYTES, PAGE, UNCOVERED

from psp import command_buffers as snp_buffers
from psp import tsm
from psp.commands import SnpCommand
from psp.status import Status
from psp.system_bus import LARGE_PAGE_BYTES, RmpEntry
from psp.tsm.exchange_buffer import OUTPUT as OUTPUT_KIND
from tio.tdisp import InterfaceId, parse_report

CERTIFICATES = SnpCommand.TIO_DEV_CERTIFICATES
COMMAND_PAGE = 0x1000
GUESTS = RmpEntry(assigned=True, gpa=0x5000, asid=2, validated=True)
A, L, S, P, X = (
    Status.INVALID_ADDRESS, Status.INCORRECT_BUFFER_LENGTH, Status.INVALID_PAGE_STATE,
    Status.INVALID_PARAM, Status.EXPAND_BUFFER_LENGTH_REQUEST,
)  # fmt: skip


@cache
def shared() -> Bench:
    """A connected device; every test leaves it as it was."""
    return connected()


def fresh(bench: Bench) -> Bench:
    """Buffers as they must be, and nothing waits."""
    device = bench.machine.psp.snp.tsm.contexts.devices[CONTEXT]
    if device.pending is not None:
        device.pending.steps.close()
        device.pending = None
    bench.machine.bus.rmp.clear()
    bench.lay_buffers()
    bench.lend(CONTEXT)
    return bench


@pytest.fixture
def bench() -> Bench:
    return fresh(shared())


def refused(bench: Bench, command: int, order: tsm.TioOrder) -> int:
    """The status of a command that must leave everything as it was."""
    bench.machine.bus.write(COMMAND_PAGE, order.pack())
    before = bench.snapshot()
    status = int(bench.machine.psp.submit(command, COMMAND_PAGE))
    assert bench.snapshot() == before
    return status


ADDRESSES = {
    "null": (0, A),
    "a list that is null": (1, A),
    "off page borders": (OUTPUT | 4, P),
    "bit 52": (OUTPUT | 1 << 52, P),
    "bit 63": (OUTPUT | 1 << 63, P),
    "beyond memory": (MEMORY_BYTES, A),
    "all ones": ((1 << 52) - PAGE, A),
    "large, off its border": (OUTPUT | 2, A),
    "large beyond memory": (MEMORY_BYTES | 2, A),
    "the host's": (OUTPUT + 9 * PAGE, S),
    "without an entry": (UNCOVERED, S),
    "a large list": (SCATTER | 3, P),
    "a context's": (CONTEXT, L),
}


@pytest.mark.parametrize("name", ADDRESSES)
@pytest.mark.parametrize("field", ["request", "scratch", "output"])
def test_a_buffer_that_firmware_writes_lies_where_it_was_lent(bench: Bench, field: str, name: str) -> None:
    address, expected = ADDRESSES[name]
    order = bench.order(tsm.DeviceOrder, **{field: address})
    if address == 0 and field != "request":
        # Scratch space is not used, and where a result goes may come later.
        assert bench.give(CERTIFICATES, order) == Status.SPDM_REQUEST
        return
    assert refused(bench, CERTIFICATES, order) == expected


@pytest.mark.parametrize(
    "entry", [GUESTS, RmpEntry(assigned=True), replace(FIRMWARE, gpa=GCTX), RmpEntry(immutable=True)]
)
@pytest.mark.parametrize("page", [REQUEST, SCRATCH, OUTPUT])
def test_no_page_of_anybody_else_is_written(bench: Bench, page: int, entry: RmpEntry) -> None:
    bench.machine.bus.rmp_set(page, entry)
    assert refused(bench, CERTIFICATES, bench.order(tsm.DeviceOrder)) == S


@pytest.mark.parametrize(
    "fields",
    [
        {"scratch": REQUEST}, {"output": REQUEST}, {"output": SCRATCH}, {"response": REQUEST}, {"response": OUTPUT},
        {"response": SCRATCH},
    ],
    ids=str,
)  # fmt: skip
def test_buffers_do_not_lie_on_each_other(bench: Bench, fields: dict[str, int]) -> None:
    assert refused(bench, CERTIFICATES, bench.order(tsm.DeviceOrder, **fields)) == P


@pytest.mark.parametrize("page", [REQUEST, SCRATCH, OUTPUT, RESPONSE])
@pytest.mark.parametrize("capacity", [0, 63, 64, PAGE - 1, PAGE + 1, 2 * PAGE, 0xFFFF_FFFF])
def test_a_capacity_that_the_pages_have_not_is_refused(bench: Bench, page: int, capacity: int) -> None:
    bench.machine.bus.write(page, tsm.BufferHeader(capacity).pack())
    assert refused(bench, CERTIFICATES, bench.order(tsm.DeviceOrder)) == L


def test_more_than_the_longest_buffer_is_refused_and_costs_nothing(bench: Bench) -> None:
    longest = OUTPUT_KIND.most_bytes
    pages = [tsm.data_page(0xA0_0000 + at * PAGE) for at in range(longest // PAGE + 1)]
    bench.machine.bus.write(SCATTER, tsm.pack_list(pages))
    bench.lend(*pages)
    order = bench.order(tsm.DeviceOrder, output=tsm.scatter_page(SCATTER))
    for capacity, expected in ((longest + PAGE, L), (longest, Status.SPDM_REQUEST)):
        bench.machine.bus.write(pages[0], tsm.BufferHeader(capacity).pack())
        assert bench.give(CERTIFICATES, order) == expected


LISTS = {
    "empty": (tsm.pack_list([]), L),
    "itself": (tsm.pack_list([tsm.scatter_page(SCATTER)]), P),
    "a list": (tsm.pack_list([tsm.data_page(OUTPUT), tsm.scatter_page(SCATTER + PAGE)]), P),
    "a page twice": (tsm.pack_list([tsm.data_page(OUTPUT)] * 2), P),
    "a page in a large one": (tsm.pack_list([OUTPUT, OUTPUT // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES | 2]), P),
    "null": (tsm.pack_list([tsm.data_page(OUTPUT), 0]), A),
    "reserved bits": (tsm.pack_list([tsm.data_page(OUTPUT) | 8]), P),
    "no end": (struct.pack("<512Q", *range(0x1_0000, 0x1_0000 + 512 * PAGE, PAGE)), L),
    "beyond memory": (tsm.pack_list([tsm.data_page(MEMORY_BYTES)]), A),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_pages_ends_has_no_lists_in_it_and_names_each_page_once(bench: Bench, name: str) -> None:
    data, expected = LISTS[name]
    bench.machine.bus.write(SCATTER, data)
    order = bench.order(tsm.DeviceOrder, output=tsm.scatter_page(SCATTER))
    assert refused(bench, CERTIFICATES, order) == expected


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=8), st.integers(0, (1 << 64) - 1))
def test_any_words_in_a_list_and_any_address_get_a_status(words: list[int], address: int) -> None:
    bench = shared()
    bench.machine.bus.write(SCATTER, struct.pack(f"<{len(words)}Q", *words))
    for output in (tsm.scatter_page(SCATTER), address):
        fresh(bench)
        status = bench.give(CERTIFICATES, bench.order(tsm.DeviceOrder, output=output))
        assert status in {A, L, S, P, Status.SPDM_REQUEST}


def test_a_buffer_of_two_mebibytes_is_one_page() -> None:
    bench = connected()
    large = 0x80_0000
    bench.machine.bus.rmp_set(large, replace(FIRMWARE, large=True))
    bench.machine.bus.write(large, tsm.BufferHeader(OUTPUT_KIND.most_bytes).pack())
    order = bench.order(tsm.DeviceOrder, output=tsm.data_page(large, large=True))
    assert bench.run(CERTIFICATES, order) == Status.SUCCESS
    assert bench.machine.bus.read(large + 64, 4) == bytes((4, 0, 0, 0))


def test_a_result_that_does_not_fit_is_kept_until_there_is_room() -> None:
    bench = with_guest()
    bench.card.function._specific = b"\5" * 5000
    assert bench.bind() == Status.SUCCESS
    bench.lay_buffers()
    bench.machine.bus.write(OUTPUT, tsm.BufferHeader(PAGE, payload=32).pack())
    order, command = bench.tdi_order(), SnpCommand.TIO_TDI_REPORT
    assert bench.run(command, order) == X
    header = tsm.BufferHeader.parse(bench.machine.bus.read(OUTPUT, 64))
    assert (header.capacity, header.payload) == (2 * PAGE, 0)
    # The same again asks again, and another command does not come between.
    bench.machine.bus.write(OUTPUT, tsm.BufferHeader(PAGE).pack())
    assert bench.give(command, order) == X
    assert bench.give(CERTIFICATES, bench.order(tsm.DeviceOrder)) == Status.IN_USE
    assert bench.give(command, bench.tdi_order(gctx=GCTX + PAGE)) == P
    bench.lay_buffers(output_bytes=header.capacity)
    pages = [OUTPUT, OUTPUT + PAGE]
    bench.machine.bus.write(SCATTER, tsm.pack_list([tsm.data_page(one) for one in pages]))
    assert bench.give(command, bench.tdi_order(output=tsm.scatter_page(SCATTER))) == Status.SUCCESS
    blob = bench.result_in(pages)
    assert parse_report(blob).specific == b"\5" * 5000
    assert bench.tdi_info().report_digest == hashlib.sha384(blob).digest()
    assert bench.device_status().flags == 0


def test_a_result_without_a_place_to_go_waits_for_one() -> None:
    bench = connected()
    bench.lay_buffers()
    order = bench.order(tsm.DeviceOrder, output=0)
    assert bench.run(CERTIFICATES, order) == A
    assert bench.give(CERTIFICATES, replace(order, output=OUTPUT)) == Status.SUCCESS
    assert bench.result()[0].object_id == tsm.ObjectId.CERTIFICATES


# Contexts.


@pytest.mark.parametrize(
    ("address", "entry", "expected"),
    [
        (0, None, A),
        (MEMORY_BYTES, None, A),
        (UNCOVERED, None, A),
        (CONTEXT | 8, FIRMWARE, P),
        (CONTEXT, None, S),
        (CONTEXT, GUESTS, S),
        (CONTEXT, replace(FIRMWARE, gpa=GCTX), S),
        (CONTEXT, replace(FIRMWARE, vmsa=True), S),
        (0x80_0000, replace(FIRMWARE, large=True), Status.INVALID_PAGE_SIZE),
        (0x80_0000 | 2, replace(FIRMWARE, large=True), L),
    ],
)
def test_a_context_is_made_of_one_lent_page(address: int, entry: RmpEntry | None, expected: int) -> None:
    bench = bare()
    bench.machine.bus.rmp.clear()
    if entry is not None:
        bench.machine.bus.rmp_set(address & ~0xFFF, entry)
    order = tsm.DeviceCreate(32, 0, address, RID, PORT)
    assert refused(bench, SnpCommand.TIO_DEV_CREATE, order) == expected


@cache
def bare() -> Bench:
    """No device yet."""
    return new_bench()


@pytest.mark.parametrize(
    "fields",
    [{"requester": RID | 1}, {"requester": RID | 7}, {"root_port": PORT + 1}, {"segment": 1}, {"root_port": 0}],
    ids=str,
)
def test_a_device_is_function_0_below_a_root_port_that_there_is(fields: dict[str, int]) -> None:
    bench = bare()
    bench.lend(CONTEXT)
    order = tsm.DeviceCreate(**({"length": 32, "device": CONTEXT, "requester": RID, "root_port": PORT} | fields))
    assert refused(bench, SnpCommand.TIO_DEV_CREATE, order) == P


def test_a_device_has_one_context_and_a_page_is_one_context_s() -> None:
    bench = new_bench()
    assert bench.create() == Status.SUCCESS
    bench.lend(CONTEXT + PAGE)
    again = tsm.DeviceCreate(32, 0, CONTEXT + PAGE, RID, PORT)
    other = tsm.DeviceCreate(32, 0, CONTEXT, RID + 8, PORT)
    for order in (again, other):
        assert refused(bench, SnpCommand.TIO_DEV_CREATE, order) == Status.IN_USE


Loss = Callable[[Bench, int], None]


def reclaimed(bench: Bench, page: int) -> None:
    assert bench.machine.call(SnpCommand.PAGE_RECLAIM, snp_buffers.SnpPageReclaim(page).pack()) == 0


def made_the_guests(bench: Bench, page: int) -> None:
    bench.machine.bus.rmp_set(page, GUESTS)


def overwritten(bench: Bench, page: int) -> None:
    """By firmware itself, which the host has write a status there."""
    asked = snp_buffers.SnpAddress(page + 0x800).pack()
    assert bench.machine.call(SnpCommand.PLATFORM_STATUS, asked) == 0


def made_a_guest_context(bench: Bench, page: int) -> None:
    assert bench.machine.call(SnpCommand.GCTX_CREATE, snp_buffers.GuestContextPage(page).pack()) == 0


@pytest.mark.parametrize("lose", [reclaimed, made_the_guests, overwritten, made_a_guest_context])
def test_a_context_whose_page_is_lost_is_none_and_what_hung_on_it_is_let_go(lose: Loss) -> None:
    bench = with_guest()
    assert bench.bind() == Status.SUCCESS
    lose(bench, CONTEXT)
    for command, order in (
        (CERTIFICATES, bench.order(tsm.DeviceOrder)),
        (SnpCommand.TIO_DEV_DISCONNECT, bench.order(tsm.DeviceOrder, flags=tsm.FORCE)),
        (SnpCommand.TIO_TDI_UNBIND, bench.tdi_order(flags=tsm.FORCE)),
        (SnpCommand.TIO_DEV_RECLAIM, tsm.DeviceReclaim(16, 0, CONTEXT)),
    ):
        assert refused(bench, command, order) == Status.INVALID_DEV_CTX
    assert bench.trusted_io.bindings
    bench.lend(CONTEXT + 4 * PAGE)
    again = tsm.DeviceCreate(32, 0, CONTEXT + 4 * PAGE, RID, PORT)
    assert bench.give(SnpCommand.TIO_DEV_CREATE, again) == Status.SUCCESS
    assert not bench.trusted_io.bindings
    assert not bench.trusted_io.ports[0, PORT].port.streams[1].has_any_key()


@pytest.mark.parametrize("lose", [reclaimed, overwritten])
def test_a_tdi_whose_page_is_lost_is_none_and_another_context_takes_its_place(lose: Loss) -> None:
    bench = with_guest()
    assert bench.bind() == Status.SUCCESS
    lose(bench, TDI_CONTEXT)
    assert refused(bench, SnpCommand.TIO_TDI_UNBIND, bench.tdi_order(flags=1)) == Status.INVALID_TDI_CTX
    assert refused(bench, SnpCommand.TIO_DEV_DISCONNECT, bench.order(tsm.DeviceOrder)) == Status.IN_USE
    assert bench.create_tdi(TDI_CONTEXT + PAGE) == Status.SUCCESS
    assert not bench.trusted_io.bindings
    assert bench.device_status().tdi_count == 1


@pytest.mark.parametrize(
    ("interface", "expected"),
    [
        (InterfaceId(RID + 1).pack(), Status.SUCCESS),
        (InterfaceId(RID + 1, 0).pack(), Status.SUCCESS),
        (InterfaceId(RID + 1, 1).pack(), P),
        (b"\0\1\1" + bytes(9), P),
        (b"\0\1\0\2" + bytes(8), P),
        (b"\0\1\0\0" + bytes(7) + b"\1", P),
        (InterfaceId(RID).pack(), Status.IN_USE),
        (InterfaceId(RID, 0).pack(), Status.IN_USE),
    ],
)
def test_an_interface_is_of_the_device_s_segment_and_has_one_context(interface: bytes, expected: int) -> None:
    bench = with_guest()
    other = TDI_CONTEXT + PAGE
    bench.lend(other)
    order = tsm.TdiCreate(48, 0, CONTEXT, other, interface)
    if expected == Status.SUCCESS:
        assert bench.give(SnpCommand.TIO_TDI_CREATE, order) == expected
    else:
        assert refused(bench, SnpCommand.TIO_TDI_CREATE, order) == expected


def test_a_tdi_is_named_with_its_own_device() -> None:
    bench = with_guest()
    other = CONTEXT + 4 * PAGE
    bench.lend(other, STATUS)
    assert bench.give(SnpCommand.TIO_DEV_CREATE, tsm.DeviceCreate(32, 0, other, RID + 8, PORT)) == Status.SUCCESS
    order = tsm.TdiInfo(48, 0, other, TDI_CONTEXT, STATUS)
    assert refused(bench, SnpCommand.TIO_TDI_INFO, order) == Status.INVALID_TDI_CTX
    order = tsm.TdiInfo(48, 0, TDI_CONTEXT, TDI_CONTEXT, STATUS)
    assert refused(bench, SnpCommand.TIO_TDI_INFO, order) == Status.INVALID_DEV_CTX


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tc_mask": 0}, P),
        ({"tc_mask": 2}, P),
        ({"tc_mask": 3}, P),  # Two classes on one stream.
        ({"certificate_slot": 8}, P),
        ({"certificate_slot": 255}, P),
    ],
)
def test_a_connection_needs_class_0_a_stream_for_each_class_and_a_slot(fields: dict[str, int], expected: int) -> None:
    bench = new_bench()
    bench.create()
    bench.lay_buffers()
    ours = {"tc_mask": 1, "stream_ids": bytes((1, 1))}
    assert refused(bench, SnpCommand.TIO_DEV_CONNECT, bench.order(tsm.DeviceConnect, **(ours | fields))) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"lock_flags": 1 << 5}, P),
        ({"lock_flags": 1 << 15}, P),
        ({"run_flags": 2}, P),
        ({"gctx": 0}, Status.INVALID_GUEST),
        ({"gctx": CONTEXT}, Status.INVALID_GUEST),
        ({"gctx": GCTX + 8}, Status.INVALID_GUEST),
    ],
)
def test_a_lock_is_for_a_guest_and_with_flags_that_there_are(fields: dict[str, int], expected: int) -> None:
    bench = shared_tdi()
    assert refused(bench, SnpCommand.TIO_TDI_BIND, bench.bind_order(**fields)) == expected


@cache
def shared_tdi() -> Bench:
    """A TDI that is nobody's."""
    return with_guest()
