"""Launches with migration agents and initial migration images, and guests that become another."""

import hashlib
import struct

import pytest
from asking_guest import RESPONSE, opened, sealed, submit
from cryptography.exceptions import InvalidTag
from migrating_guests import (
    AGENT,
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
    machine_of,
    ready,
    start,
    status_of,
    unchanged_but_for,
)
from toy_machine import COMMAND_PAGE, GCTX, OUT, PAGE, change_context, context

from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.guest_context import NO_MIGRATION_AGENT, SnpGuestState
from psp.guest_message import MessageType
from psp.status import Status

M = MessageType

# Launches.

STARTS = {
    "an agent that nobody named": (MOVABLE, 0, MA_EN, Status.INVALID_GUEST),
    "an agent that is no context": (MOVABLE, OUT, MA_EN, Status.INVALID_GUEST),
    "an agent between pages": (MOVABLE, AGENT + 8, MA_EN, Status.INVALID_GUEST),
    "an agent that does not run": (MOVABLE, OTHER, MA_EN, Status.INVALID_GUEST_STATE),
    "its own agent": (MOVABLE, GCTX, MA_EN, Status.INVALID_GUEST_STATE),
    "an agent against its policy": (POLICY, AGENT, MA_EN, Status.POLICY_FAILURE),
    "an agent that is not wanted": (MOVABLE, AGENT, 0, Status.INVALID_PARAM),
    "an unknown flag": (MOVABLE, AGENT, MA_EN | 4, Status.INVALID_PARAM),
    "an unknown flag high up": (MOVABLE, 0, 1 << 31, Status.INVALID_PARAM),
}


@pytest.mark.parametrize("case", STARTS)
def test_a_launch_names_an_agent_that_runs_and_that_it_may_have(case):
    policy, agent, flags, status = STARTS[case]
    machine = machine_of("source")
    launched(machine, AGENT)
    fresh(machine, GCTX)
    fresh(machine, OTHER)
    machine.bus.write(COMMAND_PAGE, buffers.SnpLaunchStart(GCTX, policy, agent, flags).pack())
    before = machine.snapshot()
    assert machine.psp.submit(SnpCommand.LAUNCH_START, COMMAND_PAGE) == status
    assert machine.snapshot() == before


def test_who_could_be_moved_is_nobody_s_agent():
    machine = machine_of("source")
    launched(machine, AGENT, MOVABLE)
    fresh(machine, GCTX)
    assert start(machine, GCTX, MOVABLE, AGENT, MA_EN) == Status.POLICY_FAILURE


def test_one_agent_serves_many_and_reports_name_it():
    machine = machine_of("source")
    launched(machine, AGENT)
    for gctx in (GCTX, OTHER):
        launched(machine, gctx, MOVABLE, AGENT, MA_EN)
        report = ask(machine, gctx, M.REPORT_REQ, bytes(0x60))[0x20:]
        assert report[0x160:0x180] == context(machine, AGENT).report_id
    assert ask(machine, AGENT, M.REPORT_REQ, bytes(0x60))[0x20 + 0x160 :][:32] == NO_MIGRATION_AGENT


# Initial migration images.

PAGES = [(CONTENTS[0], IMI_PAGE), (CONTENTS[1], 0), (b"\x33" * PAGE, IMI_PAGE)]


def chained(pages, *, image):
    """PAGE_INFO by PAGE_INFO from the sheet: of all pages, or of the image's."""
    digest = bytes(48)
    for number, (contents, more) in enumerate(pages):
        if more or not image:
            info = digest + hashlib.sha384(contents).digest() + struct.pack(
                "<HBBBBBBQ", 0x70, 1, bool(more), 0, 0, 0, 0, 0x1_0000 + number * PAGE
            )  # fmt: skip
            digest = hashlib.sha384(info).digest()
    return digest


def test_pages_of_an_image_are_in_both_digests_and_others_in_one():
    machine = machine_of("source")
    launched(machine, GCTX, flags=IMI_EN, pages=PAGES)
    assert context(machine).digest == chained(PAGES, image=False)
    assert context(machine).imd == chained(PAGES, image=True)
    assert chained(PAGES, image=True) != chained(PAGES, image=False)


def test_without_an_image_there_are_no_pages_of_one():
    machine = machine_of("source")
    fresh(machine, GCTX)
    assert start(machine, GCTX) == 0
    assert machine.call(SnpCommand.ACTIVATE, buffers.SnpActivate(GCTX, 2).pack()) == 0
    machine.bus.rmp_set(frame(GCTX, 0), ready(GCTX, 0))
    update = buffers.SnpLaunchUpdate(GCTX, 1 << 1 | IMI_PAGE, frame(GCTX, 0))
    assert machine.call(SnpCommand.LAUNCH_UPDATE, update.pack()) == Status.INVALID_PARAM


