"""TIO_TDI_*: a TDI is a guest's from the lock on, runs when the host has it started, and nobody's after UNBIND."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from device_bench import (
    CONTEXT,
    GUEST_DEVICE_ID,
    MMIO,
    PORT,
    RID,
    STATUS,
    STREAM,
    TDI_CONTEXT,
    Bench,
    bound,
    connected,
    running,
    with_guest,
)
from toy_machine import GCTX, PAGE

from psp import command_buffers as snp_buffers
from psp import tsm
from psp.commands import SnpCommand
from psp.status import Status
from psp.system_bus import RmpEntry
from psp.tsm.mmio_pages import any_valid
from psp.tsm.trusted_io import TdiBinding
from tio.spdm import ResponderSettings
from tio.spdm.algorithms import BaseHash
from tio.spdm.capabilities import Capability
from tio.spdm.certificate_chain import pack_chain
from tio.spdm.device_personality import TEE_IO_CAPABILITIES
from tio.tdisp import LockFlags, Tampering, TdiState, parse_report

ASID = 2


def tdi_state(bench: Bench) -> int:
    bench.lend(STATUS)
    order = bench.order(tsm.TdiStatus, tdi=TDI_CONTEXT, address=STATUS)
    assert bench.run(SnpCommand.TIO_TDI_STATUS, order) == Status.SUCCESS
    return tsm.TdiStatusRecord.parse(bench.machine.bus.read(STATUS, tsm.TdiStatusRecord.SIZE)).state


def test_bind_locks_a_tdi_for_a_guest_and_ties_it_to_its_asid() -> None:
    bench = bound()
    assert bench.card.tdi.state is TdiState.CONFIG_LOCKED
    assert bench.trusted_io.bindings == {RID: TdiBinding(ASID, GUEST_DEVICE_ID, frozenset({STREAM}), PORT)}
    assert not bench.trusted_io.running
    info = bench.tdi_info()
    assert (info.flags >> 2 & 3, info.asid, info.interface_id[:2]) == (1, ASID, RID.to_bytes(2, "little"))
    status = bench.device_status()
    assert (status.tdi_count, status.bound_tdi_count) == (1, 1)
    assert tdi_state(bench) == TdiState.CONFIG_LOCKED


def test_bind_with_the_run_flag_starts_what_was_locked_and_nothing_else() -> None:
    bench = with_guest()
    before = bench.snapshot()
    assert bench.bind(run_flags=tsm.RUN) == Status.INVALID_TDI_STATE
    assert bench.snapshot()["trusted I/O"] == before["trusted I/O"]
    assert bench.card.tdi.state is TdiState.CONFIG_UNLOCKED
    assert bench.bind() == Status.SUCCESS
    assert bench.bind() == Status.INVALID_TDI_STATE
    assert bench.bind(run_flags=tsm.RUN) == Status.SUCCESS
    assert bench.card.tdi.state is TdiState.RUN
    assert bench.trusted_io.running == {RID}
    assert bench.tdi_info().flags >> 2 & 3 == 2
    assert bench.bind(run_flags=tsm.RUN) == Status.INVALID_TDI_STATE


def test_unbind_stops_the_tdi_and_makes_it_nobodys() -> None:
    bench = running()
    assert bench.unbind() == Status.SUCCESS
    assert bench.card.tdi.state is TdiState.CONFIG_UNLOCKED
    assert not bench.trusted_io.bindings
    info = bench.tdi_info()
    assert (info.flags >> 2 & 3, info.asid, info.report_digest) == (0, 0, bytes(48))
    assert bench.unbind() == Status.INVALID_TDI_STATE
    assert bench.bind() == Status.SUCCESS


def test_the_addresses_of_a_report_are_no_host_addresses_and_differ_from_bind_to_bind() -> None:
    bench = bound()
    first = parse_report(bench.report()).ranges
    assert all(one.first_page << 12 < 1 << 64 for one in first)
    assert first[0].first_page << 12 != MMIO
    assert bench.unbind() == Status.SUCCESS
    assert bench.bind() == Status.SUCCESS
    second = parse_report(bench.report()).ranges
    distances = {one.first_page - other.first_page for one, other in zip(first, second, strict=True)}
    assert len(distances) == 1
    assert distances != {0}


def test_a_report_is_what_its_digest_says_and_every_report_has_a_number_of_its_own() -> None:
    bench = bound()
    before = bench.tdi_info()
    blob = bench.report()
    head, _ = bench.result()
    assert (head.object_id, head.requester, head.segment, head.kind) == (tsm.ObjectId.REPORT, RID, 0, 1)
    info = bench.tdi_info()
    assert info.report_digest == before.report_digest == hashlib.sha384(blob).digest()
    assert info.report_counter > before.report_counter
    assert bench.unbind() == Status.SUCCESS
    assert bench.bind() == Status.SUCCESS
    assert bench.tdi_info().report_counter > info.report_counter


@pytest.mark.parametrize(
    ("entry", "status"),
    [
        (RmpEntry(assigned=True, asid=3, gpa=0x9000, validated=True), Status.IN_USE),
        (RmpEntry(assigned=True, asid=2, gpa=0x9000, validated=True), Status.IN_USE),
        (RmpEntry(assigned=True, asid=2, gpa=0x9000), Status.SUCCESS),
    ],
    ids=["another guest's", "its own", "not valid"],
)
@pytest.mark.parametrize("page", [0, 3])
def test_a_tdi_is_bound_to_nobody_while_a_page_of_it_is_valid(entry: RmpEntry, status: Status, page: int) -> None:
    """Who had it before was not asked when it was taken away: what that guest stores would reach it."""
    bench = with_guest()
    bench.machine.bus.rmp_set(MMIO + page * PAGE, entry)
    before = bench.trusted_io.state(), dict(bench.machine.bus.rmp)
    assert bench.bind() == status
    if status:
        assert (bench.trusted_io.state(), bench.machine.bus.rmp) == before
        assert bench.tdi_info().asid == 0
        # Once the host has taken it back.
        bench.machine.bus.rmp_set(MMIO + page * PAGE, RmpEntry())
        assert bench.bind() == Status.SUCCESS
    assert bench.card.tdi.state is TdiState.CONFIG_LOCKED


def test_that_valid_pages_keep_a_tdi_from_being_bound_is_a_switch() -> None:
    bench = with_guest()
    bench.machine.psp.snp.tsm.tdi_switches.checks_pages = False
    bench.machine.bus.rmp_set(MMIO, RmpEntry(assigned=True, asid=3, gpa=0x9000, validated=True))
    assert bench.bind() == Status.SUCCESS


def test_certificates_are_the_device_s_chain_and_fit_after_a_request_for_room() -> None:
    bench = connected()
    bench.lay_buffers()
    order = bench.order(tsm.DeviceOrder)
    assert bench.run(SnpCommand.TIO_DEV_CERTIFICATES, order) == Status.SUCCESS
    head, blob = bench.result()
    assert head.object_id == tsm.ObjectId.CERTIFICATES
    assert blob == pack_chain(BaseHash.SHA_384.value, bench.card.identity.certificates)
    assert bench.device_status().certificates_digest == hashlib.sha384(blob).digest()


def test_measurements_carry_the_nonce_that_was_handed_in_and_become_fresh_for_a_bound_tdi() -> None:
    bench = bound()
    assert bench.tdi_info().flags & 3 == 1
    bench.lay_buffers()
    nonce = bytes(range(32))
    order = bench.order(tsm.DeviceMeasurements, nonce=nonce)
    assert bench.run(SnpCommand.TIO_DEV_MEASUREMENTS, order) == Status.SUCCESS
    head, blob = bench.result()
    assert head.object_id == tsm.ObjectId.MEASUREMENTS
    assert nonce in blob
    info = bench.tdi_info()
    assert info.flags & 3 == 3
    assert info.measurements_digest == hashlib.sha384(blob).digest() == bench.device_status().measurements_digest
    # Who binds later has not had them made.
    assert bench.unbind() == Status.SUCCESS
    assert bench.bind() == Status.SUCCESS
    assert bench.tdi_info().flags & 3 == 1


@pytest.mark.parametrize("anew", [True, False])
@pytest.mark.parametrize("minds", [True, False])
def test_what_a_device_measured_at_its_last_reset_is_not_fresh_whatever_nonce_it_bears(
    anew: bool, minds: bool
) -> None:
    capabilities = TEE_IO_CAPABILITIES & ~(Capability(0) if anew else Capability.MEAS_FRESH)
    bench = bound(settings=ResponderSettings(capabilities=capabilities))
    bench.machine.psp.snp.tsm.device_switches.fresh_needs_capability = minds
    bench.lay_buffers()
    order = bench.order(tsm.DeviceMeasurements, nonce=b"\7" * 32)
    assert bench.run(SnpCommand.TIO_DEV_MEASUREMENTS, order) == Status.SUCCESS
    assert b"\7" * 32 in bench.result()[1]
    assert bench.tdi_info().flags & 3 == (3 if anew or not minds else 1)


def test_raw_measurements_hold_the_bits_and_no_digests_of_them() -> None:
    bench = connected()
    blobs = []
    for flags in (0, tsm.RAW_BIT_STREAM):
        bench.lay_buffers(output_bytes=4 * PAGE)
        order = bench.order(tsm.DeviceMeasurements, flags=flags)
        pieces = [tsm.data_page(order.output + at * PAGE) for at in range(4)]
        bench.machine.bus.write(0x74_0000, tsm.pack_list(pieces))
        order = bench.order(tsm.DeviceMeasurements, flags=flags, output=tsm.scatter_page(0x74_0000))
        assert bench.run(SnpCommand.TIO_DEV_MEASUREMENTS, order) == Status.SUCCESS
        blobs.append(bench.result_in(pieces))
    firmware = bench.card.firmware.bits(bench.card.kind)
    assert firmware not in blobs[0]
    assert firmware in blobs[1]


def test_a_forced_unbind_asks_nobody_and_the_tdi_can_be_bound_again() -> None:
    bench = running()
    bench.card.tdi.tamper(Tampering.BAR)
    assert bench.unbind(flags=tsm.FORCE) == Status.SUCCESS
    assert not bench.statuses
    assert not bench.trusted_io.bindings
    assert bench.card.tdi.state is TdiState.ERROR
    assert bench.bind() == Status.SUCCESS
    assert bench.card.tdi.state is TdiState.CONFIG_LOCKED


def test_a_tdi_in_error_is_seen_by_asking_and_left_by_unbind() -> None:
    bench = running()
    bench.card.tdi.tamper(Tampering.MEMORY_SPACE)
    assert tdi_state(bench) == TdiState.ERROR
    assert bench.unbind() == Status.SUCCESS
    assert tdi_state(bench) == TdiState.CONFIG_UNLOCKED


def test_a_start_after_tampering_is_refused_by_the_device_and_the_tdi_stays_locked() -> None:
    bench = bound()
    bench.card.tdi.tamper(Tampering.BAR)
    assert bench.bind(run_flags=tsm.RUN) == Status.SPDM_ERROR
    assert not bench.trusted_io.running
    assert bench.tdi_info().flags >> 2 & 3 == 1
    assert bench.unbind() == Status.SUCCESS


@pytest.mark.parametrize("state", ["bound", "being bound"])
def test_a_guest_that_has_devices_is_not_decommissioned(state: str) -> None:
    bench = bound() if state == "bound" else with_guest()
    if state == "being bound":
        assert bench.give(SnpCommand.TIO_TDI_BIND, bench.bind_order()) == Status.SPDM_REQUEST
    bench.machine.bus.write(0x1000, snp_buffers.GuestContextPage(GCTX).pack())
    before = bench.snapshot()
    assert bench.machine.psp.submit(SnpCommand.DECOMMISSION, 0x1000) == Status.IN_USE
    assert bench.snapshot() == before
    bench.machine.psp.snp.tsm.tdi_switches.holds_guest = False
    assert bench.machine.psp.submit(SnpCommand.DECOMMISSION, 0x1000) == Status.SUCCESS
    assert not bench.trusted_io.bindings
    assert bench.device_status().bound_tdi_count == 0


def test_a_device_with_bound_tdis_is_not_disconnected_but_by_force() -> None:
    bench = running()
    assert bench.run(SnpCommand.TIO_DEV_DISCONNECT, bench.order(tsm.DeviceOrder)) == Status.IN_USE
    assert bench.run(SnpCommand.TIO_DEV_DISCONNECT, bench.order(tsm.DeviceOrder, flags=tsm.FORCE)) == Status.SUCCESS
    assert not bench.trusted_io.bindings
    assert bench.tdi_info().asid == 0
    reclaim = {"device": CONTEXT}
    assert bench.ask(SnpCommand.TIO_DEV_RECLAIM, tsm.DeviceReclaim, **reclaim) == Status.RECLAIM_REQUIRED
    assert bench.ask(SnpCommand.TIO_TDI_RECLAIM, tsm.TdiReclaim, device=CONTEXT, tdi=TDI_CONTEXT) == Status.SUCCESS
    assert bench.ask(SnpCommand.TIO_DEV_RECLAIM, tsm.DeviceReclaim, **reclaim) == Status.SUCCESS


def test_fences_are_told_and_lifted_for_guests_whose_tdis_do_not_run() -> None:
    bench = running()
    bench.trusted_io.fences[ASID] = 0b1101
    bench.lend(STATUS)
    bench.machine.bus.write(STATUS, b"\xff" * 16)
    asked = {"device": CONTEXT, "asid": ASID, "address": STATUS + 4}
    assert bench.ask(SnpCommand.TIO_ASID_FENCE_STATUS, tsm.FenceStatus, **asked) == Status.SUCCESS
    assert bench.machine.bus.read(STATUS, 16) == b"\xff" * 4 + b"\x0d" + bytes(7) + b"\xff" * 4
    clear = {"device": CONTEXT, "gctx": GCTX}
    assert bench.ask(SnpCommand.TIO_ASID_FENCE_CLEAR, tsm.FenceClear, **clear) == Status.INVALID_TDI_STATE
    assert bench.unbind() == Status.SUCCESS
    assert bench.ask(SnpCommand.TIO_ASID_FENCE_CLEAR, tsm.FenceClear, **clear) == Status.SUCCESS
    assert bench.trusted_io.fences[ASID] == 0


def test_shutdown_leaves_no_device_no_key_and_pages_that_can_be_taken_back() -> None:
    bench = running()
    shutdown = snp_buffers.SnpShutdownEx(snp_buffers.SnpShutdownEx.SIZE)
    assert bench.machine.call(SnpCommand.SHUTDOWN_EX, shutdown.pack()) == Status.SUCCESS
    assert not bench.trusted_io.bindings
    assert not bench.trusted_io.ports[0, 3].port.streams[STREAM].has_any_key()
    for page in (CONTEXT, TDI_CONTEXT):
        assert not bench.machine.bus.rmp_entry(page).immutable
        assert bench.machine.bus.read(page, PAGE) == bytes(PAGE)


def test_nothing_that_only_firmware_and_device_know_is_in_memory_or_was_carried() -> None:
    """Keys of the session, the nonce of the lock, what is added to addresses; the host saw every byte that went by."""
    bench = bound()
    contexts = bench.machine.psp.snp.tsm.contexts
    binding = contexts.devices[CONTEXT].tdis[TDI_CONTEXT].binding
    link = contexts.devices[CONTEXT].link
    assert binding is not None
    assert link is not None
    session = link.session
    secrets = [session.exporter, binding.nonce, binding.offset_bytes.to_bytes(6, "little")]
    for way in (session.requests, session.responses):
        secrets += [way._secret, way._iv]
    report = bench.report()
    assert bench.bind(run_flags=tsm.RUN) == Status.SUCCESS
    memory = b"".join(bench.machine.bus.pages.values())
    for secret in secrets:
        assert len(secret) >= 6
        assert secret not in memory
        assert secret not in bench.seen
    # What the guest is to read, the host hands it; on its way from the device it was a secret, too.
    assert report in memory
    assert report[16:] not in bench.seen


@pytest.mark.parametrize("fields", [{"guest_device_id": GUEST_DEVICE_ID + 1}, {"lock_flags": 1}], ids=str)
def test_what_is_started_is_what_was_locked(fields: dict[str, int]) -> None:
    bench = bound()
    assert bench.bind(run_flags=tsm.RUN, **fields) == Status.INVALID_PARAM
    assert bench.card.tdi.state is TdiState.CONFIG_LOCKED
    assert not bench.trusted_io.running


@pytest.mark.parametrize(
    ("asid", "lent", "expected"),
    [
        (0, True, Status.INVALID_ASID),
        (5, True, Status.INVALID_ASID),  # A SEV guest's.
        (0xFFFF_FFFF, True, Status.INVALID_ASID),
        (ASID, False, Status.INVALID_PAGE_STATE),
    ],
)
def test_the_fence_of_no_snp_guest_is_not_told_and_none_into_a_page_of_the_host(
    asid: int, expected: int, *, lent: bool
) -> None:
    bench = connected()
    if lent:
        bench.lend(STATUS)
    order = {"device": CONTEXT, "asid": asid, "address": STATUS}
    before = bench.machine.bus.read(STATUS, PAGE)
    assert bench.ask(SnpCommand.TIO_ASID_FENCE_STATUS, tsm.FenceStatus, **order) == expected
    assert bench.machine.bus.read(STATUS, PAGE) == before


def test_measurements_of_before_are_forgotten_with_the_connection() -> None:
    bench = connected()
    assert bench.run(SnpCommand.TIO_DEV_DISCONNECT, bench.order(tsm.DeviceOrder)) == Status.SUCCESS
    found = bench.device_status()
    assert (found.measurements_digest, found.more_flags) == (bytes(48), 0)
    assert found.certificates_digest != bytes(48)


def test_an_answer_of_another_protocol_inside_of_the_session_is_none() -> None:
    bench = with_guest()
    honest = bench.card.dsm.answer
    bench.card.dsm.answer = lambda session, payload: b"\0" + (honest(session, payload) or b"")[1:]  # type: ignore[method-assign]
    assert bench.bind() == Status.ERR_IN_DEV_CONN
    assert not bench.trusted_io.bindings


def test_a_lock_that_allows_streams_to_peers_binds_none_for_no_command_asks_for_one() -> None:
    bench = with_guest()
    assert bench.bind(lock_flags=LockFlags.BIND_P2P) == Status.SUCCESS
    assert bench.bind(lock_flags=LockFlags.BIND_P2P, run_flags=tsm.RUN) == Status.SUCCESS
    tdi = bench.card.tdi
    assert tdi.lock is not None
    assert (tdi.state, tdi.lock.request.bind_p2p_address_mask) == (TdiState.RUN, 0)
    admitting = [one for one in range(256) if tdi.admits(None, tee=True, stream_id=one)]
    assert admitting == [STREAM]


@pytest.mark.parametrize("valid", range(3))
def test_a_valid_page_of_any_range_counts(valid: int) -> None:
    bench = with_guest()
    assert bench.bind() == Status.SUCCESS
    report = parse_report(bench.report())
    (whole,) = report.ranges
    elsewhere = replace(whole, first_page=1 << 40, pages=1)  # in no RMP
    first = MMIO // PAGE
    ranges = (elsewhere, *(replace(whole, range_id=at, first_page=first + at, pages=1) for at in range(3)))
    report = replace(report, ranges=ranges)
    assert not any_valid(bench.machine.bus, report, 0)
    bench.machine.bus.rmp_set(MMIO + valid * PAGE, RmpEntry(assigned=True, asid=2, gpa=0x9000, validated=True))
    assert any_valid(bench.machine.bus, report, 0)
