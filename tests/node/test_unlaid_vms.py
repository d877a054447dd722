"""A VM that came from another host is there for whoever looks, whenever that is; until then nothing was done for it."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moved_guests import MARK, PLAIN, frames_of, host, move, moved, on_board
from toy_guests import SECOND, guest_spec, look, run

from node import operations as op
from node.guest import GuestState
from node.platform import HostMode, Platform
from node.unlaid_vms import UnlaidVms
from psp.system_bus import PAGE_BYTES, RmpEntry

LOOKS = {
    "a load of the host": lambda one: one.board.execute_host((op.HostRead(frames_of(one)[0][0], 8),)),
    "a store of the host": lambda one: one.board.execute_host((op.HostWrite(frames_of(one)[0][0] + 8, bytes(8)),)),
    "DRAM itself": lambda one: one.board.dram.read(frames_of(one)[0][0], 1),
    "a page of its tables": lambda one: one.board.dram.read(frames_of(one)[-1][0], 1),
    "its save area": lambda one: one.board.dram.read(one.hypervisor.launched("vm").save_areas[0], 1),
    "its control block": lambda one: one.board.vmcb("vm", 0),
    "its nested table": lambda one: one.board.nested_table("vm"),
    "a mapping of the host's": lambda one: one.board.execute_host((op.NestedUnmap("vm", 1 << 40, PAGE_BYTES),)),
    "an owner of its pages": lambda one: one.board.execute_host(
        (op.RmpUpdate(frames_of(one)[0][0] + (4 << 20), PAGE_BYTES, RmpEntry()),)
    ),
    "a kick": lambda one: one.board.execute_host((op.VmKick("vm", 0),)),
    "the end of the books": lambda one: one.close(one.now_ns),
    "its end": lambda one: one.vcpus.halt(one.guests["vm"].vcpus[0], one.guests["vm"].vcpus[0].state)
    or one.board.vmcb("vm", 0),
}


@pytest.fixture(scope="module")
def eager():
    """What a board that puts nothing off holds, after one turn and after two."""
    return {turns: on_board(moved(eager=True, turns=turns)[0]) for turns in (1, 2, 3)}


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_who_looks_finds_what_an_eager_board_holds(eager, turns):
    here, _ = moved(turns=turns)
    assert set(here.board.unlaid.vms) == {"vm"}
    assert on_board(here) == eager[turns]
    assert not here.board.unlaid.vms


@pytest.mark.parametrize("what", LOOKS)
def test_every_way_to_look_has_it_laid_down_first(what):
    here, _ = moved()
    expected, _ = moved(eager=True)
    assert set(here.board.unlaid.vms) == {"vm"}
    LOOKS[what](here)
    assert not here.board.unlaid.vms
    LOOKS[what](expected)
    assert on_board(here) == on_board(expected)


def test_the_first_load_of_a_page_of_its_tables_finds_what_they_hold():
    here, _ = moved()
    expected, _ = moved(eager=True)
    runs = expected.board.dram.resident_runs(*frames_of(expected)[-1])
    assert runs
    assert [here.board.dram.read(*run) for run in runs] == [expected.board.dram.read(*run) for run in runs]


def test_a_block_that_it_runs_finds_its_program_and_memory():
    here, _ = moved()
    guest = here.guests["vm"]
    vcpu = guest.vcpus[0]
    assert guest.software.programs[0] is None
    here.vcpus.halt(vcpu, vcpu.state)
    vcpu.registers.r15 = 0
    here.vcpus.start(vcpu)
    run(here, here.now_ns + SECOND)
    assert not here.board.unlaid.vms
    program = guest.software.programs[0]
    assert program is not None
    assert (program.entry, (program.demands,)) == (guest.software.entry, guest.software.demands)
    assert guest.faults == 0
    assert vcpu.registers.r13 == 2
    first = guest.spec.memory.placement("vm", 0, 0).base_gpa
    assert look(here, guest, first, 2 * PAGE_BYTES) == MARK * 2


def test_one_that_goes_on_before_anybody_looks_leaves_empty_memory():
    _, there = moved(turns=3)
    fresh = host()
    assert there.board.dram.resident_bytes == fresh.board.dram.resident_bytes
    assert there.hypervisor.frames.used_bytes == fresh.hypervisor.frames.used_bytes
    assert there.guests["vm"].state is GuestState.DEPARTED
    assert not there.board.unlaid.vms
    assert not there.board.running._areas
    there.board.unlaid.free_memory.end()
    assert there.board.dram.cells._kept._starts == fresh.board.dram.cells._kept._starts


def test_a_whole_move_is_no_look(monkeypatch):
    here, there = moved()
    looks = []
    monkeypatch.setattr(UnlaidVms, "look", lambda self, vm: looks.append(vm) if vm in self.vms else False)
    move(here, there, here.guests["vm"].spec)
    assert looks == []


@pytest.mark.parametrize("step", ["export", "fill", "depart"])
def test_a_step_during_which_somebody_looks_comes_to_the_same(step):
    ends = []
    for eager in (False, True):
        here, there = moved(eager=eager)
        looked = []

        def look_then(passing, one, looked=looked, lazy=not eager):
            if passing == step:
                assert one.board.unlaid.look("vm") is lazy
                looked.append(one.now_ns)

        move(here, there, here.guests["vm"].spec, look_then)
        assert len(looked) == 1
        ends.append((
            looked, on_board(there), here.now_ns, here.board.dram.resident_bytes,
            here.hypervisor.frames.used_bytes, here.hypervisor.frames.free_runs(), here.log.close(), there.log.close(),
        ))  # fmt: skip
    assert ends[0] == ends[1]


@pytest.mark.parametrize("step", ["place", "export", "fill", "depart"])
def test_a_record_that_is_asked_for_says_what_an_eager_hypervisor_s_says_and_the_move_goes_on(step):
    ends = []
    for eager in (False, True):
        here, there = moved(eager=eager)
        records = []

        def ask_then(passing, one, records=records):
            if passing == step:
                records.append(copy.deepcopy(one.hypervisor.launched("vm")))

        if step == "place":
            ask_then(step, here)
        move(here, there, here.guests["vm"].spec, ask_then)
        assert len(records) == 1
        ends.append((
            records, on_board(there), here.now_ns, here.board.dram.resident_bytes,
            here.hypervisor.frames.used_bytes, here.hypervisor.frames.free_runs(), here.log.close(), there.log.close(),
        ))  # fmt: skip
    assert ends[0] == ends[1]


def test_a_hypervisor_has_no_record_of_a_vm_that_nobody_asks_for_and_lets_no_second_one_of_its_name_come():
    here, there = moved()
    assert not here.hypervisor.has_record("vm")
    assert set(here.hypervisor.places) == {"vm"}
    with pytest.raises(ValueError, match="already"):
        here.arrivals.prepare(here.guests["vm"].spec, lambda *_: None)
    move(here, there, here.guests["vm"].spec)
    assert not here.hypervisor.places
    assert not here.hypervisor.has_record("vm")


def test_a_step_makes_no_operations_and_takes_as_many_events(monkeypatch):
    counts = []
    for eager in (True, False):
        here, there = moved(eager=eager)
        if not eager:
            monkeypatch.setattr(UnlaidVms, "execute", None)
        before = here.clock.env._eid, there.clock.env._eid
        move(here, there, here.guests["vm"].spec)
        counts.append([next(ids) for ids in before])
    assert counts[0] == counts[1]


@pytest.mark.parametrize("taken", ["frames", "one page"])
def test_a_place_that_is_not_there_in_one_piece_is_found_or_refused_as_ever(taken):
    wrongs = []
    for eager in (False, True):
        target = host(eager=eager)
        frames = target.hypervisor.frames
        for spa, length in frames.free_runs():
            if taken == "frames":  # All but less than the VM needs.
                assert frames.allocate(length - (48 << 20), PAGE_BYTES)
            else:  # Every run ends in the middle of the VM.
                for at in range(spa + (40 << 20), spa + length - (40 << 20), 40 << 20):
                    index = next(i for i, (start, size) in enumerate(frames.free_runs()) if start <= at < start + size)
                    frames._cut(index, at, at + PAGE_BYTES)
        target.arrivals.prepare(guest_spec("vm", PLAIN, "works"), lambda wrong, _: wrongs.append(wrong))
        run(target, target.now_ns + SECOND)
        wrongs.append((frames.free_runs(), frames.used_bytes, frames.peak_bytes))
    assert wrongs[: len(wrongs) // 2] == wrongs[len(wrongs) // 2 :]
    assert (wrongs[0] is None) == (taken == "one page")


def test_it_stands_still_where_it_is_told_to_and_goes_on_with_its_registers():
    here, _ = moved()
    expected, _ = moved(eager=True)
    for one in (here, expected):
        one.pause("vm")
        one.clock.env.run(until=one.now_ns + SECOND)
        one.resume("vm")
        one.clock.env.run(until=one.now_ns + SECOND)
    assert set(here.board.unlaid.vms) == {"vm"}
    assert on_board(here) == on_board(expected)


def assigned(one, spa):
    """Give the page to a guest of SNP that there is none of."""
    entry = RmpEntry(assigned=True, gpa=0, asid=1)
    assert one.board.execute_host((op.RmpUpdate(spa, PAGE_BYTES, entry),)) == (0,)


def test_what_the_board_would_have_refused_is_refused_at_once():
    """The hypervisor hands out a page that its own books have as free and the RMP as a guest's."""
    wrongs = []
    for eager in (False, True):
        target = host(eager=eager)
        spec = guest_spec("vm", PLAIN, "works")
        target.hypervisor.frames.allocate(PAGE_BYTES, PAGE_BYTES)
        probe = host()
        probe.hypervisor.frames.allocate(PAGE_BYTES, PAGE_BYTES)
        probe.arrivals.prepare(spec, lambda *_: None)
        table = probe.hypervisor.launched("vm").tables[0][0]
        assigned(target, table)
        target.arrivals.prepare(spec, lambda wrong, _: wrongs.append(wrong))
        run(target, target.now_ns + SECOND)
        assert not target.board.unlaid.vms
    assert wrongs[0] == wrongs[1]
    assert wrongs[0] is not None


