"""Migration agents: a guest leaves, arrives or is handed over whole and once, and nobody else can make it."""

import dataclasses
import struct

import pytest
from asking_guest import RESPONSE, opened, sealed, submit
from hypothesis import given, settings
from hypothesis import strategies as st
from migrating_guests import (
    AGENT,
    ASIDS,
    CONTENTS,
    IMI_EN,
    IMI_PAGE,
    MA_EN,
    MOVABLE,
    OTHER,
    POLICY,
    VALID_ROOT,
    agents,
    ask,
    brought,
    exported,
    frame,
    fresh,
    give_vmrk,
    imported,
    launched,
    ready,
    start,
    status_of,
    unchanged_but_for,
)
from toy_machine import FIRMWARE, GCTX, OUT, PAGE, change_context, context

from psp import command_buffers as buffers
from psp import swap_buffers
from psp.commands import SnpCommand
from psp.guest_context import NO_MIGRATION_AGENT, VCEK_DISABLED, GuestContext, SnpGuestState
from psp.guest_message import MessageType
from psp.page_state import PageState, page_state
from psp.status import PspError, Status
from psp.system_bus import RmpEntry

M = MessageType
MDATA, AWAY = 0x42_0000, 0x43_0000
"""A Metadata page, and frames for pages that are out."""


def key_of_vmrk(machine, gctx):
    """MSG_KEY_REQ for a key under the root that migration agents give."""
    answer = ask(machine, gctx, M.KEY_REQ, struct.pack("<IIQIIQ", 1, 0, 0b1001, 0, 0, 0))
    return status_of(answer), answer[0x20:]


def swap(machine, command, page, kind, *, root=False, entry=0, place=AWAY):
    flags = kind << 1 | root << 4
    if command == SnpCommand.PAGE_SWAP_OUT:
        buffer = swap_buffers.SnpPageSwapOut(GCTX, page, place, MDATA + 0x40 * entry, 0, flags)
    else:
        buffer = swap_buffers.SnpPageSwapIn(GCTX, place, page, MDATA + 0x40 * entry, flags)
    return machine.call(command, buffer.pack())


def taken_out(machine):
    """All of a guest's pages, then the page of their entries; what lies outside, which the host carries."""
    machine.bus.rmp_set(MDATA, FIRMWARE)
    assert machine.call(SnpCommand.PAGE_MD_INIT, swap_buffers.SnpPageMdInit(GCTX, MDATA).pack()) == 0
    for number in range(3):
        machine.bus.rmp_set(AWAY + number * PAGE, FIRMWARE)
    for number in range(2):
        spa = frame(GCTX, number)
        machine.bus.rmp_set(spa, dataclasses.replace(machine.bus.rmp_entry(spa), immutable=True))
        place = AWAY + number * PAGE
        assert swap(machine, SnpCommand.PAGE_SWAP_OUT, spa, 0, entry=number, place=place) == 0
    assert swap(machine, SnpCommand.PAGE_SWAP_OUT, MDATA, 1, root=True, place=AWAY + 2 * PAGE) == 0
    return machine.bus.read(AWAY, 3 * PAGE)


def put_back(machine, away):
    """The same on the other host, from bytes that came over the network."""
    machine.bus.write(AWAY, away)
    machine.bus.rmp_set(MDATA, FIRMWARE)
    assert machine.call(SnpCommand.ACTIVATE, buffers.SnpActivate(GCTX, ASIDS[GCTX]).pack()) == 0
    assert swap(machine, SnpCommand.PAGE_SWAP_IN, MDATA, 1, root=True, place=AWAY + 2 * PAGE) == 0
    for number in range(2):
        machine.bus.rmp_set(frame(GCTX, number), ready(GCTX, number))
        place = AWAY + number * PAGE
        assert swap(machine, SnpCommand.PAGE_SWAP_IN, frame(GCTX, number), 0, entry=number, place=place) == 0


@pytest.fixture
def moving():
    """A guest with an agent and two pages, and a machine to go to."""
    source, target = agents()
    launched(source, GCTX, MOVABLE, AGENT, MA_EN, [(one, 0) for one in CONTENTS])
    return source, target


