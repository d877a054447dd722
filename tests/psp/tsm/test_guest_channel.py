"""TIO_GUEST_REQUEST: what a guest learns and changes of its own TDI, and of no other."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest
from asking_guest import sealed
from device_bench import (
    ANSWER,
    GUEST_DEVICE_ID,
    MESSAGE,
    MMIO,
    OTHER_GCTX,
    PORT,
    RID,
    TDI_CONTEXT,
    Bench,
    bound,
    running,
    with_guest,
)
from toy_machine import GCTX, PAGE, context

from psp import tsm
from psp.commands import SnpCommand
from psp.guest_message import MessageType
from psp.status import Status
from psp.system_bus import RmpEntry
from psp.tsm.guest_messages import OLDER
from tio.tdisp.report import RangeAttributes

INFO, VALIDATE, CONFIG, SDTE = 19, 21, 23, 25
GPA = 0x8000_0000
S = tsm.MmioValidateStatus


def validate_request(**fields: int) -> bytes:
    """The request, by the sheet's offsets."""
    ours = {"device": GUEST_DEVICE_ID, "base": GPA, "count": 4, "offset": 0, "flags": 1, "range_id": 0} | fields
    return struct.pack(
        "<H14xQIIHH12x", ours["device"], ours["base"], ours["count"], ours["offset"], ours["flags"], ours["range_id"]
    )


def assign(bench: Bench, pages: int = 4, first: int = 0, **changes: object) -> None:
    """What the host does before: RMPUPDATE of each page."""
    for at in range(first, first + pages):
        entry = RmpEntry(assigned=True, gpa=GPA + at * PAGE, asid=2)
        bench.machine.bus.rmp_set(MMIO + at * PAGE, replace(entry, **changes))


def validate(bench: Bench, **fields: int) -> tuple[int, int]:
    """Status and flags of the answer."""
    answer = tsm.MmioValidateResponse.parse(bench.guest_hears(VALIDATE, validate_request(**fields)))
    assert answer.guest_device_id == fields.get("device", GUEST_DEVICE_ID)
    assert answer.range_id == fields.get("range_id", 0)
    return answer.status, answer.flags


def validated(bench: Bench, pages: int = 4) -> list[bool]:
    return [bench.machine.bus.rmp_entry(MMIO + at * PAGE).validated for at in range(pages)]


def test_message_numbers_are_the_sheet_s() -> None:
    names = ("TDI_INFO", "MMIO_VALIDATE", "MMIO_CONFIG", "SDTE_WRITE")
    numbers = {f"TIO_{name}_REQ": 19 + 2 * at for at, name in enumerate(names)}
    numbers |= {f"TIO_{name}_RSP": 20 + 2 * at for at, name in enumerate(names)}
    assert {one.name: int(one) for one in MessageType if one.name.startswith("TIO_")} == numbers


def test_a_guest_learns_the_digests_of_what_its_host_hands_it() -> None:
    bench = bound(lock_flags=1)
    report = bench.report()
    answer = bench.guest_hears(INFO, struct.pack("<H14x", GUEST_DEVICE_ID))
    assert len(answer) == 192
    device_id, status, flags, lock, algorithms = struct.unpack_from("<HH12xIIQ", answer)
    assert (device_id, status, flags, lock) == (GUEST_DEVICE_ID, 0, 1, 1)
    assert algorithms.to_bytes(8, "little") == bytes((1, 1, 2, 1, 0, 0, 0, 0))
    found = bench.device_status()
    assert answer[32:80] == found.certificates_digest
    assert answer[80:128] == found.measurements_digest
    assert answer[128:176] == hashlib.sha384(report).digest()
    assert struct.unpack_from("<Q", answer, 176) == (bench.tdi_info().report_counter,)


def others(device_id: int) -> list[tuple[int, bytes]]:
    """What a guest asks besides TDI_INFO."""
    device = struct.pack("<H", device_id)
    return [(VALIDATE, validate_request(device=device_id)), (CONFIG, device + bytes(14)), (SDTE, device + bytes(78))]


