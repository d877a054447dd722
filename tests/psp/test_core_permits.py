"""ACTIVATE_EX and SNP_ACTIVATE_EX: a guest may run where its host has said, and nowhere else."""

import pytest
from toy_machine import COMMAND_PAGE, GCTX, MEMORY_BYTES, returning, snp_guest, up

from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.guest_context import SnpGuestState
from psp.policy import LegacyPolicy
from psp.status import Status

LIST = 0x5000
THREADS = 32
"""Of the toy machine, eight to a complex."""


class Snp:
    """A guest of the SNP interface that has no ASID yet."""

    command, activated, taken, asid = SnpCommand.ACTIVATE_EX, SnpCommand.ACTIVATE, SnpCommand.DECOMMISSION, 2

    def __init__(self):
        self.machine = snp_guest(up(), SnpGuestState.INIT)
        assert self.machine.call(SnpCommand.LAUNCH_START, buffers.SnpLaunchStart(GCTX, 0x3_0000).pack()) == 0

    def buffer(self, asid, count, spa):
        return buffers.SnpActivateEx(0x20, GCTX, asid, count, spa)

    def plain(self, asid):
        return self.machine.call(SnpCommand.ACTIVATE, buffers.SnpActivate(GCTX, asid).pack())

    def end(self):
        assert self.machine.call(SnpCommand.DECOMMISSION, buffers.GuestContextPage(GCTX).pack()) == 0


class Sev:
    """The same of the legacy interface."""

    command, asid = LegacyCommand.ACTIVATE_EX, 6

    def __init__(self):
        self.machine = up()
        status, buffer = returning(self.machine, LegacyCommand.LAUNCH_START, buffers.LaunchStart(policy=1).pack())
        assert status == 0
        self.handle = buffers.LaunchStart.parse(buffer).handle

    def buffer(self, asid, count, spa):
        return buffers.ActivateEx(0x18, self.handle, asid, count, spa)

    def plain(self, asid):
        return self.machine.call(LegacyCommand.ACTIVATE, buffers.Activate(self.handle, asid).pack())

    def end(self):
        assert self.machine.call(LegacyCommand.DEACTIVATE, buffers.Handle(self.handle).pack()) == 0


@pytest.fixture(params=[Sev, Snp], ids=lambda kind: kind.__name__)
def guest(request):
    return request.param()


def activate(guest, *threads, asid=None, count=None, spa=LIST):
    guest.machine.bus.write(LIST, b"".join(one.to_bytes(4, "little") for one in threads))
    buffer = guest.buffer(guest.asid if asid is None else asid, len(threads) if count is None else count, spa)
    return guest.machine.call(guest.command, buffer.pack())


def allowed(guest):
    return guest.machine.bus.only_on


def test_a_guest_may_run_in_the_complexes_of_the_named_cores(guest):
    assert activate(guest, 9, 15, 31) == Status.SUCCESS
    assert allowed(guest) == {guest.asid: frozenset({1, 3})}
    assert guest.asid in guest.machine.bus.keys


def test_complexes_are_added_under_the_same_asid_and_no_other(guest):
    assert activate(guest, 0) == Status.SUCCESS
    key = guest.machine.bus.keys[guest.asid]
    assert activate(guest, 8) == Status.SUCCESS
    assert allowed(guest) == {guest.asid: frozenset({0, 1})}
    assert guest.machine.bus.keys[guest.asid] == key
    assert activate(guest, 16, asid=guest.asid + 1) == Status.ACTIVE
    assert guest.plain(guest.asid + 1) == Status.ACTIVE
    assert allowed(guest) == {guest.asid: frozenset({0, 1})}


def test_a_guest_of_plain_activate_is_held_nowhere_and_stays_so(guest):
    assert guest.plain(guest.asid) == Status.SUCCESS
    owned = Status.ASID_OWNED if isinstance(guest, Snp) else Status.ACTIVE
    assert activate(guest, 0) == owned
    assert allowed(guest) == {}


def test_with_the_asid_the_hold_goes(guest):
    assert activate(guest, 0) == Status.SUCCESS
    guest.end()
    assert allowed(guest) == {}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"threads": (), "count": 0}, Status.INVALID_PARAM),
        ({"threads": (THREADS,)}, Status.INVALID_PARAM),
        ({"threads": (0, 1 << 31)}, Status.INVALID_PARAM),
        ({"count": THREADS + 1}, Status.INVALID_PARAM),
        ({"count": (1 << 32) - 1}, Status.INVALID_PARAM),
        ({"spa": MEMORY_BYTES}, Status.INVALID_ADDRESS),
        ({"spa": MEMORY_BYTES - 2}, Status.INVALID_ADDRESS),
        ({"asid": 0}, Status.INVALID_ASID),
        ({"asid": 9}, Status.INVALID_ASID),
    ],
)
def test_bad_orders_change_nothing(guest, changes, status):
    changes = {"threads": (0,), **changes}
    threads = changes.pop("threads")
    assert activate(guest, *threads, **changes) == status
    before = guest.machine.snapshot()
    assert guest.machine.psp.submit(guest.command, COMMAND_PAGE) == status
    assert guest.machine.snapshot() == before
    assert allowed(guest) == {}
    assert not guest.machine.bus.keys


def test_the_policy_decides_about_asids_as_ever():
    guest = Sev()
    guest.machine.psp.legacy.guests[guest.handle].policy = LegacyPolicy.ES
    assert activate(guest, 0) == Status.INVALID_ASID
    assert activate(guest, 0, asid=3) == Status.SUCCESS
