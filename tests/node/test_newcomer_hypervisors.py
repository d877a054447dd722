"""A VM that comes to a host whose hypervisor does otherwise is what it is where everything is done at once."""

from dataclasses import replace

import pytest
from moved_guests import move, registers, until
from newcomers import NAP_NS, books, is_newcomer, pair, wait
from toy_guests import SECOND

from node import operations as op
from node.frame_allocator import joined
from node.hypervisor import Hypervisor
from node.hypervisor_port import LaunchRefused
from node.vcpu import SLEEPING, VcpuState
from node.vmsa import VMSA_FIELDS
from psp.system_bus import PAGE_BYTES


def changed(areas, changes):
    """Save areas in which registers have other values."""
    pages = []
    for area in areas:
        page = bytearray(bytes(area))
        for register, value in changes.items():
            at = VMSA_FIELDS[register].offset
            page[at : at + 8] = value.to_bytes(8, "little")
        pages.append(bytes(page))
    return tuple(pages)


def that_changes(changes):
    class Changes(Hypervisor):
        def fill(self, spec, state):
            state = state._replace(save_areas=changed(state.save_areas, changes))
            return (yield from Hypervisor.fill(self, spec, state))

    return Changes


def that_says(areas):
    class Says(Hypervisor):
        """It says of the save areas what is not so."""

        def fill(self, spec, state):
            entered, back = yield from Hypervisor.fill(self, spec, state)
            return entered._replace(save_areas=areas(entered.save_areas)), back

    return Says


def relayed(task, send):
    """Run a task of a hypervisor's, each batch of which ``send`` hands on in its own way; what the task returns."""
    answers = None
    while True:
        try:
            batch = task.send(answers)
        except StopIteration as end:
            return end.value
        answers = yield from send(batch)


class Reorders(Hypervisor):
    """It writes control blocks from the last to the first."""

    def fill(self, spec, state):
        return (yield from relayed(Hypervisor.fill(self, spec, state), self._reordered))

    def _reordered(self, batch):
        order = sorted(range(len(batch)), key=lambda at: _last_block_first(batch[at]))
        found = yield tuple([batch[at] for at in order])
        return tuple([answer for _, answer in sorted(zip(order, found, strict=True), key=lambda one: one[0])])


def _last_block_first(one):
    return (1, -one.vcpu) if isinstance(one, op.VmcbWrite) else (2 * (not isinstance(one, op.HostWrite)), 0)


class SharesAnArea(Hypervisor):
    """All vCPUs get the save area of the first."""

    def fill(self, spec, state):
        first = []

        def shared(batch):
            first[:] = first or [one.save_area_spa for one in batch if isinstance(one, op.VmcbWrite)][:1]
            return (yield tuple([
                replace(one, save_area_spa=first[0]) if isinstance(one, op.VmcbWrite) else one for one in batch
            ]))  # fmt: skip

        entered, back = yield from relayed(Hypervisor.fill(self, spec, state), shared)
        return entered._replace(save_areas=tuple(first * len(entered.save_areas))), back


class ForgetsAVcpu(Hypervisor):
    """It writes no control block for the second vCPU."""

    def fill(self, spec, state):
        return (yield from relayed(Hypervisor.fill(self, spec, state), self._all_but_one))

    def _all_but_one(self, batch):
        left_out = [isinstance(one, op.VmcbWrite) and one.vcpu == 1 for one in batch]
        found = iter((yield tuple([one for one, out in zip(batch, left_out, strict=True) if not out])))
        return tuple([None if out else next(found) for out in left_out])


class ClearsAreas(Hypervisor):
    """It clears the save areas of a VM that it has laid down."""

    def fill(self, spec, state):
        entered, back = yield from Hypervisor.fill(self, spec, state)
        yield tuple([op.HostClear(spa, PAGE_BYTES) for spa in entered.save_areas])
        return entered, back


class ClearsIt(Hypervisor):
    """It takes a VM apart that it is to read, and does not."""

    def export(self, vm, started, reset_rips):
        record = self.launched(vm)
        frames = [*joined(record.frames), *[(spa, PAGE_BYTES) for spa in record.small]]
        yield (*[op.HostClear(spa, length) for spa, length in frames], op.VmcbClear(vm))
        raise LaunchRefused("taken apart")