def test_a_guest_is_moved_with_its_pages_its_messages_and_the_root_of_its_keys(moving):
    source, target = moving
    assert give_vmrk(source, b"R" * 32) == 0
    ask(source, GCTX, M.TSC_INFO_REQ, bytes(128), vmpl=2)
    before, key = context(source), key_of_vmrk(source, GCTX)
    away = taken_out(source)
    blob = exported(source, AGENT, GCTX)

    # On the source there is nothing left that could run.
    assert source.call(SnpCommand.GUEST_STATUS, buffers.SnpGuestStatus(GCTX, OUT).pack()) == Status.INVALID_GUEST
    assert page_state(source.bus.rmp_entry(GCTX)) is PageState.FIRMWARE
    assert source.bus.read(GCTX, PAGE) == bytes(PAGE)
    assert ASIDS[GCTX] not in source.bus.keys

    fresh(target, GCTX)
    assert imported(target, AGENT, GCTX, blob) == 0
    put_back(target, away)
    for number, contents in enumerate(CONTENTS):
        assert target.bus.read_guest(frame(GCTX, number), PAGE, ASIDS[GCTX]) == contents
        assert page_state(target.bus.rmp_entry(frame(GCTX, number))) is PageState.PRE_SWAP
    now = context(target)
    assert now.memory_key != before.memory_key
    assert (now.digest, now.host_data, now.policy, now.vmpcks) == (
        before.digest, before.host_data, before.policy, before.vmpcks
    )  # fmt: skip
    assert now.report_id not in {before.report_id, NO_MIGRATION_AGENT}
    assert now.report_id_ma == context(target, AGENT).report_id
    # Keys under the agent's root are the same on another chip; messages go on where they were.
    assert now.message_counts == (before.message_count_0 + 2, 0, 2, 0)
    assert key_of_vmrk(target, GCTX) == key
    report = ask(target, GCTX, M.REPORT_REQ, bytes(0x60))[0x20:]
    assert (report[0x140:0x160], report[0x160:0x180]) == (now.report_id, now.report_id_ma)


def test_pages_come_back_once_on_the_other_host_too(moving):
    source, target = moving
    away = taken_out(source)
    blob = exported(source, AGENT, GCTX)
    fresh(target, GCTX)
    assert imported(target, AGENT, GCTX, blob) == 0
    put_back(target, away)
    target.bus.rmp_set(frame(GCTX, 0), ready(GCTX, 0))
    assert swap(target, SnpCommand.PAGE_SWAP_IN, frame(GCTX, 0), 0, place=AWAY) == Status.INVALID_MDATA_ENTRY


def test_an_exported_context_has_the_sheet_s_fields_at_their_places():
    source, _ = agents()
    launched(source, GCTX, MOVABLE, AGENT, MA_EN | IMI_EN, [(CONTENTS[0], IMI_PAGE)])
    change_context(
        source, GCTX, vmrk=b"R" * 32, gosvw=b"W" * 16, id_key_digest=b"K" * 48, author_key_digest=b"A" * 48,
        family_id=b"F" * 16, image_id=b"I" * 16, guest_svn=0x01020304, root_mdata=b"M" * 64, oek_iv_count=0x1122,
        message_count_0=2, message_count_1=4, message_count_2=6, message_count_3=8, flags=IMI_EN | VCEK_DISABLED,
        launch_tcb=0x77, launch_mitigations=5,
    )  # fmt: skip
    guest = context(source)
    assert exported(source, AGENT, GCTX) == b"".join((
        guest.digest, guest.oek, guest.vmpcks, b"R" * 32, b"H" * 32, b"K" * 48, b"A" * 48, guest.report_id, guest.imd,
        struct.pack("<QQQQ", 2, 4, 6, 8), b"M" * 64, struct.pack("<QQB7xQ", 0b111, MOVABLE, 2, 0x1122),
        guest.digest, b"F" * 16, b"I" * 16, struct.pack("<IIQ", 1, 0x01020304, MOVABLE), b"W" * 16,
        struct.pack("<QQ64x", 0x77, 5),
    ))  # fmt: skip


def test_an_imported_guest_is_all_that_was_exported_and_new_where_it_must_be(moving):
    source, target = moving
    change_context(
        source, GCTX, gosvw=b"W" * 16, id_key_digest=b"K" * 48, author_key_digest=b"A" * 48, family_id=b"F" * 16,
        image_id=b"I" * 16, guest_svn=7, root_mdata=VALID_ROOT, oek_iv_count=9, flags=VCEK_DISABLED, launch_tcb=1,
        message_count_3=8, launch_mitigations=2,
    )  # fmt: skip
    before = context(source)
    blob = exported(source, AGENT, GCTX)
    fresh(target, GCTX)
    assert imported(target, AGENT, GCTX, blob) == 0
    now = context(target)
    new = {"memory_key", "report_id", "report_id_ma", "asid"}
    for field in dataclasses.fields(GuestContext):
        if field.name not in new:
            assert getattr(now, field.name) == getattr(before, field.name), field.name
    assert now.asid == 0
    assert exported(target, AGENT, GCTX)[:0x170] == blob[:0x170], "it may go on from there"


