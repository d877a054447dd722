"""A host in virtual time: pauses lose nothing, programs end as documented, books add up."""

import gc
import itertools
import math
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_guests import (
    COSTS,
    DEMANDS,
    GENERATIONS,
    IMAGE,
    MIB,
    MIX,
    SECOND,
    final_state,
    guest_spec,
    look,
    make_host,
    run,
    script,
    spa,
    start,
)  # fmt: skip

from cluster.guest_rows import mechanism_ns
from node import operations as op
from node.board import Board
from node.cost_table import load_cost_table
from node.dram import Dram
from node.free_costs import without_encryption, without_rmp
from node.generation import Generation
from node.guest import GuestSpec, GuestState
from node.host import Host, HostSpec
from node.mechanism import Mechanism
from node.memory_controller import MemoryController
from node.product import PRODUCTS
from node.program import ProgramSpec, Registers
from node.rmp import ReverseMapTable
from node.vcpu import VcpuState
from node.vcpu_runner import PROGRAM_FAULT
from node.vmsa import read_field
from psp.firmware import SecurityProcessor
from workloads.library import PROGRAMS

UNITS = 30


def run_ledger(generation, pauses=()):
    host = make_host()
    guest = start(host, "vm", generation, "ledger", vcpus=2, units=UNITS)
    rebuilt, parked = 0, {}
    for at, length in sorted(pauses):
        if at <= host.now_ns:
            continue
        run(host, at)
        host.clock.env.run(until=at)
        software = guest.software
        for vcpu in guest.vcpus:
            program, registers = parked.get(vcpu.index, (None, None))
            if program is not None and software.programs[vcpu.index] is not None:
                rebuilt += 1
                assert software.programs[vcpu.index] is not program
                assert vcpu.registers is not registers
        before = [(software.programs[vcpu.index], vcpu.registers) for vcpu in guest.vcpus]
        host.pause("vm")
        run(host, at + length)
        host.clock.env.run(until=at + length)
        paused = [vcpu.state is VcpuState.PAUSED for vcpu in guest.vcpus]
        for vcpu, is_paused in zip(guest.vcpus, paused, strict=True):
            if is_paused:
                assert software.programs[vcpu.index] is None
                assert software.running[vcpu.index] is None
                assert not software.blocks[vcpu.index]
                assert vcpu.registers.rip == 0
        host.resume("vm")
        parked = dict(itertools.compress(enumerate(before), paused))
    run(host)
    assert guest.state is GuestState.RUNNING
    assert guest.faults == 0
    return (*final_state(host, guest), rebuilt)


UNINTERRUPTED = {generation: run_ledger(generation)[:3] for generation in GENERATIONS}
END_NS = 30_000_000


@pytest.mark.parametrize("generation", GENERATIONS)
@settings(max_examples=20, deadline=None)
@given(pauses=st.lists(st.tuples(st.integers(1, END_NS), st.integers(1, 50_000)), min_size=1, max_size=12))
def test_pauses_at_any_time_change_nothing_but_time(generation, pauses):
    *state, _ = run_ledger(generation, pauses)
    assert tuple(state) == UNINTERRUPTED[generation]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_pauses_all_the_way_rebuild_the_programs_many_times(generation):
    *state, rebuilt = run_ledger(generation, [(at, 30_000) for at in range(1, END_NS, 97_001)])
    assert rebuilt > 10
    assert tuple(state) == UNINTERRUPTED[generation]
    assert UNINTERRUPTED[generation][2] == 2 * UNITS


def library_host():
    return Host(HostSpec("h", PRODUCTS["Milan"], 8 << 30, 100, 1, 60 * SECOND), PROGRAMS, {"auto": IMAGE}, COSTS)


LIBRARY = {
    "key-value-store": (("operations_per_batch", 4),),
    "stream": (("array_bytes", 65536), ("chunk_bytes", 16384)),
    "random-access": (),
    "compile-job": (),
}


