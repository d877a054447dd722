"""Phases priced by mechanism: plain pays nothing for encryption, and nothing is a percentage."""

from dataclasses import replace

import pytest
from toy_guests import COSTS, DEMANDS, GENERATIONS, KIND, MIB

from node.cost_table import load_cost_table
from node.free_costs import without_encryption, without_rmp
from node.generation import Generation
from node.guest_backing import Backing, backing_of
from node.host_kind import HostKind
from node.mechanism import Mechanism
from node.memory_cipher import CipherMode
from node.phase_cost import GenerationCost, PhaseCost, walk_references
from node.platform import HostMode
from node.program import Demand

ADDED = (Mechanism.ENCRYPTION, Mechanism.RMP, Mechanism.VMGEXIT)
DEMAND = DEMANDS[1]


def parts(generation, demand=DEMAND, **changes):
    return dict(PhaseCost.of(demand, generation, KIND, {**COSTS, **changes}).parts)


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
    assert snp[Mechanism.CORE] == pytest.approx(1e9 / KIND.hz)
    assert snp[Mechanism.MEMORY] == pytest.approx(0.020 / 4 * COSTS["dram.latency_ns"])
    assert snp[Mechanism.ENCRYPTION] == pytest.approx(0.020 / 4 * COSTS["dram.encryption_adder_ns"])
    assert snp[Mechanism.PAGE_WALK] == pytest.approx(0.002 * 19 * COSTS["tlb.walk_reference_ns"])
    assert snp[Mechanism.RMP] == pytest.approx(0.002 * COSTS["rmp.walk_adder_ns"])
    assert snp[Mechanism.EXITS] == pytest.approx(5e-6 * COSTS["core.exit_ns"])


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_load_is_the_fixed_parts_and_the_misses(generation):
    cost = PhaseCost.of(DEMAND, generation, KIND, COSTS)
    fixed = sum(ns for one, ns in cost.parts if one is not Mechanism.MEMORY)
    assert cost.load.core_ns == pytest.approx(fixed)
    assert cost.load.miss * COSTS["dram.latency_ns"] == pytest.approx(dict(cost.parts)[Mechanism.MEMORY])


HOSTS = [KIND, replace(KIND, rmp=True), replace(KIND, mode=HostMode.TSME), replace(KIND, cipher=CipherMode.AES_256_XTS)]
VARIED = (
    *DEMANDS, replace(DEMAND, large_pages=True),
    replace(DEMAND, llc_accesses_per_kilo_instruction=60.0, llc_working_set_bytes=24 * MIB),
)  # fmt: skip


def priced(generation, kind, costs, small_share):
    return [PhaseCost.of(demand, generation, kind, costs, Backing(small_share, 0.5)) for demand in VARIED]


@pytest.mark.parametrize("generation", list(Generation))
@pytest.mark.parametrize("kind", HOSTS)
def test_with_all_costs_of_encryption_at_nothing_every_generation_is_plain(generation, kind):
    costs = without_encryption(load_cost_table())
    for small_share in (0.0, 0.25):
        assert priced(generation, kind, costs, small_share) == priced(Generation.PLAIN, kind, costs, small_share)


@pytest.mark.parametrize("kind", HOSTS)
def test_with_the_rmp_at_nothing_snp_costs_memory_what_es_does(kind):
    costs = without_rmp(load_cost_table())
    for small_share in (0.0, 0.25):
        es, snp = (priced(one, kind, costs, small_share) for one in (Generation.SEV_ES, Generation.SEV_SNP))
        assert es == snp


def test_memory_of_another_node_is_further_away_and_pinned_pages_stay_there():
    """Half of its misses go one hop; a host moves four fifths of that near, where it may."""
    for generation, stays in ((Generation.PLAIN, 0.2), (Generation.SEV, 1.0), (Generation.SEV_SNP, 1.0)):
        near, far = (
            dict(PhaseCost.of(DEMAND, generation, KIND, COSTS, Backing(0.0, share)).parts) for share in (0.0, 0.5)
        )
        assert near[Mechanism.NUMA] == 0
        assert far[Mechanism.NUMA] == pytest.approx(0.020 / 4 * 0.5 * COSTS["numa.hop_ns"] * stays)


@pytest.mark.parametrize(("generation", "share"), [(Generation.PLAIN, 0.0), (Generation.SEV_SNP, 0.5)])
def test_a_miss_that_neighbours_cause_pays_what_its_own_misses_pay(generation, share):
    """Cipher and other node: what each exposed miss takes beyond the latency, whoever caused it."""
    cost = PhaseCost.of(DEMAND, generation, KIND, COSTS, Backing(0.0, share))
    paid = dict(cost.parts)
    beyond = paid[Mechanism.ENCRYPTION] + paid[Mechanism.NUMA]
    assert cost.load.miss * cost.load.miss_ns == pytest.approx(beyond)
    assert (beyond > 0) == (generation is Generation.SEV_SNP)
    if share:
        assert paid[Mechanism.NUMA] > 0


