"""A migration takes threads and memory bandwidth of both of its hosts, and gives them back whole."""

import pytest

from node.clock import Clock
from node.contention import NEVER_NS, Contention, PhaseLoad
from node.cores import Cores
from node.cost_table import load_cost_table
from node.migration_loads import STREAM, MigrationLoads, StreamRates
from node.neighbour_ledger import NeighbourLedger, Owner

COSTS = dict(load_cost_table())
LINK = 1.25e9
BANDWIDTH = 100e9
STREAMING = PhaseLoad(0.1, 0.02, 64.0)
"""A program that is held by memory: it uses all of the bandwidth that it gets."""


def machine(link=LINK, each=0.0, **costs):
    clock = Clock()
    cores = Cores(clock, Contention(8, BANDWIDTH, 100.0, 0.45), lambda _: None)
    return clock, cores, MigrationLoads(clock, cores.contention, StreamRates(link, each), COSTS | costs)


def traffic(cores):
    """Bytes a second on the channels."""
    cores.settle()
    return cores.contention.utilisation * BANDWIDTH


def test_a_stream_moves_each_of_its_bytes_over_the_channels_as_often_as_its_row_says():
    for factor in (1.0, 2.0, 4.0):
        _, cores, loads = machine(**{"migration.traffic_factor": factor})
        loads.begin("vm")
        assert traffic(cores) == pytest.approx(factor * LINK, rel=1e-6)
    _, cores, loads = machine(link=0.0)
    loads.begin("vm")
    assert cores.contention.running == 0, "a host that nobody told of a link"


def test_streams_share_the_link_and_none_goes_faster_than_it_may():
    _, cores, loads = machine()
    for name in ("a", "b", "c"):
        loads.begin(name)
        assert traffic(cores) == pytest.approx(2 * LINK, rel=1e-6)
    loads.end("b")
    assert traffic(cores) == pytest.approx(2 * LINK, rel=1e-6)
    _, cores, loads = machine(each=0.25e9)
    loads.begin("a")
    assert traffic(cores) == pytest.approx(0.5e9, rel=1e-6)


def test_a_fast_link_takes_as_many_threads_as_move_it():
    _, cores, loads = machine(link=12.5e9)
    loads.begin("vm")
    assert cores.contention.running == 8  # 12.5 GB/s at 1.695 GB/s a thread
    assert traffic(cores) == pytest.approx(25e9, rel=1e-6)


def test_whoever_runs_beside_is_slower_meanwhile_and_exactly_as_before_afterwards():
    _, cores, loads = machine(link=6e9)
    slot = cores.contention.start(STREAMING, 1e15)
    cores.contention.solve()
    alone = cores.contention.rate_per_ns(slot)
    loads.begin("vm")
    cores.settle()
    assert cores.contention.rate_per_ns(slot) < 0.99 * alone
    loads.end("vm")
    loads.end("vm")
    cores.settle()
    assert cores.contention.rate_per_ns(slot) == pytest.approx(alone, rel=1e-9)
    assert cores.contention.running == 1


def test_a_host_with_streams_alone_waits_for_nothing():
    _, cores, loads = machine()
    loads.begin("vm")
    cores.settle()
    assert cores.contention.next_completion_ns() == NEVER_NS


def test_what_a_migration_costs_its_neighbours_is_in_the_books_under_its_machines_name():
    _, cores, loads = machine(link=6e9)
    contention = cores.contention
    contention.ledger = NeighbourLedger()
    slot = contention.start(STREAMING._replace(owner=Owner("busy", "streams")), 1e15)
    loads.begin("moved")
    cores.settle()
    contention.advance(1_000_000)
    lost = contention.ledger.losses()
    mine = [one for one in lost if one.vm == "busy"]
    assert {one.neighbour for one in mine} == {"busy", "moved"}
    assert sum(one.time_ns for one in mine) == pytest.approx(contention.stop(slot).loaded_ns, rel=1e-9)
    assert not [one for one in lost if (one.vm, one.phase) == ("moved", STREAM)], "its threads wait for no miss"