def run_workload(name, generation, pauses):
    host = library_host()
    host.launch(GuestSpec("vm", generation, 1, 256 * MIB, ProgramSpec(name), 11), lambda _: None, running=True)
    guest = host.guests["vm"]
    for at in pauses:
        run(host, at)
        host.clock.env.run(until=at)
        host.pause("vm")
        host.clock.env.run(until=at + 50_000)
        host.resume("vm")
    # At a set number of units the VM is in the same place, whenever that is.
    while guest.vcpus[0].registers.r13 < 40 and guest.state is GuestState.RUNNING and host.now_ns < 4000 * SECOND:
        host.clock.env.step()
    assert guest.state is GuestState.RUNNING, (guest.shutdown_code, guest.faults)
    host.close(host.now_ns)
    registers = guest.vcpus[0].registers
    kept = {one: getattr(registers, one) for one in Registers.__slots__ if one not in ("r14", "r15")}
    place = guest.spec.memory.placement("vm", 0, 11)
    return guest.units_of_work, kept, look(host, guest, place.base_gpa, 16 * MIB)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("name", LIBRARY)
def test_tenant_programs_go_on_after_pauses_as_if_there_had_been_none(name, generation):
    pauses = [1_000 + at * 1_234_567 + at**3 * 10_007 for at in range(1, 60)]
    assert run_workload(name, generation, pauses) == run_workload(name, generation, [])


@pytest.mark.parametrize("generation", GENERATIONS)
def test_work_of_a_vm_that_is_paused_at_the_end_is_counted(generation):
    host = make_host()
    guest = start(host, "vm", generation, "busy", vcpus=2)
    host.clock.env.run(until=SECOND)
    done = sum(vcpu.registers.r13 for vcpu in guest.vcpus)
    host.pause("vm")
    run(host, 2 * SECOND)
    host.close(2 * SECOND)
    assert guest.units_of_work == done > 0
    host.close(2 * SECOND)
    assert guest.units_of_work == done


def test_work_of_a_vm_that_was_paused_and_destroyed_is_counted():
    host = make_host()
    guest = start(host, "vm", Generation.SEV_SNP, "busy")
    host.clock.env.run(until=SECOND)
    done = guest.vcpus[0].registers.r13
    host.pause("vm")
    host.destroy("vm")
    run(host)
    host.close(host.now_ns)
    assert guest.units_of_work == done > 0


@pytest.mark.parametrize("generation", GENERATIONS)
def test_registers_of_a_paused_vm_lie_in_dram_encrypted_only_where_the_generation_says(generation):
    host = make_host()
    guest = start(host, "vm", generation, "busy")
    host.clock.env.run(until=SECOND)
    done = guest.vcpus[0].registers.r13
    host.pause("vm")
    page = host.board.dram.read(guest.vcpus[0].save_area_spa, 4096)
    in_clear = (read_field(page, "RIP"), read_field(page, "R13")) == (MIX, done)
    assert in_clear is (generation not in (Generation.SEV_ES, Generation.SEV_SNP))
    own = host.board.save_areas.load(host.board.vmcb("vm", 0))
    assert (read_field(own, "RIP"), read_field(own, "R13")) == (MIX, done)


def test_a_resume_before_the_pause_took_hold_does_not_run_a_block_twice():
    def write_once(place, registers):
        yield (op.BlockRead(0, 1, place.shared_gpa),)
        registers.r13 += 1
        return op.Sleep(10**18)

    host = make_host({"once": script(write_once)})
    guest = start(host, "vm", Generation.PLAIN, "once")
    run(host, 5)
    host.clock.env.run(until=5_000)
    assert guest.vcpus[0].state is VcpuState.BLOCK
    host.pause("vm")
    host.resume("vm")
    run(host)
    assert guest.vcpus[0].registers.r13 == 1


def test_application_processors_do_not_start_on_a_paused_vm():
    host = make_host()
    guest = start(host, "vm", Generation.SEV_SNP, "busy", vcpus=3)
    host.pause("vm")
    run(host, SECOND)
    assert [vcpu.state for vcpu in guest.vcpus] == [VcpuState.PAUSED, VcpuState.WAITING, VcpuState.WAITING]
    host.resume("vm")
    host.clock.env.run(until=2 * SECOND)
    assert all(vcpu.registers.r13 for vcpu in guest.vcpus)


