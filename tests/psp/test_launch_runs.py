"""Launching runs of pages at once leaves what launching them one by one leaves, and stops where that would matter."""

import dataclasses
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_machine import COMMAND_PAGE, FIRMWARE, GCTX, PAGE, change_context, new_machine, snp_guest, up

from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.guest_context import SnpGuestState
from psp.launch_digest import LaunchDigest, PageType, page_digests
from psp.status import Status
from psp.system_bus import RmpEntry

FIRST = 0x1F_8000
"""Eight pages below a border of 64 KiB: on one side of it the toy bus knows sources."""
PAGES = 16
GPA = 0x10_0000
ENTRY = RmpEntry(assigned=True, immutable=True, gpa=GPA, asid=2, vmpl_permissions=(15, 0, 0, 0))
CPUID = (1).to_bytes(4, "little").ljust(PAGE, b"\0")

ODD = {
    "another's": dataclasses.replace(ENTRY, asid=3),
    "launched already": dataclasses.replace(ENTRY, immutable=False, validated=True),
    "the firmware's": FIRMWARE,
    "another GPA": dataclasses.replace(ENTRY, gpa=0),
    "hypervisor's": RmpEntry(),
}


def machine_with(odd):
    """Pages for a launch, some with entries that are not as the others."""
    machine = snp_guest(up())
    for page in range(PAGES):
        spa = FIRST + page * PAGE
        machine.bus.write(spa, CPUID if page % 5 == 4 else bytes([page]) * PAGE)
        following = dataclasses.replace(ENTRY, gpa=GPA + page * PAGE)
        machine.bus.rmp_set(spa, ODD[odd[page]] if page in odd else following)
    return machine


def one_by_one(machine, contents):
    return [machine.call(SnpCommand.LAUNCH_UPDATE, one) for one in contents]


def in_runs(machine, contents):
    """As a board does: what is no run comes singly."""
    statuses = []
    while len(statuses) < len(contents):
        left = contents[len(statuses) :]
        done = machine.psp.submit_launch_updates(left, COMMAND_PAGE)
        if done:
            machine.bus.write(COMMAND_PAGE, left[done - 1])
            statuses += [0] * done
        else:
            statuses.append(machine.call(SnpCommand.LAUNCH_UPDATE, left[0]))
    return statuses


updates = st.lists(
    st.builds(
        buffers.SnpLaunchUpdate,
        gctx=st.sampled_from([GCTX] * 9 + [GCTX + PAGE]),
        flags=st.sampled_from([2, 2, 2, 2, 4, 6, 8, 10, 12, 3, 18, 0, 14]),
        address=st.integers(0, PAGES).map(lambda page: FIRST + page * PAGE) | st.sampled_from([FIRST + 8, 1 << 60]),
        permissions=st.sampled_from([0, 0, 0, 0x01020300]),
    ),
    max_size=6,
)
runs = st.integers(0, PAGES - 1).flatmap(
    lambda start: st.integers(1, PAGES - start).map(
        lambda count: [buffers.SnpLaunchUpdate.of(GCTX, 1, FIRST + (start + at) * PAGE) for at in range(count)]
    )
)


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(runs | updates, min_size=1, max_size=4),
    odd=st.dictionaries(st.integers(0, PAGES - 1), st.sampled_from(sorted(ODD)), max_size=2),
)
def test_runs_and_single_commands_leave_the_same_machine(pieces, odd):
    contents = [one.pack() for piece in pieces for one in piece]
    if not contents:
        return
    single, bulk = machine_with(odd), machine_with(odd)
    assert in_runs(bulk, contents) == one_by_one(single, contents)
    assert bulk.snapshot() == single.snapshot()
    mailboxes = [(one.address_low, one.address_high, one.response) for one in (bulk.psp.mailbox, single.psp.mailbox)]
    assert mailboxes[0] == mailboxes[1]


def normal(count):
    return [buffers.SnpLaunchUpdate.of(GCTX, PageType.NORMAL, FIRST + at * PAGE).pack() for at in range(count)]


def test_a_whole_run_is_one_step_and_its_digest_the_chain_s():
    machine = machine_with({})
    contents = normal(4)
    assert machine.psp.submit_launch_updates(contents, COMMAND_PAGE) == 4
    expected = LaunchDigest()
    for at in range(4):
        expected.update(PageType.NORMAL, GPA + at * PAGE, bytes([at]) * PAGE)
    assert machine.psp.launch_record(GCTX).digest == expected.value


def test_a_run_ends_before_what_is_out_of_the_ordinary():
    machine = machine_with({3: "another's"})
    assert machine.psp.submit_launch_updates(normal(2), COMMAND_PAGE) == 2
    machine = machine_with({0: "another's"})
    before = machine.snapshot()
    assert machine.psp.submit_launch_updates(normal(4), COMMAND_PAGE) == 0
    assert machine.snapshot() == before


@pytest.mark.parametrize("wrong", ["state", "inactive", "no context", "platform", "buffer"])
def test_nothing_is_done_at_once_that_would_not_be_done_singly(wrong):
    machine = new_machine() if wrong == "platform" else machine_with({})
    contents = normal(4)
    if wrong == "state":
        change_context(machine, state=SnpGuestState.RUNNING)
    elif wrong == "inactive":
        change_context(machine, asid=0)
    elif wrong == "no context":
        machine.bus.write(GCTX, bytes(PAGE))
    before = machine.snapshot()
    assert machine.psp.submit_launch_updates(contents, 1 << 60 if wrong == "buffer" else COMMAND_PAGE) == 0
    assert machine.snapshot() == before
    expected = {
        "state": Status.INVALID_GUEST_STATE, "inactive": Status.INACTIVE, "no context": Status.INVALID_GUEST,
        "platform": Status.INVALID_PLATFORM_STATE, "buffer": Status.SUCCESS,
    }[wrong]  # fmt: skip
    assert machine.call(SnpCommand.LAUNCH_UPDATE, contents[0]) == expected


def test_digests_of_pages_are_theirs():
    data = bytes(range(256)) * 48
    assert page_digests(data) == tuple(hashlib.sha384(data[at : at + PAGE]).digest() for at in range(0, 3 * PAGE, PAGE))
    assert page_digests(data[: PAGE - 1]) == ()
