"""Phases priced by mechanism: plain pays nothing for encryption, and nothing is a percentage."""

import dataclasses

import pytest
from toy_guests import COSTS, DEMANDS, GENERATIONS

from node.generation import Generation
from node.phase_cost import Mechanism, PhaseCost

HZ = 2.45e9
ADDED = (Mechanism.ENCRYPTION, Mechanism.RMP, Mechanism.VMGEXIT)
DEMAND = DEMANDS[1]


def parts(generation, demand=DEMAND, **changes):
    return dict(PhaseCost.of(demand, generation, HZ, {**COSTS, **changes}).parts)


def test_a_plain_vm_pays_for_no_protection():
    assert [parts(Generation.PLAIN)[one] for one in ADDED] == [0.0] * 3


def test_sev_pays_for_the_cipher_and_snp_for_table_and_exits_too():
    sev, snp = parts(Generation.SEV), parts(Generation.SEV_SNP)
    assert sev[Mechanism.ENCRYPTION] == snp[Mechanism.ENCRYPTION] > 0
    assert (sev[Mechanism.RMP], sev[Mechanism.VMGEXIT]) == (0, 0)
    assert snp[Mechanism.RMP] > 0
    assert snp[Mechanism.VMGEXIT] > 0


def test_parts_are_what_the_demand_times_the_row_says():
    snp = parts(Generation.SEV_SNP)
    assert snp[Mechanism.CORE] == pytest.approx(1e9 / HZ)
    assert snp[Mechanism.MEMORY] == pytest.approx(0.020 / 4 * COSTS["dram.latency_ns"])
    assert snp[Mechanism.ENCRYPTION] == pytest.approx(0.020 / 4 * COSTS["dram.encryption_adder_ns"])
    assert snp[Mechanism.PAGE_WALK] == pytest.approx(0.002 * COSTS["tlb.miss_ns"])
    assert snp[Mechanism.RMP] == pytest.approx(0.002 * COSTS["rmp.walk_adder_ns"])
    assert snp[Mechanism.EXITS] == pytest.approx(5e-6 * COSTS["core.exit_ns"])


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_load_is_the_fixed_parts_and_the_misses(generation):
    cost = PhaseCost.of(DEMAND, generation, HZ, COSTS)
    fixed = sum(ns for one, ns in cost.parts if one is not Mechanism.MEMORY)
    assert cost.load.core_ns == pytest.approx(fixed)
    assert cost.load.miss * COSTS["dram.latency_ns"] == pytest.approx(dict(cost.parts)[Mechanism.MEMORY])


@pytest.mark.parametrize("generation", [Generation.SEV, Generation.SEV_SNP])
def test_with_costs_of_zero_a_generation_is_plain(generation):
    free = {
        "dram.encryption_adder_ns": 0.0, "rmp.walk_adder_ns": 0.0, "dram.encrypted_bandwidth_share": 1.0,
        "core.vmgexit_ns": COSTS["core.exit_ns"],
    }  # fmt: skip
    for demand in DEMANDS:
        costs = {**COSTS, **free}
        assert PhaseCost.of(demand, generation, HZ, costs) == PhaseCost.of(demand, Generation.PLAIN, HZ, costs)


def test_a_cap_is_in_instructions_per_nanosecond():
    capped = dataclasses.replace(DEMAND, max_instructions_per_s=2.5e8)
    assert PhaseCost.of(capped, Generation.PLAIN, HZ, COSTS).load.cap_per_ns == pytest.approx(0.25)
