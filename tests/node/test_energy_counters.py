"""RAPL counters: energy by core and in all, in units of 2^-16 joules, of 32 bits, and for nobody once disabled."""

import pytest
from toy_guests import SECOND, make_host, run, script, start

from node import operations as op
from node.energy_counters import CORE_ENERGY, PACKAGE_ENERGY, PWR_UNIT, EnergyCounters, EnergyParameters
from node.generation import Generation

UNIT_PJ = 10**12 / 2**16
ONES = (1 << 64) - 1


def test_a_counter_grows_with_instructions_and_the_bits_of_their_operands() -> None:
    counters = EnergyCounters(2, EnergyParameters(instruction_pj=1000, set_bit_pj=10))
    counters.use(4, 0, 10**6)
    zeros = counters.read(5, CORE_ENERGY)  # the core's other thread
    assert zeros == int(10**9 / UNIT_PJ)
    counters.use(4, ONES, 10**6)
    assert counters.read(4, CORE_ENERGY) == int((2 * 10**9 + 64 * 10**7) / UNIT_PJ)
    counters.use(0, 0b101, 10**6)
    assert counters.read(0, CORE_ENERGY) == int(1.02 * 10**9 / UNIT_PJ)
    assert counters.read(0, PACKAGE_ENERGY) == int((3 * 10**9 + 64 * 10**7 + 2 * 10**7) / UNIT_PJ)
    assert counters.read(0, PWR_UNIT) >> 8 & 0x1F == 16


def test_it_wraps() -> None:
    counters = EnergyCounters(1, EnergyParameters(instruction_pj=10**12, set_bit_pj=0))
    counters.use(0, 0, (1 << 16) + 3)
    assert counters.read(0, CORE_ENERGY) == 3 << 16


def test_once_disabled_nothing_is_told() -> None:
    counters = EnergyCounters(1)
    counters.use(0, ONES, 1 << 30)
    counters.disabled = True
    assert [counters.read(0, msr) for msr in (CORE_ENERGY, PACKAGE_ENERGY)] == [0, 0]
    counters.disabled = False
    assert counters.read(0, CORE_ENERGY) > 0


@pytest.mark.parametrize("generation", [Generation.PLAIN, Generation.SEV_SNP])
def test_a_host_reads_what_a_guest_took_and_a_guest_does_what_registers_can_hold(generation: Generation) -> None:
    seen = []

    def program(_, __):
        for operand, times in ((ONES, 1 << 20), (1 << 64, 1), (-1, 1), (0, -1), (0, (1 << 32) + 1)):
            seen.extend((yield (op.Arithmetic(operand, times),)))
        return op.Sleep(10**18)

    host = make_host({"vm": script(program)})
    start(host, "vm", generation, "vm")
    run(host, SECOND)
    assert [getattr(one, "kind", None) for one in seen] == [None, *[op.FaultKind.GENERAL_PROTECTION] * 4]
    used, other, beyond = host.board.execute_host(
        tuple(op.ReadMsr(core, CORE_ENERGY) for core in (0, 2, host.board.product.threads))
    )
    assert (used > 0, other, beyond.kind) == (True, 0, op.FaultKind.GENERAL_PROTECTION)
