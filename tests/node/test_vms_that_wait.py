"""Whatever happens on a host while VMs wait there for their places, it ends as on one where everybody has his at once.

How they take them is in ``test_vms_placed_later``.
"""

import pytest
from iommu_boards import DOMAIN, IOVA, REQUESTER, SLOT, do
from moved_guests import PLAIN, frames_of, host, move, on_board, until
from toy_guests import SECOND, run, start

from node import operations as op
from node.frame_allocator import MOST_PUT_OFF
from node.guest import GuestState
from node.iommu_driver import IommuDriver
from psp.commands import LegacyCommand, SnpCommand
from psp.system_bus import PAGE_BYTES

NAMES = ("a", "b", "c")


def pair(*, eager, vcpus=1, **kwargs):
    """Two hosts, the first with VMs that were launched there."""
    here, there = host(name="here", eager=eager, **kwargs), host(name="there", eager=eager, **kwargs)
    for name in NAMES:
        start(here, name, PLAIN, "works", vcpus=vcpus)
    run(here, SECOND)
    return here, there


def waiting(one):
    return {name for name, found in one.board.unlaid.vms.items() if found.waits is not None}


def end_of(one):
    """All that a host holds, and what its log says."""
    one.board.unlaid.look_at_all()
    there = [name for name, guest in sorted(one.guests.items()) if guest.state is GuestState.RUNNING]
    areas = [[one.board.vmcb(name, vcpu.index).save_area_spa for vcpu in one.guests[name].vcpus] for name in there]
    found = [(frames_of(one, name), on_board(one, name)) for name in there]
    free = one.hypervisor.frames.free_runs()
    blank = [one.board.dram.cells.is_blank(spa, length) for spa, length in free]
    return there, areas, found, free, blank, one.hypervisor.figures(), one.now_ns, one.log.close()


def prepared(source, target, name):
    """A place for a VM is kept; nothing of it has come."""
    told = []
    target.clock.env.run(until=max(target.now_ns + 1, source.now_ns))
    target.arrivals.prepare(source.guests[name].spec, lambda wrong, _: told.append(wrong))
    until(lambda: told, target)
    assert told == [None]


def stopped(one, name):
    told = []
    one.departures.begin(name, lambda _: None)
    one.departures.stop(name, 0, told.append)
    until(lambda: told, one)


def does_not_come(here, there):
    prepared(here, there, "b")
    there.arrivals.abandon("b")


def stays_after_all(here, there):
    stopped(there, "a")
    there.departures.cancel("a")


def crashes(here, there):
    prepared(here, there, "b")
    there.crash()


def crashes_while_one_leaves(here, there):
    stopped(there, "a")
    there.crash()


def is_destroyed(here, there):
    there.destroy("a")


@pytest.mark.parametrize("vcpus", [1, 3])
@pytest.mark.parametrize(
    "happens", [does_not_come, stays_after_all, crashes, crashes_while_one_leaves, is_destroyed]
)  # fmt: skip
def test_what_becomes_of_one_that_waits_is_what_becomes_of_any_other(happens, vcpus):
    ends = []
    for eager in (False, True):
        here, there = pair(eager=eager, vcpus=vcpus)
        move(here, there, here.guests["a"].spec)
        assert waiting(there) == (set() if eager else {"a"})
        happens(here, there)
        run(there, there.now_ns + SECOND)
        move(here, there, here.guests["c"].spec)
        ends.append((end_of(here), end_of(there)))
    assert ends[0] == ends[1]


def by_device(one, free, port):
    """The device in a slot stores where nothing is."""
    assert one.board.execute_host((op.DeviceWrite(SLOT, port, b"from the device!"),)) == (None,)
    assert one.board.dram.read(free, 4) == b"from"
    one.board.dram.write(free, bytes(16))


def by_guest_status(one, free, _):
    """Firmware reads a command buffer where nothing is."""
    one.board.execute_host((op.PspCommand(SnpCommand.GUEST_STATUS, free),))


def by_platform_status(one, free, _):
    """Firmware is to write where nothing is."""
    one.board.execute_host((op.PspCommand(LegacyCommand.PLATFORM_STATUS, free),))


@pytest.mark.parametrize("touches", [by_device, by_guest_status, by_platform_status])
def test_devices_and_firmware_in_free_memory_end_the_waiting(touches):
    ends = []
    for eager in (False, True):
        here, there = pair(eager=eager)
        frames = there.hypervisor.frames
        first, length = frames.free_runs()[-1]
        free = first + length // 2 // PAGE_BYTES * PAGE_BYTES
        driver = IommuDriver(lambda frames=frames: frames.allocate(PAGE_BYTES, PAGE_BYTES)[0][0])
        do(there.board, driver.attach(REQUESTER, DOMAIN, ((IOVA, free),)))
        for name in NAMES[:2]:
            move(here, there, here.guests[name].spec)
        assert waiting(there) == (set() if eager else {"a", "b"})
        touches(there, free, IOVA)
        assert not waiting(there)
        assert not there.board.unlaid.free_memory.starts
        ends.append(end_of(there))
    assert ends[0] == ends[1]


def test_more_comes_and_goes_than_waits_in_the_allocator_s_list():
    ends = []
    for eager in (False, True):
        here, there = pair(eager=eager)
        for turn in range(MOST_PUT_OFF):
            source, target = (here, there) if turn % 2 == 0 else (there, here)
            move(source, target, source.guests["a"].spec)
            if turn % 2 == 0:
                assert waiting(there) == (set() if eager else {"a"})
        assert eager or there.hypervisor.frames.era > 0
        move(here, there, here.guests["b"].spec)
        ends.append((end_of(here), end_of(there)))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("left_mib", [134, 136, 150, 190])
def test_on_a_host_that_is_nearly_full_everybody_is_where_he_would_be(left_mib):
    ends = []
    for eager in (False, True):
        here, there = pair(eager=eager)
        frames = there.hypervisor.frames
        taken = frames.allocate_run(frames.free_bytes - (left_mib << 20), 2 << 20)
        assert taken is not None
        for name in NAMES[:2]:
            move(here, there, here.guests[name].spec)
        assert waiting(there) == (set() if eager else {"a", "b"})
        move(there, here, there.guests["a"].spec)
        move(here, there, here.guests["c"].spec)
        ends.append(end_of(there))
    assert ends[0] == ends[1]
