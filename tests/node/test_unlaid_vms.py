"""A VM that came from another host is there for whoever looks, whenever that is; until then nothing was done for it."""

import copy
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_guests import SECOND, guest_spec, look, make_host, run, script, start

from node import operations as op
from node.generation import Generation
from node.guest import GuestState
from node.migration_frames import NO_SESSION, PageDigests, Stream
from node.platform import HostMode, Platform
from node.program import Compute
from node.unlaid_vms import UnlaidVms
from psp.system_bus import PAGE_BYTES, RmpEntry

PLAIN = Generation.PLAIN
MARK = b"\xa5" * PAGE_BYTES


def free_runs(frames):
    return [(start, end - start) for start, end in zip(frames._starts, frames._ends, strict=True)]


def works(placement, registers):
    """Write a page, then compute for so long that only somebody else ends it."""
    yield (op.Write(placement.base_gpa + PAGE_BYTES * (registers.r13 % 4), MARK),)
    registers.r13 += 1
    return Compute(0, 10**12)


WORKS = script(works)


def until(condition, host):
    while not condition():
        host.clock.env.step()


def host(*, eager=False, **kwargs):
    made = make_host({"works": WORKS}, **kwargs)
    if eager:
        made.board.unlaid.expect = lambda _: None
    return made


def move(source, target, spec, passing=lambda _step, _host: None):
    """What a migration does, in one process; the target's clock goes on to where the source's is.

    ``passing`` is called while the time of a step passes.
    """
    name, told = spec.name, []
    source.clock.env.run(until=max(source.now_ns + 1, target.now_ns))
    assert isinstance(source.departures.begin(name, lambda _: None), tuple)
    target.clock.env.run(until=max(target.now_ns + 1, source.now_ns))
    target.arrivals.prepare(spec, lambda wrong, _: told.append(wrong))
    until(lambda: told, target)
    source.departures.stop(name, 0, told.append)
    passing("export", source)
    until(lambda: len(told) > 1, source)
    what = told[1]
    target.clock.env.run(until=max(target.now_ns + 1, source.now_ns))
    frames, digests = Stream(what.state, NO_SESSION), PageDigests(what.state.pages)
    target.arrivals.complete(name, frames, digests, what.books, told.append)
    passing("fill", target)
    until(lambda: len(told) > 2, target)
    assert told[0] is told[2] is None
    target.arrivals.start(name)
    source.departures.finish(name)
    passing("depart", source)
    run(source, source.now_ns + SECOND)
    return what


def moved(*, eager=False, turns=1):
    """A pair of hosts between which a VM went back and forth; where it is now comes first."""
    here, there = host(name="here"), host(name="there", eager=eager)
    if eager:
        here.board.unlaid.expect = lambda _: None
    guest = start(here, "vm", PLAIN, "works")
    run(here, SECOND)
    for _ in range(turns):
        move(here, there, guest.spec)
        here, there = there, here
    return here, there


def frames_of(one):
    record = one.hypervisor.launched("vm")
    return [*record.frames, *[(spa, PAGE_BYTES) for spa in record.small], *record.tables]


def on_board(one):
    """All that there is of the VM, as bytes and as who runs with what."""
    board, record = one.board, one.hypervisor.launched("vm")
    runs = [run for spa, length in frames_of(one) for run in board.dram.resident_runs(spa, length)]
    octets = [board.dram.read(spa, length) for spa, length in runs]
    vmcb = board.vmcb("vm", 0)
    mapped = vmcb.nested.translate(record.ram[0][0], record.ram[0][2])
    running = dict(board.running._areas), set(board.running._scheduled), dict(board.running.threads)
    return (
        octets, dataclasses.replace(vmcb, nested=None), vmcb.nested.nested_cr3, mapped, running,
        board.residents.at_home(vmcb), board.backing("vm"), registers(one), one.now_ns,
        board.dram.resident_bytes,
    )  # fmt: skip


def registers(one):
    held = one.guests["vm"].vcpus[0].registers
    return {name: getattr(held, name) for name in held.__slots__}


LOOKS = {
    "a load of the host": lambda one: one.board.execute_host((op.HostRead(frames_of(one)[0][0], 8),)),
    "a store of the host": lambda one: one.board.execute_host((op.HostWrite(frames_of(one)[0][0] + 8, bytes(8)),)),
    "DRAM itself": lambda one: one.board.dram.read(frames_of(one)[0][0], 1),
    "a page of its tables": lambda one: one.board.dram.read(frames_of(one)[-1][0], 1),
    "its save area": lambda one: one.board.dram.read(one.guests["vm"].vcpus[0].save_area_spa, 1),
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
            here.hypervisor.frames.used_bytes, free_runs(here.hypervisor.frames), here.log.close(), there.log.close(),
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
            here.hypervisor.frames.used_bytes, free_runs(here.hypervisor.frames), here.log.close(), there.log.close(),
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
        for spa, length in free_runs(frames):
            if taken == "frames":  # All but less than the VM needs.
                assert frames.allocate(length - (48 << 20), PAGE_BYTES)
            else:  # Every run ends in the middle of the VM.
                for at in range(spa + (40 << 20), spa + length - (40 << 20), 40 << 20):
                    index = next(i for i, (start, size) in enumerate(free_runs(frames)) if start <= at < start + size)
                    frames._cut(index, at, at + PAGE_BYTES)
        target.arrivals.prepare(guest_spec("vm", PLAIN, "works"), lambda wrong, _: wrongs.append(wrong))
        run(target, target.now_ns + SECOND)
        wrongs.append((free_runs(frames), frames.used_bytes, frames.peak_bytes))
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
