"""Every program: pauses lose nothing, damage is noticed, faults end it, and an hour stays within its budget."""

import pickle

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.operations import Shutdown
from node.program import Placement, ProgramSpec
from workloads.library import PROGRAMS, footprint

SMALL = {
    "key-value-store": {"records": 96, "value_bytes": 64, "batch": 16, "batches_per_round": 2},
}
"""Programs cut short, so that a few dozen blocks see every block of each many times."""

BLOCKS = 40
PROGRAM_NAMES = sorted(SMALL)


def test_every_program_of_the_library_is_tested() -> None:
    assert set(SMALL) == set(PROGRAMS)


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
    from dataclasses import replace

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


@pytest.mark.parametrize("name", PROGRAM_NAMES)
@settings(max_examples=15, deadline=None)
@given(where=st.integers(0, 1 << 30), after=st.integers(BLOCKS // 2, BLOCKS))
def test_a_flipped_byte_in_guest_memory_ends_the_program_with_code_1(name, where, after, machine) -> None:
    one = machine(name, **SMALL[name]).run(after)
    base = one.placement.base_gpa
    length = footprint(one.spec).private_bytes
    # Zeros are the slots that nobody fills, and nobody reads.
    live = [base + at for at, byte in enumerate(one.memory.load(base, length, private=True)) if byte]
    one.memory.flip(live[where % len(live)])
    assert one.run(20 * BLOCKS).shutdown == Shutdown(1)


@pytest.mark.parametrize("name", PROGRAM_NAMES)
def test_memory_rolled_back_to_an_older_state_ends_the_program_with_code_1(name, machine) -> None:
    one = machine(name, **SMALL[name]).run(BLOCKS)
    base = one.placement.base_gpa
    old = one.memory.load(base, footprint(one.spec).private_bytes, private=True)
    one.run(2 * BLOCKS)
    new = one.memory.load(base, len(old), private=True)
    pages = [at for at in range(0, len(old), 4096) if old[at : at + 4096] != new[at : at + 4096]]
    at = pages[len(pages) // 2]
    one.memory.store(base + at, old[at : at + 4096], private=True)
    assert one.run(30 * BLOCKS).shutdown == Shutdown(1)
