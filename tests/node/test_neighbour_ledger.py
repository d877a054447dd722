"""Time lost to neighbours is theirs by what they take, and adds up to what the phases' own accounts say."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from node.cache_shares import CacheUser
from node.contention import Contention, PhaseLoad
from node.core_sharing import CoreSharing
from node.load_mix import ROUNDING
from node.mechanism import Mechanism
from node.neighbour_ledger import NeighbourLedger, Owner

MIB = 1 << 20
NS = 1_000_000
LOST = {
    Mechanism.LOADED_LATENCY: "loaded_ns", Mechanism.LLC: "llc_ns", Mechanism.SMT: "smt_ns",
    Mechanism.CORE_WAIT: "core_wait_ns",
}  # fmt: skip
STREAM = PhaseLoad(0.1, 0.01, 6.4)
PIPELINE = PhaseLoad(1.0, 0.0, 0.0, pipeline_ns=1.0)
USER = PhaseLoad(0.5, 0.001, 0.064, misses=CacheUser(9.0, 16 * MIB))


def played(*owned, cores=2, ns=NS):
    """What each VM lost to whom, by mechanism, and the accounts by VM."""
    one = Contention(2 * cores, 20e9, 100.0, 0.45, CoreSharing(cores, 1.3, 1, 32 * MIB))
    one.ledger = NeighbourLedger()
    slots = [(vm, one.start(load._replace(owner=Owner(vm, "work")), 1e12)) for vm, load in owned]
    one.solve()
    one.advance(ns // 2)
    one.advance(ns)
    accounts = [(vm, one.stop(slot)) for vm, slot in slots]
    return {(loss.vm, loss.neighbour, loss.mechanism): loss.time_ns for loss in one.ledger.losses()}, accounts


def test_latency_under_load_is_everybodys_by_traffic():
    lost, _ = played(("a", STREAM), ("b", STREAM), ("c", PhaseLoad(0.1, 0.01, 0.0)))
    by = {neighbour: ns for (vm, neighbour, mechanism), ns in lost.items() if vm == "c"}
    assert by.keys() == {"a", "b"}
    assert by["a"] == pytest.approx(by["b"])
    assert lost["a", "a", Mechanism.LOADED_LATENCY] == pytest.approx(lost["a", "b", Mechanism.LOADED_LATENCY])


def test_a_shared_core_is_the_other_threads_doing():
    lost, accounts = played(("a", PIPELINE), ("b", PIPELINE), cores=1)
    assert set(lost) == {("a", "b", Mechanism.SMT), ("b", "a", Mechanism.SMT)}
    assert lost["a", "b", Mechanism.SMT] == pytest.approx(accounts[0][1].smt_ns)


def test_a_vm_that_overcommits_itself_waits_for_itself():
    lost, _ = played(*[("a", PIPELINE)] * 5, ("b", PIPELINE), cores=1)
    waits = {neighbour: ns for (vm, neighbour, one), ns in lost.items() if (vm, one) == ("a", Mechanism.CORE_WAIT)}
    assert waits["a"] == pytest.approx(4 * waits["b"])


def test_whoever_streams_through_a_cache_is_named():
    lost, _ = played(("user", USER), ("stream", STREAM))
    assert ("user", "stream", Mechanism.LLC) in lost
    assert not [key for key in lost if key[0] == "stream" and key[2] is Mechanism.LLC]


loads = st.builds(
    PhaseLoad, core_ns=st.floats(0.5, 2.0), miss=st.floats(0.001, 0.05), traffic_bytes=st.floats(0.0, 8.0),
    cap_per_ns=st.just(0.0), pipeline_ns=st.floats(0.1, 0.5), miss_ns=st.sampled_from([0.0, 16.0]),
    misses=st.sampled_from([None, CacheUser(4.0, 8 * MIB)]), owner=st.none(),
)  # fmt: skip


STILL = PhaseLoad(1.0, 0.03125, 0.0, pipeline_ns=0.5)


@settings(max_examples=30, deadline=None)
@example([("a", STILL._replace(traffic_bytes=5e-324)), ("a", STILL._replace(misses=CacheUser(4.0, 8 * MIB)))])
@example([("a", STILL), ("a", STILL._replace(misses=CacheUser(4.0, 8 * MIB)))])
@given(st.lists(st.tuples(st.sampled_from("abc"), loads), min_size=1, max_size=9))
def test_the_parts_add_up_to_the_accounts(owned):
    lost, accounts = played(*owned)
    for mechanism, field in LOST.items():
        for vm in "abc":
            whole = sum(getattr(account, field) for name, account in accounts if name == vm)
            parts = sum(ns for (name, _, one), ns in lost.items() if (name, one) == (vm, mechanism))
            assert parts == pytest.approx(whole, rel=1e-6, abs=max(1e-3, ROUNDING * NS * len(owned)))
