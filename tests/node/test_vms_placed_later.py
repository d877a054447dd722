"""Where a VM's frames are is put off until somebody looks where free memory was; it is where it would have been."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moved_guests import PLAIN, frames_of, host, move, on_board, until
from toy_guests import SECOND, run, start

from node import operations as op
from node.generation import Generation
from node.guest import GuestState
from node.migration_frames import NO_SESSION, PageDigests, Stream
from node.platform import Platform
from node.rmp_faults import RmpCode
from psp.system_bus import PAGE_BYTES, RmpEntry

NAMES = ("a", "b", "c", "d")


def pair(*, eager, names=NAMES, **kwargs):
    """Two hosts, the first with VMs that were launched there."""
    here, there = host(name="here", eager=eager, **kwargs), host(name="there", eager=eager, **kwargs)
    for name in names:
        start(here, name, PLAIN, "works")
    run(here, SECOND)
    return here, there


def waits(one, name):
    found = one.board.unlaid.vms.get(name)
    return found is not None and found.waits is not None


def is_on(one, name):
    return name in one.guests and one.guests[name].state is GuestState.RUNNING


def assigned(one, spa):
    """Give a page to a guest of SNP that there is none of."""
    return one.board.execute_host((op.RmpUpdate(spa, PAGE_BYTES, RmpEntry(assigned=True, gpa=0, asid=1)),))


def first_free(one):
    return one.hypervisor.frames.free_runs()[0][0]


IN_FREE_MEMORY = {
    "a load of the host": lambda one: one.board.execute_host((op.HostRead(first_free(one), 8),)),
    "a store of the host": lambda one: one.board.execute_host((op.HostWrite(first_free(one), bytes(8)),)),
    "DRAM itself": lambda one: one.board.dram.read(first_free(one), 1),
    "an owner": lambda one: assigned(one, first_free(one)),
    "a clearing": lambda one: one.board.execute_host((op.HostClear(first_free(one), PAGE_BYTES),)),
}


@pytest.mark.parametrize("what", IN_FREE_MEMORY)
def test_whoever_touches_free_memory_has_every_vm_take_its_place_and_lays_none_down(what):
    ends = []
    for eager in (False, True):
        here, there = pair(eager=eager)
        for name in NAMES[:3]:
            move(here, there, here.guests[name].spec)
        assert [waits(there, name) for name in NAMES[:3]] == [not eager] * 3
        IN_FREE_MEMORY[what](there)
        assert [waits(there, name) for name in NAMES[:3]] == [False] * 3
        assert not there.board.unlaid.free_memory.starts
        assert list(there.board.unlaid.vms) == ([] if eager else list(NAMES[:3]))
        ends.append([on_board(there, name)[:9] for name in reversed(NAMES[:3])])
    for mine, theirs in zip(*ends, strict=True):
        assert mine[:4] == theirs[:4]
        assert mine[5:] == theirs[5:]
    assert ends[0][-1] == ends[1][-1]  # Of the last that was looked at all are laid down.


def test_an_access_to_a_frame_of_one_that_waits_finds_what_lies_there():
    here, there = pair(eager=False)
    expected, eager = pair(eager=True)
    for source, target in ((here, there), (expected, eager)):
        for name in NAMES[:2]:
            move(source, target, source.guests[name].spec)
    record = eager.hypervisor.launched("b")
    runs = [run for spa, length in frames_of(eager, "b") for run in eager.board.dram.resident_runs(spa, length)]
    assert runs
    spa, length = runs[-1]
    assert there.board.dram.read(spa, length) == eager.board.dram.read(spa, length)
    assert list(there.board.unlaid.vms) == ["a"]
    assert there.hypervisor.launched("b") == record


def test_a_save_area_that_nobody_asked_for_is_in_use_once_its_page_is_asked_for():
    here, there = pair(eager=False)
    move(here, there, here.guests["a"].spec)
    assert there.guests["a"].vcpus[0].save_area_spa == -1
    assert there.board.rmp.checks.first_in_use(0, 1 << 40) is None
    (area,) = there.hypervisor.launched("a").save_areas
    assert waits(there, "a")
    there.board.dram.read(area, 1)
    assert there.board.rmp.checks.first_in_use(0, 1 << 40) == area // PAGE_BYTES
    assert there.guests["a"].vcpus[0].save_area_spa == area


def test_entries_of_a_range_that_goes_on_beyond_memory_are_refused_for_a_save_area_in_use():
    ends = []
    for eager in (False, True):
        here, there = pair(eager=eager)
        move(here, there, here.guests["a"].spec)
        area = ends[0][0].save_area_spa if eager else first_free(there) - PAGE_BYTES
        beyond = there.board.dram.size_bytes - area + PAGE_BYTES
        update = op.RmpUpdate(area, beyond, RmpEntry(assigned=True, gpa=0, asid=1))
        answer = there.board.execute_host((update,))
        assert not waits(there, "a")
        ends.append((dataclasses.replace(there.board.vmcb("a", 0), nested=None), answer))
        assert ends[-1][0].save_area_spa == area
    assert ends[0] == ends[1]
    assert ends[0][1] == (RmpCode.FAIL_INUSE,)


def test_one_that_is_looked_at_before_it_runs_has_its_save_area_where_it_was_laid_down():
    here, there = pair(eager=False)

    def looked(step, one):
        if step == "depart":  # It has begun to run.
            assert waits(there, "a")

    here.clock.env.run(until=here.now_ns + 1)
    move(here, there, here.guests["a"].spec, looked)
    told = []
    here.departures.begin("b", lambda _: None)
    there.clock.env.run(until=max(there.now_ns + 1, here.now_ns))
    there.arrivals.prepare(here.guests["b"].spec, lambda wrong, _: told.append(wrong))
    assert told == [None]
    assert waits(there, "b")
    there.board.unlaid.look_at_all()
    assert not there.board.unlaid.vms
    assert there.guests["a"].vcpus[0].save_area_spa == there.board.vmcb("a", 0).save_area_spa


def test_room_that_is_given_back_by_one_that_was_launched_is_watched_too():
    """Who comes next lies there on an eager board, and is found there."""
    ends = []
    for eager in (False, True):
        here, there = pair(eager=eager)
        back = start(there, "back", PLAIN, "works")
        move(here, there, here.guests["a"].spec)
        move(there, here, back.spec)
        move(here, there, here.guests["b"].spec)
        if not eager:
            assert waits(there, "a")
            assert waits(there, "b")
        ends.append((
            frames_of(there, "b"), frames_of(there, "a"), there.hypervisor.frames.free_runs(),
            there.board.dram.read(frames_of(there, "b")[0][0], PAGE_BYTES),
        ))  # fmt: skip
        assert not there.board.unlaid.free_memory.starts
    assert ends[0] == ends[1]


@pytest.mark.parametrize("asked", [False, True])
def test_one_that_comes_back_while_it_is_still_cleared_leaves_nothing_behind(asked):
    """Whether or not somebody had asked where it is."""
    ends = []
    for eager in (False, True):
        here, there = pair(eager=eager)
        spec = here.guests["a"].spec
        move(here, there, spec)
        if asked:
            there.board.unlaid.free_memory.end()
        told = []

        def back(step, one, spec=spec, told=told):
            if step == "depart":
                assert "a" in one.tasks.lines
                one.arrivals.prepare(spec, lambda wrong, _: told.append(wrong))

        move(there, here, spec, back)
        assert told == [None]
        there.arrivals.abandon("a")
        run(there, there.now_ns + SECOND)
        assert not there.board.unlaid.vms
        assert not there.board.unlaid._waiting
        move(here, there, here.guests["b"].spec)
        assert waits(there, "b") is not eager
        ends.append((there.hypervisor.frames.free_runs(), frames_of(there, "b"), there.hypervisor.figures()))
        there.board.unlaid.look_at_all()
        assert all(there.board.dram.cells.is_blank(spa, length) for spa, length in there.hypervisor.frames.free_runs())
        ends[-1] += (there.board.dram.resident_bytes,)
    assert ends[0] == ends[1]


def test_entries_of_the_rmp_that_change_anywhere_end_the_watch():
    here, there = pair(eager=False)
    spare = there.hypervisor.frames.allocate(PAGE_BYTES, PAGE_BYTES)[0][0]
    move(here, there, here.guests["a"].spec)
    assert waits(there, "a")
    assert assigned(there, spare) == (0,)
    move(here, there, here.guests["b"].spec)
    assert not waits(there, "a")
    assert set(there.board.unlaid.vms) == {"a", "b"}


def test_a_host_whose_free_memory_is_not_empty_places_who_comes_at_once():
    here, there = pair(eager=False)
    spa, length = there.hypervisor.frames.free_runs()[-1]
    there.board.dram.write(spa + length // 2, b"left here")
    move(here, there, here.guests["a"].spec)
    assert set(there.board.unlaid.vms) == {"a"}
    assert not waits(there, "a")
    assert there.hypervisor.frames.returned is None


def test_whoever_gives_a_frame_back_twice_is_told_and_everybody_has_a_place():
    ends = []
    for eager in (False, True):
        here, there = pair(eager=eager)
        spare = there.hypervisor.frames.allocate(PAGE_BYTES, PAGE_BYTES)
        for name in NAMES[:2]:
            move(here, there, here.guests[name].spec)
        assert waits(there, "a") is not eager
        if eager:
            with pytest.raises(ValueError, match="released twice"):
                there.hypervisor.frames.release(spare * 2)
        else:
            there.hypervisor.frames.release(spare * 2)
            with pytest.raises(ValueError, match="released twice"):
                there.board.unlaid.free_memory.goes_on()
        assert not there.board.unlaid.free_memory.starts
        assert not waits(there, "a")
        assert there.hypervisor.frames.returned is None
        figures = there.hypervisor.figures()
        ends.append((there.hypervisor.frames.free_runs(), frames_of(there, "a"), frames_of(there, "b"), figures))
        ends[-1] += tuple(on_board(there, name)[:5] for name in "ab")
        move(there, here, there.guests["b"].spec)
        assert waits(here, "b") is not eager
    assert ends[0] == ends[1]


def test_one_whose_place_is_lost_costs_nobody_else_his(monkeypatch):
    here, there = pair(eager=False)
    for name in NAMES[:3]:
        move(here, there, here.guests[name].spec)
    place = there.board.unlaid._place_one

    def lost(vm, one):
        if vm == "b":
            raise OSError("no such place")
        place(vm, one)

    monkeypatch.setattr(there.board.unlaid, "_place_one", lost)
    with pytest.raises(OSError, match="no such place") as raised:
        there.board.unlaid.look("a")
    assert raised.value.__notes__ == ["where b lies"]
    assert set(there.board.unlaid.vms) == {"a", "c"}
    assert not there.board.unlaid._waiting
    assert on_board(there, "c")[1].save_area_spa == there.guests["c"].vcpus[0].save_area_spa


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_host_without_room_for_save_areas_refuses_whom_it_cannot_lay_down(left):
    """All that is free but so many pages is taken while the VM's frames are under way, of two vCPUs."""
    ends = []
    for eager in (False, True):
        here, there = host(name="here", eager=eager), host(name="there", eager=eager)
        start(here, "a", PLAIN, "works", vcpus=2)
        run(here, SECOND)
        frames, spec, told, taken = there.hypervisor.frames, here.guests["a"].spec, [], []
        there.clock.env.run(until=here.now_ns)
        there.arrivals.prepare(spec, lambda wrong, _, told=told: told.append(wrong))
        until(lambda told=told: told, there)
        if left == 2:
            assert waits(there, "a") is not eager
        taken += frames.allocate(frames.free_bytes - left * PAGE_BYTES, PAGE_BYTES)
        here.departures.begin("a", lambda _: None)
        here.departures.stop("a", 0, told.append)
        until(lambda told=told: len(told) > 1, here)
        what = told.pop()
        stream, digests = Stream(what.state, NO_SESSION), PageDigests(what.state.pages)
        there.arrivals.complete("a", stream, digests, what.books, told.append)
        until(lambda told=told: len(told) > 1, there)
        ends.append([told[1], there.now_ns, there.hypervisor.figures(), there.arrivals.is_whole("a")])
        there.arrivals.abandon("a")
        run(there, there.now_ns + SECOND)
        ends[-1] += [there.hypervisor.figures(), frames.free_runs()]
        frames.release(taken)
        assert len(frames.free_runs()) == 1
    assert ends[0] == ends[1]
    wanted = f"memory: {2 * PAGE_BYTES} bytes wanted, {left * PAGE_BYTES} free"
    assert ends[0][0] == (None if left == 2 else wanted)


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_prices_of_memory_on_several_nodes_are_those_of_where_it_lies(nodes):
    ends = []
    for eager in (False, True):
        here, there = pair(eager=eager, platform=Platform(numa_nodes=nodes))
        for name in NAMES[:2]:
            move(here, there, here.guests[name].spec)
        ends.append([there.board.backing(name) for name in NAMES[:2]])
    assert ends[0] == ends[1]