def test_firmware_knows_no_context_from_its_copy(moving):
    """An agent that takes the same context in twice has two guests: that it does not is the agent's business."""
    source, target = moving
    change_context(source, GCTX, root_mdata=VALID_ROOT)
    blob = exported(source, AGENT, GCTX)
    for gctx in (GCTX, OTHER):
        fresh(target, gctx)
        assert imported(target, AGENT, gctx, blob) == 0
    assert context(target, OTHER).report_id != context(target, GCTX).report_id


# Who may have a context.


EXPORTS = {
    "another guest than its agent": (OTHER, GCTX, 0, 0),
    "its agent from VMPL1": (AGENT, GCTX, 0, 1),
    "its agent with an unknown flag": (AGENT, GCTX, 2, 0),
    "itself though it has an agent": (GCTX, GCTX, 0, 0),
    "itself to run on though it has an agent": (GCTX, GCTX, 1, 0),
    "a guest without an agent by another": (AGENT, OTHER, 0, 0),
    "itself from VMPL1": (OTHER, OTHER, 0, 1),
    "what is no context": (AGENT, 1 << 60, 0, 0),
    "what lies between pages": (AGENT, GCTX + 8, 0, 0),
}


@pytest.mark.parametrize("case", EXPORTS)
def test_nobody_else_has_a_guest_s_context(moving, case):
    asking, gctx, flags, vmpl = EXPORTS[case]
    source, _ = moving
    launched(source, OTHER)
    answer = unchanged_but_for(
        source, asking, vmpl, lambda: ask(source, asking, M.EXPORT_REQ, struct.pack("<QQ", gctx, flags), vmpl)
    )
    assert answer == struct.pack("<I28x", Status.INVALID_PARAM)


def test_an_agent_launched_anew_in_the_same_place_is_another(moving):
    source, _ = moving
    assert source.call(SnpCommand.DECOMMISSION, buffers.GuestContextPage(AGENT).pack()) == 0
    source.flush(SnpCommand.DF_FLUSH)
    launched(source, AGENT)
    answer = ask(source, AGENT, M.EXPORT_REQ, struct.pack("<QQ", GCTX, 0))
    assert status_of(answer) == Status.INVALID_PARAM


def test_an_agent_s_context_is_its_own_place_too(moving):
    """Whoever copied its report id to a context of another place would not do."""
    source, _ = moving
    launched(source, OTHER)
    change_context(source, OTHER, report_id=context(source, AGENT).report_id)
    answer = ask(source, OTHER, M.EXPORT_REQ, struct.pack("<QQ", GCTX, 0))
    assert status_of(answer) == Status.INVALID_PARAM


def test_a_guest_that_does_not_run_yet_is_not_exported():
    source, _ = agents()
    fresh(source, GCTX)
    assert start(source, GCTX, MOVABLE, AGENT, MA_EN) == 0
    answer = unchanged_but_for(
        source, AGENT, 0, lambda: ask(source, AGENT, M.EXPORT_REQ, struct.pack("<QQ", GCTX, 0))
    )
    assert status_of(answer) == Status.INVALID_PARAM


@pytest.mark.parametrize("flags", [0, 1])
def test_a_clock_of_its_own_stays_with_its_host(moving, flags):
    source, _ = moving
    change_context(source, GCTX, tsc_scale=1 << 32)
    answer = unchanged_but_for(
        source, AGENT, 0, lambda: ask(source, AGENT, M.EXPORT_REQ, struct.pack("<QQ", GCTX, flags))
    )
    assert status_of(answer) == Status.UNSUPPORTED


@pytest.mark.parametrize(("flags", "status"), [(0, Status.IN_USE), (1, 0)])
def test_a_guest_with_devices_of_its_own_leaves_them_first(moving, flags, status):
    source, _ = moving

    def has_devices(_):
        raise PspError(Status.IN_USE)

    source.psp.snp.guests.before_decommission = has_devices
    answer = unchanged_but_for(
        source, AGENT, 0, lambda: ask(source, AGENT, M.EXPORT_REQ, struct.pack("<QQ", GCTX, flags))
    )
    assert status_of(answer) == status