def test_a_batch_takes_effect_at_one_instant_when_its_time_has_passed():
    def two_writes(place, _):
        yield tuple(op.Write(place.base_gpa + at * MIB, b"x" * 65536) for at in range(2))
        return op.Sleep(10**18)

    host = make_host({"writes": script(two_writes)})
    guest = start(host, "vm", Generation.PLAIN, "writes")
    base = guest.spec.memory.placement("vm", 0, 11).base_gpa
    seen = []
    while host.clock.env.peek() < SECOND:
        host.clock.env.step()
        seen.append(tuple(look(host, guest, base + at * MIB, 1) for at in range(2)))
    assert set(seen) == {(b"\0", b"\0"), (b"x", b"x")}
    least = 2 * 65536 / COSTS["dram.copy_bytes_per_s"] * 1e9
    assert least <= host.now_ns <= least + 1000
    assert guest.bytes_written == 2 * 65536


def test_what_a_program_sees_of_a_read_is_memory_when_the_batch_ends_not_when_it_began():
    seen = []

    def reader(place, _):
        seen.append((yield (op.Read(place.base_gpa, MIB),))[0][:1])
        return op.Sleep(10**18)

    host = make_host({"reader": script(reader)})
    guest = start(host, "vm", Generation.PLAIN, "reader")
    run(host, 2)
    base = guest.spec.memory.placement("vm", 0, 11).base_gpa
    host.board.execute_guest(host.board.vmcb("vm", 0), (op.Write(base, b"late"),))
    run(host)
    assert seen == [b"l"]


def stray(_, registers):
    yield ()
    registers.rip = 0xDEAD


def idle(_, __):
    return None
    yield ()


def empty_phases(_, __):
    return op.Compute(0, 0)
    yield ()


def no_sleep(_, __):
    return op.Sleep(0)
    yield ()


@pytest.mark.parametrize("step", [stray, idle, empty_phases, no_sleep])
def test_a_program_that_is_lost_or_takes_no_time_ends_its_vm_with_the_documented_code(step):
    host = make_host({"bad": script(step)})
    guest = start(host, "vm", Generation.PLAIN, "bad", vcpus=2)
    neighbour = start(host, "other", Generation.PLAIN, "busy")
    run(host, SECOND)
    assert (guest.state, guest.shutdown_code) == (GuestState.STOPPED, PROGRAM_FAULT)
    assert neighbour.state is GuestState.RUNNING
    assert all(vcpu.state is VcpuState.STOPPED for vcpu in guest.vcpus)


def test_phases_of_one_instruction_still_take_time():
    def tiny(_, registers):
        registers.r13 += 1
        return op.Compute(0, 1)
        yield ()

    host = make_host({"tiny": script(tiny)})
    guest = start(host, "vm", Generation.PLAIN, "tiny")
    run(host, 1000)
    assert 0 < guest.vcpus[0].registers.r13 <= 1000


def test_a_shutdown_of_one_vcpu_stops_all_and_keeps_its_code():
    def off(place, registers):
        yield ()
        registers.r13 += 1
        return op.Shutdown(42) if place.vcpu else op.Compute(0, 10**9)

    host = make_host({"off": script(off)})
    guest = start(host, "vm", Generation.SEV_SNP, "off", vcpus=2)
    run(host)
    host.close(host.now_ns)
    assert (guest.state, guest.shutdown_code, guest.units_of_work) == (GuestState.STOPPED, 42, 2)
    assert host.contention.running == 0


def test_a_guest_that_yields_a_host_instruction_gets_undefined_opcode_and_goes_on():
    from psp.system_bus import RmpEntry

    seen = []

    def intruder(_, __):
        seen.extend((yield (op.RmpUpdate(0, 4096, RmpEntry()), op.HostRead(0, 16), op.Wbinvd(), op.PspCommand(1))))
        return op.Sleep(10**18)

    host = make_host({"intruder": script(intruder)})
    guest = start(host, "vm", Generation.SEV_SNP, "intruder")
    run(host)
    assert [answer.kind for answer in seen] == [op.FaultKind.UNDEFINED_OPCODE] * 4
    assert guest.faults == 4
    assert guest.state is GuestState.RUNNING