def test_of_a_tdi_that_is_nobodys_or_another_a_guest_learns_nothing_but_that() -> None:
    bench = with_guest()
    ask = struct.pack("<H14x", GUEST_DEVICE_ID)
    assert bench.guest_hears(INFO, ask) == struct.pack("<HH188x", GUEST_DEVICE_ID, 2)
    assert bench.bind() == Status.SUCCESS
    other = struct.pack("<H14x", GUEST_DEVICE_ID + 1)
    assert bench.guest_hears(INFO, other) == struct.pack("<HH188x", GUEST_DEVICE_ID + 1, 1)
    for kind, payload in others(1):
        assert struct.unpack_from("<HH", bench.guest_hears(kind, payload)) == (1, 1)
    assert bench.unbind() == Status.SUCCESS
    for kind, payload in others(GUEST_DEVICE_ID):
        assert struct.unpack_from("<HH", bench.guest_hears(kind, payload)) == (GUEST_DEVICE_ID, 2)
    assert not bench.trusted_io.entries


def test_pages_that_the_device_reported_and_the_host_mapped_in_order_are_validated() -> None:
    bench = running()
    assign(bench)
    assert validate(bench) == (S.SUCCESS, 1)
    assert validated(bench) == [True] * 4
    assert validate(bench) == (S.SUCCESS, 0)
    assert validate(bench, flags=0) == (S.SUCCESS, 1)
    assert validated(bench) == [False] * 4
    assert validate(bench, count=2, offset=1, base=GPA + PAGE) == (S.SUCCESS, 1)
    assert validated(bench) == [False, True, True, False]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"asid": 3}, S.NOT_ASSIGNED),
        ({"assigned": False, "asid": 0, "gpa": 0}, S.NOT_ASSIGNED),
        ({"immutable": True}, S.IMMUTABLE),
        ({"gpa": GPA + 9 * PAGE}, S.NOT_MAPPED),
        ({"validated": True}, S.NOT_UNIFORM),
    ],
    ids=lambda one: "-".join(one) if isinstance(one, dict) else one.name,
)
@pytest.mark.parametrize("page", [0, 3])
def test_one_page_that_is_not_as_it_must_be_refuses_all(changes: dict[str, object], expected: int, page: int) -> None:
    bench = running()
    assign(bench)
    assign(bench, 1, page, **changes)
    before = dict(bench.machine.bus.rmp)
    assert validate(bench) == (expected, 0)
    bench.lend(ANSWER)
    assert {spa: one for spa, one in bench.machine.bus.rmp.items() if spa >= MMIO // PAGE} == {
        spa: one for spa, one in before.items() if spa >= MMIO // PAGE
    }


def test_pages_of_two_mebibytes_are_not_validated() -> None:
    bench = running()
    bench.machine.bus.rmp_set(MMIO, RmpEntry(assigned=True, large=True, gpa=GPA, asid=2))
    assert validate(bench) == (S.NOT_4K, 0)


def test_pages_that_are_validated_in_part_can_be_forced() -> None:
    bench = running()
    assign(bench)
    assign(bench, 2, 1, validated=True)
    assert validate(bench) == (S.NOT_UNIFORM, 0)
    assert validate(bench, flags=3) == (S.SUCCESS, 1)
    assert validated(bench) == [True] * 4


@pytest.mark.parametrize("window", [(MMIO + PAGE, 63 << 20), (MMIO, 3 * PAGE), (MMIO + (1 << 30), 64 << 20)])
@pytest.mark.parametrize("minds", [True, False])
def test_pages_behind_another_root_port_are_not_the_device_s_whatever_it_reports(
    window: tuple[int, int], minds: bool
) -> None:
    bench = running()
    bench.trusted_io.windows[0, PORT] = window
    bench.machine.psp.snp.tsm.message_switches.checks_route = minds
    assign(bench)
    assert validate(bench) == ((S.NOT_IO, 0) if minds else (S.SUCCESS, 1))
    assert validated(bench) == [not minds] * 4


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"range_id": 1}, S.NOT_REPORTED),
        ({"range_id": 4}, S.NOT_REPORTED),
        ({"count": 5}, S.OUT_OF_RANGE),
        ({"count": 0}, S.OUT_OF_RANGE),
        ({"offset": 4, "count": 1}, S.OUT_OF_RANGE),
        ({"offset": 0xFFFF_FFFF, "count": 0xFFFF_FFFF}, S.OUT_OF_RANGE),
        ({"base": GPA + 1}, S.NOT_MAPPED),
        ({"base": GPA + PAGE}, S.NOT_MAPPED),
        ({"offset": 1, "count": 3}, S.NOT_MAPPED),
    ],
)
def test_what_was_not_reported_so_is_not_validated(fields: dict[str, int], expected: int) -> None:
    bench = running()
    assign(bench)
    assert validate(bench, **fields) == (expected, 0)
    assert validated(bench) == [False] * 4