@pytest.mark.parametrize("kind", [{"platform": "TSME"}, {"observer": True}])
def test_a_board_on_which_more_than_bytes_would_change_puts_nothing_off(kind):
    if "platform" in kind:
        one = host(platform=Platform(mode=HostMode.TSME))
    else:
        one = host()
        one.board.observer = lambda *_: None
    one.arrivals.prepare(guest_spec("vm", PLAIN, "works"), lambda *_: None)
    assert not one.board.unlaid.vms
    assert "vm" in one.board.nested


def test_a_tap_that_comes_later_sees_every_operation_from_then_on():
    here, there = moved()
    seen = []
    here.board.observer = lambda _actor, batch, _answers: seen.extend(batch)
    move(here, there, here.guests["vm"].spec)
    assert any(isinstance(one, op.HostReadWritten) for one in seen)
    assert any(isinstance(one, op.VmcbClear) for one in seen)


@settings(max_examples=12, deadline=None)
@given(plan=st.lists(st.sampled_from(["move", *sorted(LOOKS)[:6]]), min_size=1, max_size=5))
def test_looks_between_moves_change_nothing(plan):
    ends = []
    for eager in (False, True):
        here, there = moved(eager=eager)
        for step in plan:
            if step == "move":
                move(here, there, here.guests["vm"].spec)
                here, there = there, here
            else:
                LOOKS[step](here)
        ends.append((on_board(here), here.log.close(), there.log.close(), there.board.dram.resident_bytes))
    assert ends[0] == ends[1]
