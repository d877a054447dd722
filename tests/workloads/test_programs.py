"""Every program: pauses lose nothing, damage is noticed, faults end it, and an hour stays within its budget."""

import pickle
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.operations import Shutdown
from node.program import Placement, ProgramSpec
from workloads.compile_job import COMPILE_RIP
from workloads.library import NETWORKED, PROGRAMS, footprint
from workloads.trace_player import pack_runs

SMALL = {
    "key-value-store": {"records": 96, "value_bytes": 64, "batch": 16, "batches_per_round": 2},
    "stream": {"array_bytes": 32 << 10, "chunk_bytes": 8 << 10, "spot_lines": 8},
    "random-access": {"table_bytes": 64 << 10, "batch": 4, "loads": 6},
    "compile-job": {"sources": 3, "source_blocks": 2, "object_bytes": 4096, "objects": 4, "access_bytes": 512},
    "trace-player": {
        "fragments": pack_runs([(25_000, 30), (7_000, 0), (900_000, 100)]),
        "working_set_bytes": 8192,
        "slot_bytes": 512,
        "touches_per_step": 3,
    },
}
"""Programs cut short, so that a few dozen blocks see every block of each many times."""

BLOCKS = 40
PROGRAM_NAMES = sorted(SMALL)


def test_every_program_of_the_library_is_tested() -> None:
    # Those that talk to each other need more than one machine: test_key_value_network. Two need a firmware to ask:
    # test_attesting and test_sealed_disk; one devices: test_device_work. One has a single block, which never ends.
    assert set(SMALL) == set(PROGRAMS) - NETWORKED - {"attesting", "sealed-disk", "device-work", "idle"}


@pytest.fixture(scope="session")
def uninterrupted(machine):
    return {name: machine(name, **SMALL[name]).run(BLOCKS).state() for name in SMALL}


@pytest.mark.parametrize("name", PROGRAM_NAMES)
@settings(max_examples=12, deadline=None)
@given(pauses=st.sets(st.integers(0, BLOCKS - 1)))
def test_a_pause_between_any_two_blocks_loses_nothing(name, pauses, machine, uninterrupted) -> None:
    paused = machine(name, **SMALL[name])
    for block in range(BLOCKS):
        if block in pauses:
            spec = pickle.loads(pickle.dumps(paused.spec))
            registers, memory = paused.registers, paused.memory
            paused = type(paused)(spec, memory.placement, memory, registers, paused.blocks_done)
        if paused.shutdown is None:
            paused.step()
    assert paused.state() == uninterrupted[name]


@pytest.mark.parametrize("name", PROGRAM_NAMES)
def test_a_run_visits_every_block(name, machine) -> None:
    one, seen = machine(name, **SMALL[name]), set()
    while one.shutdown is None and one.blocks_done < BLOCKS:
        seen.add(one.registers.rip)
        one.step()
    assert seen == set(one.program.blocks)
    assert one.registers.r13 > 0


@pytest.mark.parametrize("name", PROGRAM_NAMES)
def test_nothing_but_the_specification_is_held(name, machine) -> None:
    one = machine(name, **SMALL[name])
    before = pickle.dumps(one.program)
    one.run(BLOCKS)
    assert pickle.dumps(one.program) == before
    with pytest.raises((AttributeError, TypeError)):
        one.program.new = 1


@pytest.mark.parametrize("name", PROGRAM_NAMES)
@pytest.mark.parametrize("change", [{"vm": "vm-8"}, {"vcpu": 0}, {"seed": 43}])
def test_another_vm_vcpu_or_seed_holds_other_contents(name, change, machine, uninterrupted) -> None:
    one = machine(name, **SMALL[name])
    other = type(one)(one.spec, replace(one.placement, **change)).run(BLOCKS)
    assert other.state()[1] != uninterrupted[name][1]