def test_swapped_pages_of_a_range_are_found() -> None:
    """The host maps a BAR in another order: what the guest stores to one register would reach another."""
    bench = running()
    assign(bench)
    assign(bench, 1, 0, gpa=GPA + PAGE)
    assign(bench, 1, 1, gpa=GPA)
    assert validate(bench) == (S.NOT_MAPPED, 0)


def test_a_device_that_reports_memory_of_the_host_as_its_own_is_found() -> None:
    bench = running()
    tdi = bench.machine.psp.snp.tsm.contexts.devices[0x70_0000].tdis[TDI_CONTEXT]
    assert tdi.binding is not None
    binding = tdi.binding
    ranges = (replace(binding.report.ranges[0], first_page=0x20_0000 + binding.offset_bytes >> 12),)
    tdi.binding = replace(binding, report=replace(binding.report, ranges=ranges))
    assert validate(bench, base=GPA) == (S.NOT_IO, 0)


def test_the_older_list_of_statuses_is_a_switch() -> None:
    bench = running()
    bench.machine.psp.snp.tsm.message_switches.older_validate_statuses = True
    assign(bench)
    assert validate(bench, count=5) == (8, 0)
    assert validate(bench, range_id=1) == (7, 0)
    assert validate(bench, base=GPA + PAGE) == (6, 0)
    assert validate(bench) == (0, 1)
    assert set(OLDER.values()) <= set(range(9))


ENTRY = tsm.SecureDeviceEntry(valid=True, read=True, write=True, vmpl=1)


def sdte(bench: Bench, entry: bytes, *, vmpl: int = 0) -> int:
    answer = bench.guest_hears(SDTE, struct.pack("<H14x64s", GUEST_DEVICE_ID, entry), vmpl=vmpl)
    assert len(answer) == 16
    return tsm.SdteWriteResponse.parse(answer).status


def test_a_guest_writes_its_part_of_the_secure_device_table() -> None:
    bench = running()
    assert not bench.trusted_io.entries
    assert sdte(bench, ENTRY.pack()) == 0
    assert bench.trusted_io.entries == {RID: ENTRY}
    assert sdte(bench, tsm.SecureDeviceEntry().pack()) == 0
    assert bench.trusted_io.entries == {RID: tsm.SecureDeviceEntry()}


@pytest.mark.parametrize("wanted", [True, False])
def test_a_binding_that_its_guest_has_not_asked_about_is_not_accepted(wanted: bool) -> None:
    bench = running()
    bench.machine.psp.snp.tsm.message_switches.wants_info = wanted
    assert sdte(bench, ENTRY.pack()) == 0
    # Another device could stand behind the same number now.
    assert bench.unbind() == 0
    assert bench.bind() == 0
    assert bench.bind(run_flags=tsm.RUN) == 0
    assign(bench)
    assert sdte(bench, ENTRY.pack()) == (tsm.SdteWriteStatus.INVALID_TDI if wanted else 0)
    assert bool(bench.trusted_io.entries) is not wanted
    assert validate(bench) == ((tsm.MmioValidateStatus.INVALID_TDI, 0) if wanted else (0, 1))
    bench.guest_hears(INFO, struct.pack("<H14x", GUEST_DEVICE_ID))
    assert sdte(bench, ENTRY.pack()) == 0


