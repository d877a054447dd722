"""A VM's software: what is made of a specification, when, and what of it stays."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from node.generation import Generation
from node.guest_memory_map import memory_map
from node.operations import Sleep
from node.program import Placement, ProgramSpec, Registers, Scalar
from node.tenant import NoBlock, Tenant, TenantSpec

ENTRY = 0x40_0000


class Factory:
    """Of programs that sleep; ``made`` are the placements that it was asked for."""

    def __init__(self) -> None:
        self.made: list[Placement] = []

    def __call__(self, spec: ProgramSpec, placement: Placement) -> SimpleNamespace:
        self.made.append(placement)
        return SimpleNamespace(entry=ENTRY, demands=(), blocks={ENTRY: self.sleep})

    def sleep(self, registers: Registers):
        answers = yield ()
        assert answers == ()
        return Sleep(1)


def tenant(factory: Factory, value: Scalar = 1, name: str = "vm", generation: Generation = Generation.PLAIN) -> Tenant:
    program = ProgramSpec("sleeper", (("value", value),))
    return Tenant(TenantSpec(name, generation, memory_map(64 << 20, 1), program, 1, (), (0xFFFF_FFF0,)), factory)


def test_what_programs_ask_for_is_known_of_equal_specifications_and_of_no_others() -> None:
    factory = Factory()
    for value, name in ((1, "vm"), (1, "vm"), (True, "vm"), (1.0, "vm"), (2, "vm"), (1, "other"), (1, "vm"), (2, "vm")):
        assert tenant(factory, value, name).entry == ENTRY
    assert len(factory.made) == 5


@pytest.mark.parametrize("generation", [Generation.PLAIN, Generation.SEV_SNP])
def test_a_paused_thread_has_nothing_here_and_runs_nothing_until_it_is_rebuilt(generation: Generation) -> None:
    factory, registers = Factory(), Registers(ENTRY)
    one = tenant(factory, name="paused", generation=generation)
    assert one.begin(0, registers) == ()
    assert one.running[0] is not None
    program = one.programs[0]
    one.forget(0)
    assert (one.programs, one.blocks, one.running) == ([None], [{}], [None])
    with pytest.raises(NoBlock):
        one.begin(0, registers)
    one.rebuild(0)
    assert one.begin(0, registers) == ()
    assert one.programs[0] is not program
    assert one.go_on(0, registers, ()) == Sleep(1)
    assert one.running[0] is None