def test_a_guest_without_an_agent_exports_itself_and_is_gone():
    source, target = agents()
    launched(source, GCTX, MOVABLE)
    change_context(source, GCTX, root_mdata=VALID_ROOT)
    key = context(source).vmpck(0)
    assert submit(source, sealed(key, 1, M.EXPORT_REQ, struct.pack("<QQ", GCTX, 0))) == 0
    _, _, _, answer = opened(key, source.bus.read(RESPONSE, PAGE))
    assert status_of(answer) == 0
    assert source.bus.read(GCTX, PAGE) == bytes(PAGE), "no number is counted in a page that holds no guest"
    # The number of the answer is used up where it goes on.
    fresh(target, GCTX)
    assert imported(target, AGENT, GCTX, answer[0x20:]) == 0
    assert context(target).message_counts == (2, 0, 0, 0)
    request = sealed(key, 1, M.EXPORT_REQ, struct.pack("<QQ", GCTX, 0))
    assert submit(target, request) == Status.AEAD_OFLOW


# Who is taken in.


def of_valid_root(source):
    """A context as an agent has it, of a guest whose pages are out."""
    change_context(source, GCTX, root_mdata=VALID_ROOT)
    return exported(source, AGENT, GCTX)


def put(blob, at, octets):
    return blob[:at] + octets + blob[at + len(octets) :]


BLOBS = {
    "no page entry is valid": (lambda blob: put(blob, 0x200, b"\0"), Status.INVALID_PARAM),
    "it was not running": (lambda blob: put(blob, 0x230, b"\1"), Status.INVALID_PARAM),
    "it was in no state": (lambda blob: put(blob, 0x230, b"\3"), Status.INVALID_PARAM),
    "a reserved byte": (lambda blob: put(blob, 0x231, b"\1"), Status.INVALID_PARAM),
    "the last byte": (lambda blob: put(blob, 0x2FF, b"\1"), Status.INVALID_PARAM),
    "an unknown flag": (lambda blob: put(blob, 0x220, b"\x08"), Status.INVALID_PARAM),
    "an ID block without a key": (lambda blob: put(blob, 0x220, b"\2"), Status.INVALID_PARAM),
    "a key without an ID block": (lambda blob: put(blob, 0x110, b"K"), Status.INVALID_PARAM),
    "an author without an ID block": (
        lambda blob: put(put(blob, 0x140, b"A"), 0x220, b"\1"), Status.INVALID_PARAM
    ),
    "an ID block of another digest": (
        lambda blob: put(put(put(blob, 0x110, b"K"), 0x220, b"\2"), 0x240, owned(blob, digest=b"x" * 48)),
        Status.INVALID_PARAM,
    ),
    "an ID block of another policy": (
        lambda blob: put(put(put(blob, 0x110, b"K"), 0x220, b"\2"), 0x240, owned(blob, policy=POLICY)),
        Status.INVALID_PARAM,
    ),
    "an ID block of another version": (
        lambda blob: put(put(put(blob, 0x110, b"K"), 0x220, b"\2"), 0x240, owned(blob, version=2)),
        Status.INVALID_PARAM,
    ),
    "an author's flag without a key": (
        lambda blob: put(put(put(blob, 0x110, b"K"), 0x220, b"\3"), 0x240, owned(blob)), Status.INVALID_PARAM
    ),
    "an author's key without a flag": (
        lambda blob: put(put(put(put(blob, 0x110, b"K"), 0x140, b"A"), 0x220, b"\2"), 0x240, owned(blob)),
        Status.INVALID_PARAM,
    ),
    "an ID block that nobody has": (lambda blob: put(blob, 0x240, b"\1"), Status.INVALID_PARAM),
    "launched by firmware to come": (lambda blob: put(blob, 0x2B0 + 6, b"\xff"), Status.INVALID_PARAM),
    "a policy without an agent": (lambda blob: put(blob, 0x228, struct.pack("<Q", POLICY)), Status.POLICY_FAILURE),
    "a policy of firmware to come": (
        lambda blob: put(blob, 0x228, struct.pack("<Q", MOVABLE | 2 << 8)), Status.POLICY_FAILURE
    ),
    "a policy without its fixed bit": (
        lambda blob: put(blob, 0x228, struct.pack("<Q", MOVABLE & ~(1 << 17))), Status.POLICY_FAILURE
    ),
    "a policy that wants no SMT": (
        lambda blob: put(blob, 0x228, struct.pack("<Q", MOVABLE & ~(1 << 16))), Status.POLICY_FAILURE
    ),
}  # fmt: skip


