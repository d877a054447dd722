"""Between two givings of a command the host changes what it had: firmware looks again, and goes by what is there."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from asking_guest import sealed
from device_bench import (
    ANSWER,
    CONTEXT,
    GUEST_DEVICE_ID,
    MESSAGE,
    MMIO,
    MMIO_BYTES,
    OTHER_GCTX,
    OUTPUT,
    PORT,
    RID,
    SCATTER,
    STATUS,
    TDI_CONTEXT,
    Bench,
    bound,
    connected,
    running,
    with_guest,
)
from toy_machine import PAGE, context

from psp import tsm
from psp.commands import SnpCommand
from psp.status import Status
from psp.system_bus import RmpEntry
from psp.tsm.contexts import Binding
from tio.device_identity import CardKind, device_identity
from tio.spdm.algorithms import BaseHash
from tio.spdm.certificate_chain import pack_chain
from tio.tdisp import InterfaceId

C = SnpCommand
CERTIFICATES = C.TIO_DEV_CERTIFICATES


def binding_of(bench: Bench) -> Binding:
    found = bench.machine.psp.snp.tsm.contexts.devices[CONTEXT].tdis[TDI_CONTEXT].binding
    assert found is not None
    return found


def change_report(bench: Bench, **changes: int) -> None:
    """Have the device's report say something else of its first range, as firmware remembers it."""
    binding = binding_of(bench)
    first, *rest = binding.report.ranges
    report = replace(binding.report, ranges=(replace(first, **changes), *rest))
    tdi = bench.machine.psp.snp.tsm.contexts.devices[CONTEXT].tdis[TDI_CONTEXT]
    tdi.binding = replace(binding, report=report)


@pytest.mark.parametrize("second", [OUTPUT + PAGE, CONTEXT], ids=["not lent", "a context's"])
def test_every_page_of_a_buffer_is_looked_at_not_the_first_alone(second: int) -> None:
    bench = connected()
    bench.lay_buffers()
    bench.machine.bus.write(OUTPUT, tsm.BufferHeader(2 * PAGE).pack())
    bench.machine.bus.write(SCATTER, tsm.pack_list([tsm.data_page(OUTPUT), tsm.data_page(second)]))
    expected = Status.INVALID_PARAM if second == CONTEXT else Status.INVALID_PAGE_STATE
    before = bench.snapshot()
    order = bench.order(tsm.DeviceOrder, output=tsm.scatter_page(SCATTER))
    assert bench.give(CERTIFICATES, order) == expected
    assert bench.snapshot()["snp.tsm"] == before["snp.tsm"]


def test_pages_that_are_taken_away_while_a_command_waits_are_missed() -> None:
    bench = connected()
    bench.lay_buffers()
    order = bench.order(tsm.DeviceOrder)
    assert bench.give(CERTIFICATES, order) == Status.SPDM_REQUEST
    bench.carry()
    bench.take(OUTPUT)
    assert bench.give(CERTIFICATES, order) == Status.INVALID_PAGE_STATE
    bench.lend(OUTPUT)
    assert bench.run(CERTIFICATES, order) == Status.SUCCESS


def test_a_status_goes_nowhere_when_its_page_was_taken_away() -> None:
    bench = bound()
    bench.lend(STATUS)
    order = bench.order(tsm.TdiStatus, tdi=TDI_CONTEXT, address=STATUS)
    assert bench.give(C.TIO_TDI_STATUS, order) == Status.SPDM_REQUEST
    bench.carry()
    bench.take(STATUS)
    before = bench.machine.bus.read(STATUS, PAGE)
    assert bench.give(C.TIO_TDI_STATUS, order) == Status.INVALID_PAGE_STATE
    assert bench.machine.bus.read(STATUS, PAGE) == before
    assert bench.device_status().flags == 0