def test_one_completion_event_at_a_time_and_void_ones_do_nothing():
    host = make_host()
    for number in range(8):
        start(host, f"vm{number}", Generation.PLAIN, "busy", vcpus=2)
    armed = 0
    for _ in range(3000):
        before = (host.vcpus.phase_completions, host.contention.running, host.contention.latency_ns)
        expected = host.vcpus.cores._completion_ns
        host.clock.env.step()
        if host.now_ns == expected:
            armed += 1
        elif host.vcpus.phase_completions != before[0]:
            pytest.fail("a phase ended at another time than the one completion event's")
        assert host.vcpus.cores._completion_ns > host.now_ns
        assert host.vcpus.cores._completion_ns in {int(entry[0]) for entry in host.clock.env._queue}
    assert host.vcpus.phase_completions >= armed > 500


def test_a_vm_that_is_destroyed_leaves_its_completion_event_void():
    host = make_host()
    guest = start(host, "vm", Generation.PLAIN, "busy")
    run(host, SECOND // 100)
    done = host.vcpus.phase_completions
    host.destroy("vm")
    run(host)
    assert host.vcpus.phase_completions == done
    assert guest.state is GuestState.DESTROYED


@pytest.mark.parametrize("generation", [Generation.SEV, Generation.SEV_ES, Generation.SEV_SNP])
def test_without_costs_of_encryption_phases_take_plains_times_to_the_nanosecond(generation):
    figures, instructions = [], []
    for one in (Generation.PLAIN, generation):
        host = make_host(costs=FREE, product="Milan")
        guests = [start(host, f"vm{number}", one, "ledger", vcpus=2, units=12) for number in range(3)]
        run(host)
        vcpus = [vcpu for guest in guests for vcpu in guest.vcpus]
        figures.append([(vcpu.phases, vcpu.registers.r13) for vcpu in vcpus])
        instructions.append([done for vcpu in vcpus for done in vcpu.instructions])
    assert figures[0] == figures[1]
    # An SNP guest's second vCPU exits once before its program, so neighbours' phases meet otherwise: by a rounding.
    assert instructions[0] == pytest.approx(instructions[1], abs=1)
    assert phase_times(Generation.PLAIN) == phase_times(generation)


FREE = dict(without_encryption(load_cost_table()))


def test_without_costs_of_the_rmp_an_snp_guests_phases_take_what_an_es_guests_do():
    costs = without_rmp(load_cost_table())
    assert phase_times(Generation.SEV_SNP, costs) == phase_times(Generation.SEV_ES, costs)
    assert phase_times(Generation.SEV_SNP, costs) != phase_times(Generation.PLAIN, costs)
    assert phase_times(Generation.SEV_SNP, None) != phase_times(Generation.SEV_ES, None)


def phase_times(generation, costs=FREE):
    """Length of each phase of a computing VM, from its program's entry on."""
    times = []

    def clocked(_, registers):
        times.append(host.now_ns)
        registers.r13 += 1
        return op.Compute(registers.r13 % 2, 1_000_003 * (1 + registers.r13 % 5))
        yield ()

    host = make_host({"clocked": script(clocked)}, **({} if costs is None else {"costs": costs}))
    start(host, "vm", generation, "clocked")
    run(host, SECOND // 10)
    return [later - earlier for earlier, later in itertools.pairwise(times)][:50]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_parts_of_a_vms_time_add_up_to_its_active_time(generation):
    host = make_host()
    guests = [start(host, f"vm{n}", generation, "ledger", vcpus=2, units=20) for n in range(2)]
    guests.append(start(host, "busy", generation, "busy", vcpus=4))
    host.clock.env.run(until=3_000_000)
    host.pause("busy")
    host.clock.env.run(until=4_000_000)
    host.resume("busy")
    run(host, 40_000_000)
    host.close(40_000_000)
    for guest in guests:
        active = sum(vcpu.elapsed_ns for vcpu in guest.vcpus)
        events = guest.operations + sum(sum(vcpu.phases.values()) for vcpu in guest.vcpus) + 16
        # Each batch and each phase ends on a whole nanosecond.
        assert math.isclose(sum(mechanism_ns(guest).values()), active, abs_tol=events, rel_tol=1e-9)
        assert all(ns >= 0 for ns in mechanism_ns(guest).values())


@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_overcommitted_hosts_waits_are_in_the_books_too(generation):
    host = make_host(memory_bytes=32 << 30)
    guests = [
        start(host, f"vm{n}", generation, "busy", vcpus=8, memory_bytes=128 * MIB) for n in range(host.threads // 8 + 4)
    ]
    run(host, SECOND // 100)
    host.close(SECOND // 100)
    assert sum(mechanism_ns(guest)[Mechanism.CORE_WAIT] for guest in guests) > 0
    for guest in guests:
        active = sum(vcpu.elapsed_ns for vcpu in guest.vcpus)
        assert math.isclose(sum(mechanism_ns(guest).values()), active, rel_tol=1e-6, abs_tol=64)


def test_a_program_that_costs_nothing_does_not_stop_the_clock():
    def idle(_, registers):
        registers.r13 += 1
        for _ in range(10):
            yield ()

    host = make_host({"idle": script(idle)})
    guest = start(host, "vm", Generation.PLAIN, "idle")
    run(host, 3000)
    host.close(3000)
    # A thousand batches in no time, and then one each nanosecond.
    assert 3950 <= 10 * guest.units_of_work <= 4050
    assert sum(mechanism_ns(guest).values()) == pytest.approx(guest.vcpus[0].elapsed_ns, abs=3001)


def test_a_name_that_is_taken_is_refused_and_one_that_is_gone_is_free_again():
    host = make_host()
    start(host, "vm", Generation.SEV)
    with pytest.raises(ValueError, match="on host already"):
        start(host, "vm", Generation.SEV)
    host.destroy("vm")
    run(host)
    assert start(host, "vm", Generation.SEV).state is GuestState.RUNNING


HIDDEN = (Board, Dram, MemoryController, SecurityProcessor, ReverseMapTable, Host)


def reachable(root):
    """Everything a program can get at: attributes, closures, cells, frames' locals; not modules or classes."""
    seen, todo = {id(root): root}, [root]
    while todo:
        one = todo.pop()
        if isinstance(one, types.FunctionType):
            following = [cell.cell_contents for cell in one.__closure__ or ()] + list(one.__defaults__ or ())
        elif isinstance(one, types.GeneratorType):
            following = list(one.gi_frame.f_locals.values()) if one.gi_frame else []
        else:
            following = gc.get_referents(one)
        for other in following:
            if not isinstance(other, (type, types.ModuleType)) and id(other) not in seen:
                seen[id(other)] = other
                todo.append(other)
    return list(seen.values())


@pytest.mark.parametrize("generation", GENERATIONS)
def test_programs_hold_no_reference_to_hardware(generation):
    host = library_host()
    for number, name in enumerate(LIBRARY):
        host.launch(GuestSpec(name, generation, 1, 256 * MIB, ProgramSpec(name), number), lambda _: None, running=True)
    blocks = 0
    for _ in range(300):
        host.clock.env.step()
        for guest in host.guests.values():
            for block in guest.software.running:
                if block is not None:
                    blocks += 1
                    assert not [one for one in reachable(block) if isinstance(one, HIDDEN)]
    assert blocks > 100
    for guest in host.guests.values():
        assert not [one for one in reachable(guest.software) if isinstance(one, HIDDEN)]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_hypervisor_tasks_hold_no_reference_to_hardware(generation):
    host = make_host()
    vm = start(host, "vm", generation)
    tasks = [host.hypervisor.destroy("vm")]
    change = op.PageStateChange(vm.spec.memory.shared.gpa, 4096, shared=True)
    hidden = [one for task in tasks for one in reachable(task) if isinstance(one, HIDDEN)]
    assert not hidden
    handler = host.hypervisor.page_state_change("vm", change)
    assert not [one for one in reachable(handler) if isinstance(one, HIDDEN)]
    launch = host.hypervisor.launch(guest_spec("new", generation).machine)
    answers = None
    while True:
        try:
            batch = launch.send(answers)
        except StopIteration:
            break
        assert not [one for one in reachable(launch) if isinstance(one, HIDDEN)]
        answers = host.board.execute_host(batch)


def test_demands_are_priced_once_for_vms_that_make_the_same():
    host = make_host()
    first, second = (start(host, name, Generation.PLAIN, "busy") for name in ("a", "b"))
    assert first.phase_costs[0] is second.phase_costs[0]
    assert len(first.phase_costs[0]) == len(DEMANDS)
    assert spa(host, first, 0) != spa(host, second, 0)