@pytest.mark.parametrize("flags", [0, IMI_EN])
def test_the_secrets_page_says_whether_there_is_an_image(flags):
    machine = machine_of("source")
    fresh(machine, GCTX)
    assert start(machine, GCTX, flags=flags) == 0
    assert machine.call(SnpCommand.ACTIVATE, buffers.SnpActivate(GCTX, 2).pack()) == 0
    machine.bus.rmp_set(frame(GCTX, 0), ready(GCTX, 0))
    assert machine.call(SnpCommand.LAUNCH_UPDATE, buffers.SnpLaunchUpdate(GCTX, 5 << 1, frame(GCTX, 0)).pack()) == 0
    assert machine.bus.read_guest(frame(GCTX, 0), 8, 2)[4:] == struct.pack("<I", bool(flags))


IMAGE = [(CONTENTS[0], IMI_PAGE), (b"\x33" * PAGE, IMI_PAGE)]


@pytest.fixture
def absorbing():
    """A guest with an image and more, exported to run on; a target that was launched with the image alone."""
    source, target = agents()
    launched(source, GCTX, MOVABLE, AGENT, MA_EN | IMI_EN, [*IMAGE, (CONTENTS[1], 0)])
    launched(target, GCTX, MOVABLE, AGENT, MA_EN | IMI_EN, IMAGE)
    change_context(source, GCTX, message_count_1=6, host_data=b"h" * 32, root_mdata=VALID_ROOT)
    assert give_vmrk(source, b"R" * 32) == 0
    return source, target, exported(source, AGENT, GCTX, 1)


def test_who_was_launched_with_the_same_image_becomes_the_guest(absorbing):
    source, target, blob = absorbing
    was, image = context(source), context(target)
    assert was.state == SnpGuestState.RUNNING, "it runs on meanwhile"
    memory = target.bus.read(frame(GCTX, 0), PAGE)
    assert imported(target, AGENT, GCTX, blob, M.ABSORB_REQ) == 0
    now = context(target)
    theirs = ("digest", "vmpcks", "vmrk", "host_data", "report_id", "message_counts", "launch_tcb", "policy")
    own = ("memory_key", "asid", "oek", "oek_iv_count", "root_mdata", "report_id_ma", "ma_gctx", "state")
    assert all(getattr(now, name) == getattr(was, name) for name in theirs)
    assert all(getattr(now, name) == getattr(image, name) for name in own)
    assert now.report_id_ma == context(target, AGENT).report_id
    assert target.bus.read(frame(GCTX, 0), PAGE) == memory
    # And only once: what it is now is no image any more.
    assert unchanged_but_for(target, AGENT, 0, lambda: imported(target, AGENT, GCTX, blob, M.ABSORB_REQ)) == 0x16


def test_a_guest_that_runs_on_comes_in_nowhere_whole(absorbing):
    _, target, blob = absorbing
    fresh(target, OTHER)
    assert imported(target, AGENT, OTHER, blob) == Status.INVALID_PARAM
    assert blob[0x1E0:0x220] == bytes(64)


def test_another_image_becomes_nobody(absorbing):
    _, target, blob = absorbing
    launched(target, OTHER, MOVABLE, AGENT, MA_EN | IMI_EN, IMAGE[::-1])
    absorb = lambda: imported(target, AGENT, OTHER, blob, M.ABSORB_REQ)  # noqa: E731
    assert unchanged_but_for(target, AGENT, 0, absorb) == Status.BAD_MEASUREMENT


def test_an_image_under_another_policy_becomes_nobody(absorbing):
    """The host launches it, and could read everything if it let itself debug what it becomes."""
    _, target, blob = absorbing
    launched(target, OTHER, MOVABLE | 1 << 19, AGENT, MA_EN | IMI_EN, IMAGE)
    absorb = lambda: imported(target, AGENT, OTHER, blob, M.ABSORB_REQ)  # noqa: E731
    assert unchanged_but_for(target, AGENT, 0, absorb) == Status.POLICY_FAILURE


def test_an_agent_has_nobody_absorb_who_is_not_its_own_or_has_no_image(absorbing):
    _, target, blob = absorbing
    launched(target, OTHER, MOVABLE, flags=IMI_EN, pages=IMAGE)
    for asking, gctx in ((AGENT, OTHER), (OTHER, GCTX), (GCTX, GCTX), (AGENT, AGENT), (AGENT, 1 << 60)):
        absorb = lambda who=asking, at=gctx: imported(target, who, at, blob, M.ABSORB_REQ)  # noqa: E731
        assert unchanged_but_for(target, asking, 0, absorb) == Status.INVALID_PARAM
    change_context(target, GCTX, flags=0)
    assert imported(target, AGENT, GCTX, blob, M.ABSORB_REQ) == Status.INVALID_PARAM