def owned(blob, **changes):
    values = {"digest": blob[:48], "policy": MOVABLE, "version": 1} | changes
    return values["digest"] + bytes(32) + struct.pack("<IIQ", values["version"], 0, values["policy"])


@pytest.mark.parametrize("case", BLOBS)
def test_what_no_firmware_would_export_is_not_taken_in(moving, case):
    change, status = BLOBS[case]
    source, target = moving
    blob = of_valid_root(source)
    fresh(target, GCTX)
    assert unchanged_but_for(target, AGENT, 0, lambda: imported(target, AGENT, GCTX, change(blob))) == status
    assert imported(target, AGENT, GCTX, blob) == 0, "the same without the change is"


def test_the_machine_that_a_policy_is_held_against_is_the_target(moving):
    source, target = moving
    blob = put(of_valid_root(source), 0x228, struct.pack("<Q", MOVABLE & ~(1 << 16)))
    target.bus.cores = dataclasses.replace(target.bus.cores, smt_enabled=False)
    fresh(target, GCTX)
    assert imported(target, AGENT, GCTX, blob) == 0


@pytest.mark.parametrize(
    ("size", "version", "tail"), [(0x2FF, 2, b""), (0x301, 2, b""), (0, 2, b""), (0x300, 1, b""), (0x300, 3, b"")]
)
def test_a_context_has_one_size_and_version(moving, size, version, tail):
    source, target = moving
    blob = of_valid_root(source)
    fresh(target, GCTX)
    payload = brought(GCTX, blob, size, version) + tail
    answer = unchanged_but_for(target, AGENT, 0, lambda: ask(target, AGENT, M.IMPORT_REQ, payload))
    assert status_of(answer) == Status.INVALID_PARAM


@pytest.mark.parametrize("kind", [M.EXPORT_REQ, M.IMPORT_REQ, M.ABSORB_REQ, M.VMRK_REQ, M.ABSORB_NOMA_REQ])
@pytest.mark.parametrize("by", [-1, 1])
def test_a_message_of_another_length_is_none(moving, kind, by):
    source, _ = moving
    length = {M.EXPORT_REQ: 0x10, M.VMRK_REQ: 0x40}.get(kind, 0x320) + by
    key = context(source, AGENT).vmpck(0)
    before = source.firmware_state(), context(source, AGENT), context(source)
    assert submit(source, sealed(key, 1, kind, bytes(length)), gctx=AGENT) == Status.INVALID_PARAM
    assert (source.firmware_state(), context(source, AGENT), context(source)) == before


@pytest.mark.parametrize("kind", [M.IMPORT_REQ, M.ABSORB_REQ, M.ABSORB_NOMA_REQ, M.VMRK_REQ])
@pytest.mark.parametrize("at", [0x10, 0x1F])
def test_reserved_bytes_of_a_request_are_zero(moving, kind, at):
    source, target = moving
    blob = of_valid_root(source)
    fresh(target, GCTX)
    whole = struct.pack("<Q24x32s", GCTX, b"R" * 32) if kind == M.VMRK_REQ else brought(GCTX, blob)
    payload = put(whole, at, b"\1")
    assert status_of(unchanged_but_for(target, AGENT, 0, lambda: ask(target, AGENT, kind, payload))) == 0x16


@pytest.mark.parametrize("state", [SnpGuestState.LAUNCH, SnpGuestState.RUNNING])
def test_a_guest_is_taken_in_where_nothing_was_launched_and_nowhere_else(moving, state):
    source, target = moving
    blob = of_valid_root(source)
    launched(target, GCTX, MOVABLE, AGENT, MA_EN)
    change_context(target, GCTX, state=state)
    assert unchanged_but_for(target, AGENT, 0, lambda: imported(target, AGENT, GCTX, blob)) == Status.INVALID_PARAM
    for nowhere in (1 << 60, GCTX + 8, OTHER, AGENT):
        found = unchanged_but_for(target, AGENT, 0, lambda gctx=nowhere: imported(target, AGENT, gctx, blob))
        assert found == Status.INVALID_PARAM