@pytest.mark.parametrize("bit", [1, 60, 63, 64, 128, 3 * 64 + 51, 4 * 64, 5 * 64 + 32, 511])
def test_reserved_bits_of_an_entry_are_refused(bit: int) -> None:
    bench = running()
    entry = (int.from_bytes(ENTRY.pack(), "little") | 1 << bit).to_bytes(64, "little")
    assert sdte(bench, entry) == 3
    assert not bench.trusted_io.entries


def test_no_vmpl_gives_a_device_the_rights_of_one_above() -> None:
    bench = running()
    assert sdte(bench, ENTRY.pack(), vmpl=2) == 3
    assert sdte(bench, ENTRY.pack(), vmpl=1) == 0
    bench.machine.psp.snp.tsm.message_switches.checks_vmpl = False
    assert sdte(bench, ENTRY.pack(), vmpl=3) == 0


def config(bench: Bench, range_id: int = 0, *, flags: int = 0, write: int = 0) -> tuple[int, int]:
    answer = bench.guest_hears(CONFIG, struct.pack("<HxxHHI4x", GUEST_DEVICE_ID, flags, range_id, write))
    assert len(answer) == 16
    found = tsm.MmioConfigResponse.parse(answer)
    assert (found.guest_device_id, found.range_id, found.write) == (GUEST_DEVICE_ID, range_id, write)
    return found.status, found.flags


def test_attributes_of_a_range_are_read_and_those_that_may_change_are_changed_by_the_device() -> None:
    bench = running()
    assert config(bench) == (0, 0)
    assert config(bench, 7) == (3, 0)
    assert config(bench, flags=4, write=1) == (4, 0)
    updatable = RangeAttributes.IS_MEM_ATTR_UPDATABLE
    function = bench.card.function
    assert bench.unbind() == Status.SUCCESS
    plain = function.report
    function.report = lambda: replace(  # type: ignore[method-assign]
        plain(), ranges=tuple([replace(one, attributes=one.attributes | updatable) for one in plain().ranges])
    )
    assert bench.bind() == Status.SUCCESS
    assert config(bench, flags=4, write=1) == (4, updatable)  # Locked only.
    assert bench.bind(run_flags=tsm.RUN) == Status.SUCCESS
    assert config(bench, flags=4, write=1) == (0, updatable | RangeAttributes.IS_NON_TEE_MEM)
    assert bench.statuses, "expected the device to be asked"
    assert bench.card.tdi.admits(0, tee=False, stream_id=None)
    assert config(bench) == (0, updatable | RangeAttributes.IS_NON_TEE_MEM)
    assert config(bench, flags=0, write=1) == (0, updatable)
    assert not bench.card.tdi.admits(0, tee=False, stream_id=None)


# Whose messages count.


def test_a_message_of_another_key_number_or_version_is_the_command_s_status_and_changes_nothing() -> None:
    bench = running()
    guest = context(bench.machine)
    payload = struct.pack("<H14x", GUEST_DEVICE_ID)
    bad = {
        "another key": (sealed(bytes(32), 1, INFO, payload), Status.INVALID_PARAM),
        "number 0": (sealed(guest.vmpck(0), 0, INFO, payload), Status.AEAD_OFLOW),
        "number 2": (sealed(guest.vmpck(0), 2, INFO, payload), Status.AEAD_OFLOW),
        "version": (sealed(guest.vmpck(0), 1, INFO, payload, version=2), Status.INVALID_PARAM),
        "length": (sealed(guest.vmpck(0), 1, INFO, payload + b"\0"), Status.INVALID_PARAM),
        "reserved": (sealed(guest.vmpck(0), 1, INFO, payload[:-1] + b"\1"), Status.INVALID_PARAM),
        "an answer": (sealed(guest.vmpck(0), 1, INFO + 1, payload), Status.INVALID_PARAM),
        "a report": (sealed(guest.vmpck(0), 1, 5, bytes(96)), Status.INVALID_PARAM),
    }
    bench.lend(ANSWER)
    for name, (message, expected) in bad.items():
        bench.machine.bus.write(MESSAGE, message.ljust(PAGE, b"\0"))
        bench.machine.bus.write(0x1000, bench.guest_order().pack())
        before = bench.snapshot()
        assert bench.machine.psp.submit(SnpCommand.TIO_GUEST_REQUEST, 0x1000) == expected, name
        assert bench.snapshot() == before, name