def test_encrypted_traffic_fills_channels_sooner():
    plain, snp = (
        PhaseCost.of(DEMAND, one, KIND, COSTS).load.traffic_bytes for one in (Generation.PLAIN, Generation.SEV_SNP)
    )
    assert plain == pytest.approx(DEMAND.llc_misses_per_kilo_instruction / 1000 * DEMAND.bytes_per_llc_miss)
    assert plain / snp == pytest.approx(0.915), "of what plain traffic reaches: 0.90 to 0.93 were measured"


def test_a_machines_memory_is_on_the_node_that_has_most_of_it():
    node, block = 1 << 30, 1 << 21
    assert backing_of([], node) == Backing()
    assert backing_of([(0, node, True)], node) == Backing(0.0, 0.0)
    assert backing_of([(node // 2, node, True)], node) == Backing(0.0, 0.5)
    assert backing_of([(node - block, 4 * block, True), (5 * node, 4096, False)], node) == Backing(0.0, 0.25)
    assert backing_of([(0, 4096, False), (4096, 4096, True)], node) == Backing(0.5, 0.0)


@pytest.mark.parametrize(
    ("guest_large", "nested_large", "references"), [(False, False, 24), (False, True, 19), (True, True, 15)]
)
def test_a_nested_walk_has_the_references_of_the_published_formula(guest_large, nested_large, references):
    assert walk_references(guest_large=guest_large, nested_large=nested_large) == references


def test_memory_mapped_by_small_pages_makes_walks_longer_and_rmp_look_ups_dearer():
    large, small = (
        dict(PhaseCost.of(DEMAND, Generation.SEV_SNP, KIND, COSTS, Backing(share)).parts) for share in (0.0, 1.0)
    )
    assert small[Mechanism.PAGE_WALK] == pytest.approx(large[Mechanism.PAGE_WALK] * 24 / 19)
    assert small[Mechanism.RMP] == pytest.approx(0.002 * COSTS["rmp.small_walk_adder_ns"])
    assert small[Mechanism.ENCRYPTION] == large[Mechanism.ENCRYPTION]


def test_a_large_page_of_the_guests_falls_apart_where_nested_pages_are_small():
    huge = replace(DEMAND, large_pages=True)
    large, small = (
        dict(PhaseCost.of(huge, Generation.PLAIN, KIND, COSTS, Backing(share)).parts) for share in (0.0, 1.0)
    )
    grown = COSTS["tlb.splintered_factor"] * 19 / 15
    assert small[Mechanism.PAGE_WALK] == pytest.approx(large[Mechanism.PAGE_WALK] * grown)


def test_where_an_rmp_is_in_use_stores_of_those_it_does_not_protect_are_checked_too():
    """CT-7: SNP on a host costs its other tenants something (LKML 2603.1/07981), by sign alone."""
    for generation in (Generation.PLAIN, Generation.SEV, Generation.SEV_ES):
        without, with_it = (dict(PhaseCost.of(DEMAND, generation, one, COSTS).parts) for one in HOSTS[:2])
        assert without[Mechanism.RMP] == 0 < with_it[Mechanism.RMP]
        assert {one: ns for one, ns in with_it.items() if one != Mechanism.RMP} == {
            one: ns for one, ns in without.items() if one != Mechanism.RMP
        }


def test_the_longer_key_takes_longer_for_whatever_is_encrypted():
    for generation, mode in ((Generation.SEV, HostMode.NONE), (Generation.PLAIN, HostMode.TSME)):
        short, long = (
            GenerationCost.of(generation, COSTS, HostKind(1e9, mode, cipher)).encryption_ns
            for cipher in (CipherMode.AES_128_XEX, CipherMode.AES_256_XTS)
        )
        assert long - short == pytest.approx(COSTS["dram.aes_256_extra_ns"])


@pytest.mark.parametrize(("large", "plain_ns", "snp_ns"), [(True, 56.3, 64.3), (False, 83.2, 92.0)])
def test_the_rows_that_were_fitted_give_the_measurements_back(large, plain_ns, snp_ns):
    """tinymembench, 64 MiB at random: half the reads hit 32 MiB of L3, and 7/8 miss a TLB that reaches 8 MiB."""
    misses_tlb = 0.0 if large else 1 - 8 / 64
    demand = Demand("reads", 1.0, 500.0, 1000 * misses_tlb, 1.0)
    plain, snp = (dict(PhaseCost.of(demand, one, KIND, COSTS).parts) for one in (Generation.PLAIN, Generation.SEV_SNP))
    added = snp[Mechanism.ENCRYPTION] + snp[Mechanism.RMP]
    assert added == pytest.approx(snp_ns - plain_ns, abs=0.02)
    if not large:
        assert plain[Mechanism.PAGE_WALK] == pytest.approx(83.2 - 56.3, abs=0.05)


def test_a_cap_is_in_instructions_per_nanosecond():
    capped = replace(DEMAND, max_instructions_per_s=2.5e8)
    assert PhaseCost.of(capped, Generation.PLAIN, KIND, COSTS).load.cap_per_ns == pytest.approx(0.25)