@pytest.mark.parametrize("name", PROGRAM_NAMES)
def test_a_fault_ends_the_program_with_code_2(name, machine) -> None:
    one = machine(name, **SMALL[name]).run(BLOCKS // 2)
    own: Placement = one.placement
    one.memory.bad = range(own.base_gpa, own.base_gpa + own.length)
    assert one.run(20 * BLOCKS).shutdown == Shutdown(2)


@pytest.mark.parametrize("name", PROGRAM_NAMES)
def test_a_specification_survives_pickle_and_msgpack(name) -> None:
    spec = ProgramSpec(name, tuple(sorted(SMALL[name].items())))
    assert pickle.loads(pickle.dumps(spec)) == spec
    plain = msgpack.unpackb(msgpack.packb([spec.name, spec.parameters]), use_list=False)
    assert ProgramSpec(*plain) == spec


def still_needed(one) -> list[tuple[int, bytes]]:
    """Parts of private memory that will be read before they are stored again. Zeros in them are nobody's."""
    length = footprint(one.spec).private_bytes
    data = one.memory.load(one.placement.base_gpa, length, private=True)
    parameters = one.program.parameters
    if one.spec.name == "compile-job":
        data = data[: parameters.objects * parameters.object_bytes]  # a source is looked at once, when it has come
    if one.spec.name == "compile-job" and one.registers.rip == COMPILE_RIP:
        # The linker is done with the object whose place comes next.
        gone = one.registers.r12 % parameters.objects * parameters.object_bytes
        after = gone + parameters.object_bytes
        return [(0, data[:gone]), (after, data[after:])]
    if one.spec.name != "stream":
        return [(0, data)]
    # The triad stores its result without looking at what was there.
    sweep, chunk = divmod(one.registers.r12, parameters.chunks)
    done = chunk * parameters.chunk_bytes
    source, result = ((sweep + more) % 2 * parameters.array_bytes for more in (0, 1))
    ranges = (
        (source + done, source + parameters.array_bytes),
        (result, result + done),
        (2 * parameters.array_bytes, length),
    )
    return [(start, data[start:stop]) for start, stop in ranges]


@pytest.mark.parametrize("name", PROGRAM_NAMES)
@settings(max_examples=15, deadline=None)
@given(where=st.integers(0, 1 << 30), after=st.integers(BLOCKS // 2, BLOCKS))
def test_a_flipped_byte_in_guest_memory_ends_the_program_with_code_1(name, where, after, machine) -> None:
    one = machine(name, **SMALL[name]).run(after)
    base = one.placement.base_gpa
    live = [base + start + at for start, part in still_needed(one) for at, byte in enumerate(part) if byte]
    one.memory.flip(live[where % len(live)])
    assert one.run(20 * BLOCKS).shutdown == Shutdown(1)


@pytest.mark.parametrize("name", PROGRAM_NAMES)
def test_memory_rolled_back_to_an_older_state_ends_the_program_with_code_1(name, machine) -> None:
    one = machine(name, **SMALL[name]).run(BLOCKS)
    base = one.placement.base_gpa
    old = one.memory.load(base, footprint(one.spec).private_bytes, private=True)
    one.run(2 * BLOCKS)
    new = one.memory.load(base, len(old), private=True)
    places = [start + at for start, part in still_needed(one) for at in range(0, len(part), 512)]
    changed = [at for at in places if old[at : at + 512] != new[at : at + 512]]
    at = changed[len(changed) // 2]
    one.memory.store(base + at, old[at : at + 512], private=True)
    assert one.run(30 * BLOCKS).shutdown == Shutdown(1)


@pytest.mark.parametrize("name", PROGRAM_NAMES)
def test_an_hour_with_defaults_keeps_its_budget_of_operations_and_bytes(name, machine) -> None:
    one = machine(name).run(until_ns=3600e9)
    assert one.shutdown in {None, Shutdown(0)}
    assert one.virtual_ns >= 3540e9
    assert 12_000 <= one.memory.operations <= 20_000
    assert 20 << 20 <= one.memory.private_bytes <= 34 << 20