def test_the_message_version_is_a_switch() -> None:
    bench = running()
    bench.machine.psp.snp.tsm.message_switches.version = 2
    payload = struct.pack("<H14x", GUEST_DEVICE_ID)
    assert bench.guest_asks(INFO, payload, version=1) == Status.INVALID_PARAM
    assert bench.guest_asks(INFO, payload, version=2) == Status.SUCCESS


def test_snp_guest_request_knows_no_message_about_devices() -> None:
    bench = running()
    guest = context(bench.machine)
    message = sealed(guest.vmpck(0), 1, INFO, struct.pack("<H14x", GUEST_DEVICE_ID))
    bench.machine.bus.write(MESSAGE, message.ljust(PAGE, b"\0"))
    bench.lend(ANSWER)
    status = bench.machine.call(SnpCommand.GUEST_REQUEST, struct.pack("<QQQ", GCTX, MESSAGE, ANSWER))
    assert status == Status.INVALID_PARAM


def test_no_number_seals_two_answers_when_another_message_comes_between() -> None:
    """MMIO_CONFIG waits for the device; meanwhile the host has another message answered with the same number."""
    bench = running()
    one = bench.machine.psp.snp.tsm.contexts.devices[0x70_0000].tdis[TDI_CONTEXT]
    assert one.binding is not None
    ranges = tuple([replace(part, attributes=8) for part in one.binding.report.ranges])
    one.binding = replace(one.binding, report=replace(one.binding.report, ranges=ranges))
    guest = context(bench.machine)
    write = struct.pack("<HxxHHI4x", GUEST_DEVICE_ID, 4, 0, 1)
    bench.machine.bus.write(MESSAGE, sealed(guest.vmpck(0), 1, CONFIG, write).ljust(PAGE, b"\0"))
    bench.lend(ANSWER)
    order = bench.guest_order()
    assert bench.give(SnpCommand.TIO_GUEST_REQUEST, order) == Status.SPDM_REQUEST
    other = sealed(guest.vmpck(0), 1, 17, bytes(128))  # TSC_INFO_REQ
    bench.machine.bus.write(MESSAGE + 4 * PAGE, other.ljust(PAGE, b"\0"))
    asked = struct.pack("<QQQ", GCTX, MESSAGE + 4 * PAGE, ANSWER)
    assert bench.machine.call(SnpCommand.GUEST_REQUEST, asked) == Status.SUCCESS
    bench.carry()
    before = bench.machine.bus.read(ANSWER, PAGE)
    assert bench.give(SnpCommand.TIO_GUEST_REQUEST, order) == Status.AEAD_OFLOW
    assert bench.machine.bus.read(ANSWER, PAGE) == before


def test_a_guest_asks_nothing_of_another_guest_s_tdi() -> None:
    bench = running()
    bench.another_guest()
    asked = bench.guest_asks(INFO, struct.pack("<H14x", GUEST_DEVICE_ID), gctx=OTHER_GCTX)
    assert asked == Status.INVALID_TDI


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (VALIDATE, validate_request(flags=1 << 2)),
        (VALIDATE, validate_request(flags=1 << 15)),
        (CONFIG, struct.pack("<HxxHHI4x", GUEST_DEVICE_ID, 1, 0, 0)),
        (CONFIG, struct.pack("<HxxHHI4x", GUEST_DEVICE_ID, 1 << 15, 0, 0)),
        (CONFIG, struct.pack("<HxxHHI4x", GUEST_DEVICE_ID, 0, 0, 2)),
    ],
)
def test_flags_of_a_message_that_mean_nothing_are_refused(kind: int, payload: bytes) -> None:
    bench = running()
    assert bench.guest_asks(kind, payload) == Status.INVALID_PARAM
    assert context(bench.machine).message_counts[0] == 0
