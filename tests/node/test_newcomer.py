"""A VM that comes in the middle of something is what it would have been, whenever it is put up; no move puts it up."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moved_guests import PLAIN, move, on_board, registers, until
from newcomers import FIGURES, NAP_NS, WRITES, Napper, at, books, is_newcomer, pair, wait
from toy_guests import DEMANDS, SECOND, guest_spec, start

from node import operations as op
from node.guest import GONE, GuestState
from node.hypervisor import Hypervisor
from node.migration_loads import NO_STREAMS, StreamRates
from node.neighbour_ledger import NeighbourLedger
from node.newcomer import Newcomer
from node.vcpu import AWAITING, VcpuState
from node.vmsa import VMSA_FIELDS


class OfOnesOwn(Hypervisor):
    """The same under another name: its tasks are run, for nobody knows what they will do."""


def pause_a_while(one):
    one.pause("vm")
    wait(one, SECOND)
    one.resume("vm")


def call_off(one, after_ns=0):
    told = []
    one.departures.begin("vm", told.append)
    wait(one, after_ns + 1)
    stated = len(told)
    one.departures.stop("vm", 0, told.append)
    until(lambda: len(told) > stated, one)
    one.departures.cancel("vm")


def another_vm(one):
    start(one, f"other-{len(one.guests)}", PLAIN, "naps")


def slow_there(one):
    one.arrivals.slow("vm", 0.5)
    wait(one, SECOND)
    one.arrivals.slow("vm", 0.0)


def leave_slowly(one):
    """Begin to leave, be slowed down for it and asked what it reads, and stay."""
    one.departures.begin("vm", lambda _: None)
    wait(one, SECOND)
    reads = one.departures.reads("vm")
    one.departures.slow("vm", 0.3, 1e6)
    wait(one, SECOND)
    assert len(reads.of_pools) == len(one.departures.statement("vm"))
    one.departures.cancel("vm")


STEPS = {
    "its vCPUs": lambda one: one.guests["vm"].vcpus,
    "its control block": lambda one: one.board.vmcb("vm", 0),
    "its registers": registers,
    "a kick": lambda one: one.board.execute_host((op.VmKick("vm", 0),)),
    "its board": on_board,
    "free memory": lambda one: one.board.unlaid.free_memory.end(),
    "a pause": pause_a_while,
    "a move called off": call_off,
    "a move called off after it awoke": lambda one: call_off(one, NAP_NS),
    "another VM": another_vm,
    "slowed down": slow_there,
    "slowed down to leave": leave_slowly,
    "a second": lambda one: wait(one, SECOND),
    "most of a nap": lambda one: wait(one, NAP_NS - 3 * SECOND),
    "a nap": lambda one: wait(one, NAP_NS),
}


def stop(one):
    told = []
    one.departures.begin("vm", lambda _: None)
    one.departures.stop("vm", 0, told.append)
    return told


def crash_with_its_books_elsewhere(one):
    told = stop(one)
    until(lambda: told, one)
    one.crash()
    wait(one, SECOND)


def hand_on(one):
    told = stop(one)
    until(lambda: told, one)
    one.departures.hand_on("vm")
    wait(one, 2 * NAP_NS)


ENDS = {
    "a crash": lambda one: (one.crash(), wait(one, SECOND)),
    "a crash with its books elsewhere": crash_with_its_books_elsewhere,
    "its end": lambda one: (one.destroy("vm"), wait(one, SECOND)),
    "its start elsewhere": hand_on,
    "the end of the books while it is read": stop,
}


STREAMS = (NO_STREAMS, StreamRates(12.5e9, 0.0), StreamRates(3e9, 1e9))
HYPERVISORS = (Hypervisor, OfOnesOwn)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["move", "a move past another VM", *STEPS]), min_size=1, max_size=9), st.integers(1, 3),
    st.integers(0, 2), st.sampled_from([None, *ENDS]), st.sampled_from(STREAMS), st.sampled_from(HYPERVISORS),
)  # fmt: skip
def test_it_is_what_it_would_have_been_whatever_is_done_with_it(plan, vcpus, first, end, streams, hypervisor):
    ends = []
    for eager in (True, False):
        here, there = pair(eager=eager, vcpus=vcpus, first=first, streams=streams, here=hypervisor, there=hypervisor)
        for step in ["move", *plan]:
            if step == "move":
                move(here, there, here.guests["vm"].spec)
                here, there = there, here
            elif step == "a move past another VM":
                move(here, there, here.guests["vm"].spec, at("whole", another_vm))
                here, there = there, here
            else:
                STEPS[step](here)
        if end is not None:
            ENDS[end](here)
        ends.append((books(here), books(there)))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("first", [0, 2])
def test_whole_moves_put_nobody_up(monkeypatch, first):
    here, there = pair(vcpus=2, first=first)
    move(here, there, here.guests["vm"].spec)

    def no_put_up(_):
        raise AssertionError("somebody asked for it")

    monkeypatch.setattr(Newcomer, "put_up", no_put_up)
    for _ in range(3):
        here, there = there, here
        assert is_newcomer(here)
        move(here, there, here.guests["vm"].spec)
    assert is_newcomer(there)
    assert not vars(here.guests["vm"]).keys() & {"vcpus", "software", "lost_ns", "row_ns"}


VCPUS_AT = {"export": 1, "fill": 0, "whole": 0, "depart": 0}
"""How many a VM has on the host where a move is at this step."""
AFTERWARDS = ("nothing", "a nap", "a crash", "its end")


@pytest.mark.parametrize("after", AFTERWARDS)
@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("step", VCPUS_AT)
def test_who_asks_while_a_step_of_a_move_takes_its_time_changes_nothing(step, first, after):
    ends = []
    for eager in (True, False):
        here, there = pair(eager=eager, first=first)
        move(here, there, here.guests["vm"].spec)
        seen = []

        def ask(one, seen=seen):
            seen.append(len(one.guests["vm"].vcpus))

        move(there, here, there.guests["vm"].spec, at(step, ask))
        assert seen == [VCPUS_AT[step]]
        if after in ENDS:
            ENDS[after](here)
        if after != "nothing":
            wait(here, 2 * NAP_NS)
        ends.append((books(here), books(there)))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("end", ["a crash", "its end"])
def test_one_that_came_past_another_vm_ends_when_it_is_told_to(end, first):
    """That one's launch finds out where the VM lies, which has no vCPUs yet."""
    here, there = pair(first=first)
    move(here, there, here.guests["vm"].spec, at("whole", another_vm))
    assert is_newcomer(there)
    assert not vars(there.guests["vm"]).keys() & {"vcpus", "software", "lost_ns", "row_ns"}
    ENDS[end](there)
    wait(there, 2 * NAP_NS)
    guest = there.guests["vm"]
    assert (guest.state, guest.operations) == (GuestState.DESTROYED, 1)


