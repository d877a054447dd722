"""Phases that share cores retire what both threads of one do together, and those that share caches miss more."""

import math

import pytest
from toy_guests import COSTS

from node.cache_shares import CacheUser, crowding
from node.contention import Contention, PhaseLoad
from node.core_sharing import CoreSharing
from node.product import PRODUCTS

MIB = 1 << 20
GAIN = 1.3
SHARING = CoreSharing(cores=2, smt_gain=GAIN, complexes=1, llc_bytes=32 * MIB)
PIPELINE = PhaseLoad(core_ns=1.0, miss=0.0, traffic_bytes=0.0, pipeline_ns=1.0)
USER = PhaseLoad(0.5, 0.001, 0.064, misses=CacheUser(9.0, 16 * MIB))
STREAMER = PhaseLoad(0.1, 0.004, 2.56)


def host(sharing=SHARING):
    return Contention(4, 100e9, 100.0, 0.45, sharing)


def accounts(loads, ns=1_000_000, sharing=SHARING):
    one = host(sharing)
    slots = [one.start(load, 1e12) for load in loads]
    one.solve()
    one.advance(ns)
    return [one.stop(slot) for slot in slots]


@pytest.mark.parametrize(("phases", "cores_worth"), [(1, 1.0), (2, 2.0), (3, 1 + GAIN), (4, 2 * GAIN)])
def test_a_core_with_both_threads_busy_retires_the_gain(phases, cores_worth):
    done = accounts([PIPELINE] * phases)
    assert sum(one.instructions for one in done) == pytest.approx(cores_worth * 1e6)
    for one in done:
        assert one.smt_ns == pytest.approx(one.elapsed_ns - one.instructions)
        assert one.core_wait_ns == pytest.approx(0, abs=1e-3)


def test_whoever_waits_for_memory_alone_leaves_the_pipeline_to_the_other_thread():
    alone = accounts([PhaseLoad(0.0, 0.01, 0.0)])[0]
    for one in accounts([PhaseLoad(0.0, 0.01, 0.0)] * 4):
        assert (one.instructions, one.smt_ns) == (alone.instructions, 0.0)


def test_phases_that_rest_most_of_the_time_share_no_core():
    lazy = PhaseLoad(1.0, 0.0, 0.0, cap_per_ns=0.25, pipeline_ns=1.0)
    assert {one.smt_ns for one in accounts([lazy] * 4)} == {0.0}


def test_more_phases_than_threads_wait_and_share_cores_too():
    done = accounts([PIPELINE] * 8)
    assert sum(one.instructions for one in done) == pytest.approx(2 * GAIN * 1e6)
    for one in done:
        assert one.instructions + one.smt_ns + one.core_wait_ns == pytest.approx(one.elapsed_ns)


def test_a_curve_falls_from_all_accesses_to_those_nothing_helps():
    user = CacheUser(9.0, 16 * MIB)
    assert user.misses(0) == 10.0
    assert user.misses(16 * MIB) == pytest.approx(1 + 9 / math.e)
    assert user.misses(1 << 40) == 1.0


def test_two_alike_have_half_a_cache_each():
    alone, half = (USER.misses.misses(held) for held in (32 * MIB, 16 * MIB))
    found = crowding([(USER, 2)], 100.0, 0.0, SHARING)
    assert found == [pytest.approx(half / alone, rel=1e-6)]


def test_on_complexes_of_their_own_nobody_is_crowded():
    assert crowding([(USER, 2)], 100.0, 0.0, CoreSharing(16, GAIN, 2, 32 * MIB)) == [1.0]


def test_where_some_complexes_have_two_phases_each_is_crowded_as_often_as_it_is_there():
    """Five phases on four complexes: two share one, each two times in five, every second time with a streamer."""
    four = CoreSharing(32, GAIN, 4, 32 * MIB)
    pair = crowding([(USER, 2)], 100.0, 0.0, SHARING)[0]
    streamed = crowding([(USER, 1), (STREAMER, 1)], 100.0, 0.0, SHARING)[0]
    found, _ = crowding([(USER, 3), (STREAMER, 2)], 100.0, 0.0, four)
    assert found == pytest.approx(1 + 0.4 * (0.5 * (pair - 1) + 0.5 * (streamed - 1)), rel=0.02)


def test_a_streamer_takes_the_cache_and_its_own_misses_stay():
    user, streamer = crowding([(USER, 1), (STREAMER, 1)], 100.0, 0.0, SHARING)
    assert streamer == 1.0
    assert user > crowding([(USER, 2)], 100.0, 0.0, SHARING)[0]


def test_time_of_crowded_phases_is_the_sum_of_its_parts():
    loads = [USER, USER, STREAMER._replace(pipeline_ns=0.05), PIPELINE]
    for load, one in zip(loads, accounts(loads), strict=True):
        fixed = one.instructions * (load.core_ns + load.miss * 100.0)
        lost = one.loaded_ns + one.core_wait_ns + one.smt_ns + one.llc_ns
        assert fixed + lost == pytest.approx(one.elapsed_ns, rel=1e-6)
    assert accounts(loads)[0].llc_ns > 0
    assert accounts(loads)[2].llc_ns == 0


def test_misses_that_neighbours_cause_pay_the_cipher_too():
    plain, keyed = USER, USER._replace(miss_ns=16.0, core_ns=USER.core_ns + USER.miss * 16.0)
    lost = [accounts([one, one])[0] for one in (plain, keyed)]
    per_instruction = [one.llc_ns / one.instructions for one in lost]
    crowd = crowding([(keyed, 2)], 100.0, 0.0, SHARING)[0] - 1
    assert per_instruction[1] == pytest.approx(crowd * keyed.miss * (100.0 + 16.0), rel=1e-6)


def test_neighbours_that_leave_give_the_cache_and_the_core_back():
    one = host()
    slot, others = one.start(USER, 1e12), [one.start(load, 1e12) for load in (USER, STREAMER, PIPELINE)]
    one.solve()
    for other in others:
        one.stop(other)
    one.solve()
    alone = host()
    same = alone.start(USER, 1e12)
    alone.solve()
    assert one.rate_per_ns(slot) == pytest.approx(alone.rate_per_ns(same), rel=1e-9)


@pytest.mark.parametrize("name", list(PRODUCTS))
def test_a_product_has_whole_complexes_and_a_scheduler_that_fills_cores_first(name):
    product = PRODUCTS[name]
    sharing = CoreSharing.of(product, COSTS)
    assert sharing.complexes * product.cores_per_complex == sharing.cores
    assert sharing.slowing(sharing.cores) == 0
    assert sharing.slowing(product.threads) == pytest.approx(2 / COSTS["smt.gain_factor"] - 1)


def test_public_inventories_know_the_caches_of_two_products():
    totals = {name: CoreSharing.of(PRODUCTS[name], COSTS) for name in ("Milan", "Genoa")}
    assert {name: one.complexes * one.llc_bytes for name, one in totals.items()} == {
        "Milan": 256 * MIB, "Genoa": 384 * MIB,
    }  # fmt: skip