def test_absorbing_is_from_vmpl0(absorbing):
    _, target, blob = absorbing
    for asking, kind in ((AGENT, M.ABSORB_REQ), (GCTX, M.ABSORB_NOMA_REQ)):
        assert status_of(ask(target, asking, kind, brought(GCTX, blob), 1)) == Status.INVALID_PARAM


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("image", [0, IMI_PAGE])
@pytest.mark.parametrize("flags", [0, 1])
def test_firmware_may_want_an_image_of_who_is_to_run_on(wanted, image, flags):
    source, _ = agents()
    launched(source, GCTX, MOVABLE, AGENT, MA_EN | IMI_EN, [(CONTENTS[0], image)])
    source.psp.snp.migration.export_wants_imi = wanted
    answer = ask(source, AGENT, M.EXPORT_REQ, struct.pack("<QQ", GCTX, flags))
    assert status_of(answer) == (Status.BAD_MEASUREMENT if wanted and flags and not image else 0)


# Without an agent.


@pytest.fixture
def alone():
    """A guest that has exported itself and runs on, and a target with its image."""
    source, target = machine_of("source"), machine_of("target")
    launched(source, GCTX, MOVABLE, flags=IMI_EN, pages=[*IMAGE, (CONTENTS[1], 0)])
    launched(target, GCTX, MOVABLE, flags=IMI_EN, pages=IMAGE)
    ask(source, GCTX, M.TSC_INFO_REQ, bytes(128))
    return source, target, exported(source, GCTX, GCTX, 1)


def test_a_guest_without_an_agent_absorbs_for_itself(alone):
    source, target, blob = alone
    key, image = context(source).vmpck(0), context(target)
    assert imported(target, GCTX, 0, blob, M.ABSORB_NOMA_REQ) == 0, "answered under the key that it asked with"
    now = context(target)
    assert (now.report_id, now.report_id_ma) == (context(source).report_id, NO_MIGRATION_AGENT)
    assert now.message_counts == (4, 0, 0, 0), "the number of the export is used up"
    with pytest.raises(InvalidTag):
        opened(key, target.bus.read(RESPONSE, PAGE))
    assert submit(target, sealed(image.vmpck(0), 3, M.TSC_INFO_REQ, bytes(128))) == Status.AEAD_OFLOW
    assert submit(target, sealed(image.vmpck(0), 5, M.TSC_INFO_REQ, bytes(128))) == Status.INVALID_PARAM
    assert submit(target, sealed(key, 5, M.TSC_INFO_REQ, bytes(128))) == 0


def test_a_guest_absorbs_for_itself_where_no_agent_could(alone, absorbing):
    _, target, blob = alone
    assert imported(target, GCTX, GCTX, blob, M.ABSORB_NOMA_REQ) == Status.INVALID_PARAM, "it names nobody"
    change_context(target, GCTX, flags=0)
    assert imported(target, GCTX, 0, blob, M.ABSORB_NOMA_REQ) == Status.INVALID_PARAM
    _, bound, blob = absorbing
    assert imported(bound, GCTX, 0, blob, M.ABSORB_NOMA_REQ) == Status.INVALID_PARAM


@pytest.mark.parametrize("wants_leave", [True, False])
def test_a_guest_that_nobody_may_move_cannot_give_itself_another_s_measurement(wants_leave):
    """What it absorbs it has made up: its own image, and of somebody else all that a report shows."""
    machine = machine_of("source")
    launched(machine, GCTX, flags=IMI_EN, pages=IMAGE)
    machine.psp.snp.migration.absorbing_alone_wants_leave = wants_leave
    victim, blob = b"V" * 48, exported(machine, GCTX, GCTX, 1)
    absorb = lambda: imported(machine, GCTX, 0, victim + blob[48:], M.ABSORB_NOMA_REQ)  # noqa: E731
    if wants_leave:
        assert unchanged_but_for(machine, GCTX, 0, absorb) == Status.POLICY_FAILURE
    else:
        assert absorb() == 0
    report = ask(machine, GCTX, M.REPORT_REQ, bytes(0x60))[0x20:]
    assert (report[0x90:0xC0] == victim) == (not wants_leave)
    assert report[0x08:0x10] + report[0x160:0x180] == struct.pack("<Q", POLICY) + NO_MIGRATION_AGENT, "nothing shows"


def test_who_absorbs_itself_has_no_number_twice():
    machine = machine_of("source")
    launched(machine, GCTX, MOVABLE, flags=IMI_EN, pages=IMAGE)
    blob = exported(machine, GCTX, GCTX, 1)
    for vmpl in (0, 1, 1):
        ask(machine, GCTX, M.TSC_INFO_REQ, bytes(128), vmpl)
    assert imported(machine, GCTX, 0, blob, M.ABSORB_NOMA_REQ) == 0
    assert context(machine).message_counts == (6, 4, 0, 0)