def test_the_end_of_its_sleep_puts_it_up_and_only_where_it_sleeps():
    here, there = pair()
    move(here, there, here.guests["vm"].spec)
    wait(there, SECOND)
    move(there, here, there.guests["vm"].spec)
    wait(there, NAP_NS)
    assert there.guests["vm"].state in GONE
    assert there.vcpus.operations == 0
    assert is_newcomer(here)
    before = here.vcpus.operations
    wait(here, NAP_NS)
    assert not is_newcomer(here)
    assert here.vcpus.operations == before + 1


def test_how_fast_it_writes_is_measured_from_when_it_began_to_leave():
    """It awakes, and begins to write, while it is copied."""
    ends = []
    for eager in (True, False):
        here, there = pair(eager=eager)
        wait(here, NAP_NS + SECOND)
        move(here, there, here.guests["vm"].spec)
        wait(there, 2 * NAP_NS - SECOND - there.now_ns)
        stated = []
        stated.append(there.departures.begin("vm", stated.append))
        assert is_newcomer(there) is not eager
        wait(there, 12 * SECOND)
        assert there.guests["vm"].vcpus[0].state is VcpuState.COMPUTING
        stated.append(there.departures.statement("vm"))
        ends.append(stated)
    assert ends[0] == ends[1]
    assert ends[0][0] == ((1 << 20, 0.0),)
    assert len(ends[0]) > 2


def test_one_whose_phases_are_asked_for_by_name_is_put_up_at_once():
    here, there = pair(first=2)
    there.contention.ledger = NeighbourLedger()
    move(here, there, here.guests["vm"].spec)
    assert not is_newcomer(there)
    assert there.guests["vm"].vcpus[0].state is VcpuState.COMPUTING


@pytest.mark.parametrize("r14", [99, AWAITING, 1])
def test_one_whose_registers_somebody_has_changed_does_what_they_say(r14):
    ends = []
    for eager in (True, False):
        here, there = pair(eager=eager, first=2)

        def change(step, one):
            if step == "export":
                area = one.board.vmcb("vm", 0).save_area_spa + VMSA_FIELDS["R14"].offset
                one.board.execute_host((op.HostWrite(area, r14.to_bytes(8, "little")),))

        move(here, there, here.guests["vm"].spec, change)
        assert is_newcomer(there) is (r14 == 1 and not eager)
        ends.append((books(here), books(there)))
    assert ends[0] == ends[1]


def test_one_that_has_gone_on_holds_no_seats():
    here, there = pair(vcpus=2)
    move(here, there, here.guests["vm"].spec)
    move(there, here, there.guests["vm"].spec)
    start(there, "other", PLAIN, "naps", vcpus=2)
    assert there.vcpus.seats.peak == 2


@dataclass(frozen=True, slots=True)
class BusyNapper(Napper):
    """A program of the same name that writes more."""

    demands = (replace(WRITES, written_set_bytes=8 << 20), *DEMANDS)


@pytest.mark.parametrize("first", [0, 2])
def test_two_programs_of_one_name_are_two_though_one_specification_names_both(first):
    spec, stated = guest_spec("vm", PLAIN, "naps"), []
    for kind, eager in ((Napper, False), (BusyNapper, False), (BusyNapper, True)):
        here, there = pair(first=first, kind=kind, spec=spec, eager=eager)
        move(here, there, spec)
        stated.append((there.departures.begin("vm", lambda _: None), books(there)))
    assert stated[1] == stated[2]
    assert [pools[0].working_set_bytes for pools, _ in stated] == [1 << 20, 8 << 20, 8 << 20]


@pytest.mark.parametrize("first", [0, 2])
def test_what_a_host_has_of_one_does_not_depend_on_what_came_before(first):
    spec, found = guest_spec("vm", PLAIN, "naps"), []
    for _ in range(2):
        here, there = pair(first=first, spec=spec)
        for _ in range(2):
            move(here, there, spec)
            here, there = there, here
        here.departures.begin("vm", lambda _: None)
        found += [here.guests["vm"], there.guests["vm"]]
    figures = [{name: value for name, value in vars(guest).items() if name in FIGURES} for guest in found]
    assert figures[:2] == figures[2:]