STEPS = st.tuples(st.sampled_from(NAMES), st.sampled_from(["move"] * 4 + ["look", "ask", "touch", "launch", "destroy"]))


@settings(max_examples=12, deadline=None)
@given(plan=st.lists(STEPS, min_size=3, max_size=9))
def test_whatever_comes_and_goes_everything_is_where_an_eager_board_has_it(plan):
    ends = []
    for eager in (False, True):
        here, there = pair(eager=eager, names=NAMES[:3])
        found, launched = [], 0
        for name, step in plan:
            at = next((one for one in (here, there) if is_on(one, name)), None)
            if at is None:
                continue
            if step == "move":
                move(at, there if at is here else here, at.guests[name].spec)
            elif step == "look":
                at.board.vmcb(name, 0)
            elif step == "ask":
                found.append(at.hypervisor.launched(name).small)
            elif step == "touch":
                at.board.dram.read(frames_of(at, name)[0][0], 1)
            elif step == "destroy" and name != "a":
                at.destroy(name)
                run(at, at.now_ns + SECOND)
            elif step == "launch":
                launched += 1
                start(at, f"new {launched}", Generation.SEV_SNP if launched % 2 else PLAIN, "works")
                run(at, at.now_ns + SECOND)
        for one in (here, there):
            one.board.unlaid.look_at_all()
            found.append((one.hypervisor.frames.free_runs(), one.hypervisor.figures(), one.board.dram.resident_bytes))
            found += [
                on_board(one, name) for name, guest in sorted(one.guests.items())
                if is_on(one, name) and guest.spec.generation is PLAIN
            ]  # fmt: skip
            found.append(one.log.close())
        ends.append(found)
    assert ends[0] == ends[1]