def test_a_guest_is_taken_in_from_vmpl0_and_by_nobody_who_could_be_moved(moving):
    source, target = moving
    blob = of_valid_root(source)
    fresh(target, GCTX)
    for vmpl in (1, 2, 3):
        payload = brought(GCTX, blob)
        assert status_of(ask(target, AGENT, M.IMPORT_REQ, payload, vmpl)) == Status.INVALID_PARAM
    launched(target, OTHER, MOVABLE)
    assert unchanged_but_for(target, OTHER, 0, lambda: imported(target, OTHER, GCTX, blob)) == Status.POLICY_FAILURE


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 0x31F), st.integers(1, 255), st.sampled_from([M.IMPORT_REQ, M.ABSORB_REQ, M.ABSORB_NOMA_REQ]))
def test_whatever_an_agent_says_is_answered_and_what_is_refused_leaves_no_trace(at, flips, kind):
    target, blob = _TARGET
    payload = bytearray(brought(GCTX, blob))
    payload[at] ^= flips
    kept = {page: target.bus.pages[page] for page in (GCTX // PAGE, AGENT // PAGE)}
    answer = ask(target, AGENT, kind, bytes(payload))
    assert status_of(answer) in {0, Status.INVALID_PARAM, Status.POLICY_FAILURE, Status.BAD_MEASUREMENT}
    if status_of(answer):
        assert target.bus.pages[GCTX // PAGE] == kept[GCTX // PAGE]
    target.bus.pages.update(kept)


def _target():
    source, target = agents()
    launched(source, GCTX, MOVABLE, AGENT, MA_EN)
    change_context(source, GCTX, root_mdata=VALID_ROOT)
    fresh(target, GCTX)
    return target, exported(source, AGENT, GCTX)


_TARGET = _target()


# Roots of keys.


def test_an_agent_gives_its_guest_a_root_from_vmpl0_alone(moving):
    source, _ = moving
    assert key_of_vmrk(source, GCTX)[0] == Status.INVALID_KEY
    for vmpl in (1, 2, 3):
        assert unchanged_but_for(source, AGENT, vmpl, lambda at=vmpl: give_vmrk(source, b"R" * 32, at)) == 0x16
    assert give_vmrk(source, bytes(32)) == Status.INVALID_PARAM
    assert give_vmrk(source, b"R" * 32) == 0
    first = key_of_vmrk(source, GCTX)
    assert first[0] == 0
    assert give_vmrk(source, b"S" * 32) == 0
    assert key_of_vmrk(source, GCTX) not in {first, (Status.INVALID_KEY, bytes(32))}


@pytest.mark.parametrize("gctx", [AGENT, OTHER, 1 << 60])
def test_an_agent_gives_nobody_else_a_root(moving, gctx):
    source, _ = moving
    launched(source, OTHER)
    assert unchanged_but_for(source, AGENT, 0, lambda: give_vmrk(source, b"R" * 32, gctx=gctx)) == 0x16
    payload = struct.pack("<Q24x32s", GCTX, b"R" * 32)
    assert status_of(ask(source, OTHER, M.VMRK_REQ, payload)) == Status.INVALID_PARAM


def test_a_root_may_be_there_before_the_guest_runs():
    source, _ = agents()
    fresh(source, GCTX)
    assert start(source, GCTX, MOVABLE, AGENT, MA_EN) == 0
    assert give_vmrk(source, b"R" * 32) == 0
    assert context(source).vmrk == b"R" * 32


def test_a_guest_without_an_agent_has_a_root_of_its_launch(moving):
    """As users found it: a key under it is another after each launch (AMDESE/AMDSEV issue 241)."""
    source, target = moving
    found = []
    for machine in (source, target):
        launched(machine, OTHER)
        found.append(key_of_vmrk(machine, OTHER))
    assert [status for status, _ in found] == [0, 0]
    assert found[0] != found[1]
    assert key_of_vmrk(source, OTHER) == found[0]


def test_frames_of_a_guest_that_left_are_the_host_s_to_take_back(moving):
    source, _ = moving
    exported(source, AGENT, GCTX)
    spa = frame(GCTX, 0)
    source.bus.rmp_set(spa, RmpEntry())
    source.flush(SnpCommand.DF_FLUSH)
    source.bus.rmp.pop(frame(GCTX, 1) // PAGE)
    launched(source, GCTX, MOVABLE, AGENT, MA_EN)
    assert context(source).state == SnpGuestState.RUNNING