DO_OTHERWISE = (Reorders, SharesAnArea, ForgetsAVcpu, ClearsAreas, that_says(lambda areas: areas[::-1]))
CHANGES = {
    "its units of work": {"R13": 1000},
    "a phase to a sleep": {"R14": SLEEPING, "R15": 5 * SECOND},
    "a demand that it has not": {"R14": 99},
    "another demand": {"R14": 1},
    "what is left": {"R15": 10**9},
    "nothing left": {"R15": 0},
    "no code": {"R15": 0, "RIP": 0x1000},
}


def in_both_ways(hypervisor, act=lambda one: wait(one, 2 * NAP_NS), **kwargs):
    """Books after a move to another host with this hypervisor and ``act`` there: done at once, and put off."""
    ends = []
    for eager in (True, False):
        here, there = pair(eager=eager, there=hypervisor, **kwargs)
        move(here, there, here.guests["vm"].spec)
        acted = act(there)
        ends.append((acted, books(here), books(there)))
    return ends


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_it_goes_on_with_the_registers_that_its_hypervisor_stored(change, first):
    eager, lazy = in_both_ways(that_changes(CHANGES[change]), registers, first=first)
    assert eager == lazy
    eager, lazy = in_both_ways(that_changes(CHANGES[change]), first=first)
    assert eager == lazy


def test_one_that_sleeps_for_as_long_as_its_hypervisor_stored_is_not_put_up():
    here, there = pair(there=that_changes({"R15": 5 * SECOND}))
    move(here, there, here.guests["vm"].spec)
    assert is_newcomer(there)
    wait(there, 6 * SECOND)
    assert there.guests["vm"].vcpus[0].registers.r13 == 2


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("hypervisor", DO_OTHERWISE)
def test_each_vcpu_has_its_own_save_area_whatever_its_hypervisor_does_with_them(hypervisor, first):
    eager, lazy = in_both_ways(hypervisor, vcpus=2, first=first)
    assert eager == lazy


def test_save_areas_are_those_of_their_control_blocks_in_whatever_order_these_were_written():
    here, there = pair(vcpus=2, there=Reorders)
    move(here, there, here.guests["vm"].spec)
    assert is_newcomer(there)
    areas = [vcpu.save_area_spa for vcpu in there.guests["vm"].vcpus]
    assert areas == [there.board.vmcb("vm", index).save_area_spa for index in range(2)]


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("areas", [lambda areas: areas[:1], lambda areas: (*areas, areas[0])])
def test_save_areas_for_more_or_fewer_vcpus_than_it_has_are_refused_in_both_ways(areas, first):
    for eager in (True, False):
        here, there = pair(eager=eager, vcpus=2, first=first, there=that_says(areas))
        with pytest.raises(ValueError, match=r"argument 2 is (longer|shorter)"):
            move(here, there, here.guests["vm"].spec)


@pytest.mark.parametrize("first", [0, 2])
def test_one_that_its_hypervisor_takes_apart_as_it_leaves_has_nothing_to_go_on_with(first):
    def leave(one):
        told = []
        one.departures.begin("vm", lambda _: None)
        one.departures.stop("vm", 0, told.append, told.append)
        until(lambda: told, one)
        one.departures.cancel("vm")
        wait(one, 2 * NAP_NS)
        return told, one.guests["vm"].state

    eager, lazy = in_both_ways(ClearsIt, leave, first=first)
    assert eager == lazy
    assert eager[0] == (["taken apart"], "stopped")


@pytest.mark.parametrize("first", [0, 2])
def test_what_runs_keeps_its_registers_when_its_save_area_is_cleared(first):
    def clear(one):
        def task():
            yield (op.HostClear(one.hypervisor.launched("vm").save_areas[0], PAGE_BYTES),)

        one.tasks.run(task(), one.guests["vm"], lambda _: None)
        wait(one, SECOND)
        vcpu = one.guests["vm"].vcpus[0]
        assert vcpu.state is (VcpuState.COMPUTING if first else VcpuState.SLEEPING)
        return registers(one)

    eager, lazy = in_both_ways(Hypervisor, clear, first=first)
    assert eager == lazy
    assert lazy[0]["r13"] == 1