def test_an_answer_to_a_guest_goes_nowhere_when_its_page_was_taken_away() -> None:
    bench = running()
    change_report(bench, attributes=8)
    guest = context(bench.machine)
    write = struct.pack("<HxxHHI4x", GUEST_DEVICE_ID, 4, 0, 1)
    bench.machine.bus.write(MESSAGE, sealed(guest.vmpck(0), 1, 23, write).ljust(PAGE, b"\0"))
    bench.lend(ANSWER)
    order = bench.guest_order()
    assert bench.give(C.TIO_GUEST_REQUEST, order) == Status.SPDM_REQUEST
    bench.carry()
    bench.take(ANSWER)
    assert bench.give(C.TIO_GUEST_REQUEST, order) == Status.INVALID_PAGE_STATE
    assert bench.machine.bus.read(ANSWER, PAGE) == bytes(PAGE)
    assert context(bench.machine).message_counts[0] == 0


def test_a_command_that_was_ended_by_force_leaves_a_session_that_nobody_uses() -> None:
    """Its answer is still on the way: the next one would not be the next message."""
    bench = running()
    bench.lay_buffers()
    assert bench.give(C.TIO_TDI_REPORT, bench.tdi_order()) == Status.SPDM_REQUEST
    assert bench.unbind(flags=tsm.FORCE) == Status.SUCCESS
    assert bench.give(CERTIFICATES, bench.order(tsm.DeviceOrder)) == Status.ERR_IN_DEV_CONN
    # What waits for something else is left to go on.
    bench = running()
    bench.lay_buffers()
    assert bench.give(CERTIFICATES, bench.order(tsm.DeviceOrder)) == Status.SPDM_REQUEST
    assert bench.unbind(flags=tsm.FORCE) == Status.SUCCESS
    bench.carry()
    assert bench.run(CERTIFICATES, bench.order(tsm.DeviceOrder)) == Status.SUCCESS


def test_a_tdi_that_is_being_bound_is_not_let_go_in_the_name_of_another_guest() -> None:
    bench = with_guest()
    bench.another_guest()
    assert bench.give(C.TIO_TDI_BIND, bench.bind_order()) == Status.SPDM_REQUEST
    assert bench.unbind(flags=tsm.FORCE, gctx=OTHER_GCTX) == Status.INVALID_TDI
    assert bench.device_status().flags == 3
    assert bench.unbind(flags=tsm.FORCE) == Status.SUCCESS
    assert bench.device_status().flags == 0


def test_one_page_is_not_a_device_s_context_and_a_tdi_s() -> None:
    bench = with_guest()
    create = tsm.DeviceCreate(32, 0, TDI_CONTEXT, RID + 8, PORT)
    assert bench.give(C.TIO_DEV_CREATE, create) == Status.IN_USE
    tdi = tsm.TdiCreate(48, 0, CONTEXT, CONTEXT, InterfaceId(RID + 1).pack())
    assert bench.give(C.TIO_TDI_CREATE, tdi) == Status.IN_USE
    assert bench.device_status().tdi_count == 1


def test_a_chain_that_is_another_inside_of_the_session_ends_the_connection() -> None:
    bench = connected()
    bench.lay_buffers()
    other = device_identity(CardKind.NVME, "another", 1)
    bench.card._behind_mailbox.connection._chains[0] = pack_chain(BaseHash.SHA_384.value, other.certificates)
    order = bench.order(tsm.DeviceOrder)
    assert bench.run(CERTIFICATES, order) == Status.DEV_CERT_CHANGED
    assert bench.run(CERTIFICATES, order) == Status.ERR_IN_DEV_CONN


def test_a_range_beyond_what_the_rmp_covers_is_no_guest_s() -> None:
    bench = running()
    first = MMIO + MMIO_BYTES - PAGE + binding_of(bench).offset_bytes >> 12
    change_report(bench, first_page=first, pages=4)
    bench.machine.bus.rmp_set(MMIO + MMIO_BYTES - PAGE, RmpEntry(assigned=True, gpa=0x8000_0000, asid=2))
    request = struct.pack("<H14xQIIHH12x", GUEST_DEVICE_ID, 0x8000_0000, 4, 0, 1, 0)
    answer = tsm.MmioValidateResponse.parse(bench.guest_hears(21, request))
    assert (answer.status, answer.flags) == (tsm.MmioValidateStatus.NOT_ASSIGNED, 0)
