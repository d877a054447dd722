"""Flows share links max-min, exactly once each on the grid, and nobody's bytes are lost."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.entity import NEVER
from cluster.fabric import Fabric
from cluster.topology import leaf_spine, star

GB = 1e9
S = 10**9
MS = 10**6
HOSTS = "abcdef"


def run_out(fabric, cuts=()):
    """Every end, with its time."""
    ends = {}
    cuts = sorted(cuts)
    while (at := fabric.next_event_ns) != NEVER:
        while cuts and cuts[0] < at:
            assert fabric.advance(cuts.pop(0)) == []
        for flow in fabric.advance(at):
            ends[flow.about] = at
    return ends


def start(fabric, name, source, target, size, now_ns, cap=0.0):
    """A flow that is told by a name."""
    return fabric.start(fabric.path(source, target), size, now_ns, cap, about=name)


def test_a_flow_alone_takes_its_bytes_over_the_narrowest_link():
    fabric = Fabric(star({"a": 2 * GB, "b": 1 * GB}), MS)
    start(fabric, "one", "a", "b", 3 * GB, 7)
    assert run_out(fabric) == {"one": 7 + 3 * S}


def test_two_flows_of_one_source_get_half_each_from_the_next_grid_point_on():
    fabric = Fabric(star({"a": 1 * GB, "b": 1 * GB, "c": 1 * GB}), 10 * MS)
    first = start(fabric, "first", "a", "b", 1 * GB, 0)
    assert fabric.advance(1 * MS) == []
    second = start(fabric, "second", "a", "c", 1 * GB, 1 * MS)
    assert (first.rate, second.rate) == (1 * GB, 0.0)
    fabric.advance(10 * MS)
    assert (first.rate, second.rate) == (GB / 2, GB / 2)
    # first has 990 MB left at 10 ms. When it is through, at a grid point, second has 10 MB left and the whole link.
    assert run_out(fabric) == {"first": 1990 * MS, "second": 2000 * MS}


def test_a_newcomer_takes_what_is_left_at_once():
    fabric = Fabric(star({"a": 4 * GB, "b": 1 * GB, "c": 4 * GB}), 10 * MS)
    start(fabric, "first", "a", "b", 1 * GB, 0)
    second = start(fabric, "second", "a", "c", 3 * GB, 0)
    assert second.rate == 3 * GB
    assert run_out(fabric) == {"first": S, "second": S}


def test_a_cap_leaves_the_rest_to_others():
    fabric = Fabric(star({"a": 1 * GB, "b": 1 * GB, "c": 1 * GB}), MS)
    slow = start(fabric, "slow", "a", "b", 1 * GB, 0, 0.25 * GB)
    fast = start(fabric, "fast", "a", "c", 1 * GB, 0)
    fabric.advance(0)
    assert (slow.rate, fast.rate) == (0.25 * GB, 0.75 * GB)


def test_the_textbook_s_three_flows_over_two_links():
    """One long flow over both uplinks of 1 GB/s, a short one on each, one link half as wide: 0.25, 0.25, 0.75."""
    fabric = Fabric(leaf_spine({"a": 9 * GB, "b": 0.5 * GB, "c": 1 * GB, "d": 9 * GB}, 1, 1.0), MS)
    flows = [start(fabric, name, *name.split("-"), GB, 0) for name in ("a-b", "c-b", "c-d")]
    fabric.advance(0)
    assert [flow.rate for flow in flows] == [0.25 * GB, 0.25 * GB, 0.75 * GB]


def test_a_flow_that_is_broken_off_has_moved_what_its_rate_says_and_gives_its_share_back():
    fabric = Fabric(star({"a": 1 * GB, "b": 1 * GB, "c": 1 * GB}), MS)
    one = start(fabric, "one", "a", "b", 1 * GB, 0)
    start(fabric, "two", "a", "c", 1 * GB, 0)
    fabric.advance(0)
    assert fabric.cancel(one, 200 * MS) == pytest.approx(0.1 * GB)
    assert len(fabric) == 1
    # two has 0.9 GB left and the whole link from this grid point on.
    assert run_out(fabric) == {"two": 1100 * MS}


def test_what_a_flow_gives_back_reaches_flows_that_never_met_it():
    """As above; when the long flow is gone, the second one has its link alone, and the third what that leaves it."""
    fabric = Fabric(leaf_spine({"a": 9 * GB, "b": 0.5 * GB, "c": 1 * GB, "d": 9 * GB}, 1, 1.0), MS)
    long, second, third = [start(fabric, name, *name.split("-"), GB, 0) for name in ("a-b", "c-b", "c-d")]
    fabric.advance(0)
    fabric.cancel(long, 5 * MS)
    fabric.advance(5 * MS)
    assert [flow.rate for flow in (second, third)] == [0.5 * GB, 0.5 * GB]


def test_nothing_to_send_is_there_at_once():
    fabric = Fabric(star({"a": GB, "b": GB}), MS)
    start(fabric, "none", "a", "b", 0, 5)
    assert run_out(fabric) == {"none": 5}


FLOWS = st.lists(
    st.tuples(
        st.integers(0, 30 * MS), st.sampled_from(HOSTS), st.sampled_from(HOSTS), st.integers(1, 40_000_000),
        st.sampled_from((0.0, 0.05 * GB, 0.4 * GB)),
    ).filter(lambda flow: flow[1] != flow[2]),
    min_size=1, max_size=12,
)  # fmt: skip
TOPOLOGIES = st.sampled_from(
    (star(dict.fromkeys(HOSTS, GB)), leaf_spine(dict.fromkeys(HOSTS, GB), 2, 3.0))
)


def brute_force(topology, flows):
    """Max-min rates in exact fractions: raise the lowest as far as they go, freeze, repeat."""
    paths = {name: topology.path(source, target) for name, (source, target, _) in flows.items()}
    left = {number: Fraction(link.bytes_per_s) for number, link in enumerate(topology.links)}
    rates, rest = dict.fromkeys(flows, Fraction(0)), set(flows)
    while rest:
        room = min(
            *(left[link] / sum(link in paths[name] for name in rest) for name in rest for link in paths[name]),
            *(Fraction(flows[name][2] or 1e18) - rates[name] for name in rest),
        )
        for name in rest:
            rates[name] += room
            for link in paths[name]:
                left[link] -= room
        rest = {
            name for name in rest
            if all(left[link] > 0 for link in paths[name]) and rates[name] < Fraction(flows[name][2] or 1e18)
        }  # fmt: skip
    return rates


@settings(max_examples=60, deadline=None)
@given(topology=TOPOLOGIES, flows=FLOWS)
def test_shares_are_those_of_an_exact_calculation(topology, flows):
    fabric = Fabric(topology, MS)
    known, started = {}, {}
    for number, (_, source, target, _, cap) in enumerate(flows):
        started[str(number)] = start(fabric, str(number), source, target, 1e15, 0, cap)
        known[str(number)] = (source, target, cap)
    fabric.advance(0)
    exact = brute_force(topology, known)
    assert {name: flow.rate for name, flow in started.items()} == pytest.approx({n: float(r) for n, r in exact.items()})


def drive(topology, flows, cuts):
    """Start flows at their times; ends by name, and bytes by link, from rates. None may carry more than it can."""
    fabric = Fabric(topology, MS)
    ends, todo, live = {}, sorted(enumerate(flows), key=lambda item: (item[1][0], item[0])), {}
    carried, before = [0.0] * len(topology.links), 0
    cuts = sorted(cuts)
    while todo or fabric.next_event_ns != NEVER:
        at = min(fabric.next_event_ns, todo[0][1][0] if todo else NEVER)
        for flow, path in live.items():
            for link in path:
                carried[link] += flow.rate * (at - before) / 1e9
        before = at
        while cuts and cuts[0] < at:
            fabric.advance(cuts.pop(0))
        for flow in fabric.advance(at):
            ends[flow.about] = at
            del live[flow]
        while todo and todo[0][1][0] == at:
            number, (_, source, target, size, cap) = todo.pop(0)
            live[start(fabric, str(number), source, target, size, at, cap)] = topology.path(source, target)
        for link, capacity in enumerate(topology.links):
            used = sum(flow.rate for flow, path in live.items() if link in path)
            assert used <= capacity.bytes_per_s * (1 + 1e-9)
    return ends, carried


@settings(max_examples=60, deadline=None)
@given(topology=TOPOLOGIES, flows=FLOWS, cuts=st.lists(st.integers(0, 300 * MS), max_size=20))
def test_looking_in_between_changes_no_end_and_every_byte_arrives(topology, flows, cuts):
    ends, carried = drive(topology, flows, ())
    assert drive(topology, flows, cuts) == (ends, carried)
    assert len(ends) == len(flows)
    for number, (at, source, target, size, cap) in enumerate(flows):
        narrowest = min(topology.links[link].bytes_per_s for link in topology.path(source, target))
        assert ends[str(number)] - at >= int(size / min(narrowest, cap or narrowest) * 1e9)
    expected = [0.0] * len(topology.links)
    for _, source, target, size, _ in flows:
        for link in topology.path(source, target):
            expected[link] += size
    # Each ends in a whole nanosecond, the first in which all of it is there.
    a_bit_more = [len(flows) * link.bytes_per_s / 1e9 for link in topology.links]
    for found, least, more in zip(carried, expected, a_bit_more, strict=True):
        assert least * (1 - 1e-9) <= found <= least * (1 + 1e-9) + more


@settings(max_examples=30, deadline=None)
@given(here=FLOWS, there=FLOWS)
def test_flows_that_share_no_link_do_not_know_of_each_other(here, there):
    both = star({name + side: GB for side in "12" for name in HOSTS})
    mine = [(at, source + "1", target + "1", size, cap) for at, source, target, size, cap in here]
    theirs = [(at, source + "2", target + "2", size, cap) for at, source, target, size, cap in there]
    alone, _ = drive(both, mine, ())
    together, _ = drive(both, mine + theirs, ())
    assert {name: together[name] for name in alone} == alone


def test_a_link_that_carries_nothing_for_a_while_holds_up_all_that_are_on_it_and_who_comes_to_it():
    topology = star({"a": 1 * GB, "b": 1 * GB, "c": 1 * GB})
    fabric = Fabric(topology, MS)
    start(fabric, "first", "a", "b", 1 * GB, 0)
    fabric.change(topology.path("a", "b")[0], 0.0, 200 * MS)
    fabric.advance(200 * MS)
    start(fabric, "second", "a", "c", 0.5 * GB, 300 * MS)
    fabric.advance(300 * MS)
    assert fabric.next_event_ns == NEVER
    fabric.change(topology.path("a", "b")[0], 1 * GB, 1000 * MS)
    # 0.8 GB are left of the first and all of the second: they share the link until the second is through.
    assert run_out(fabric) == {"second": 2000 * MS, "first": 2300 * MS}


def test_who_is_alone_on_a_link_that_carries_nothing_waits_for_it():
    topology = star({"a": 1 * GB, "b": 1 * GB})
    fabric = Fabric(topology, MS)
    fabric.change(topology.path("a", "b")[0], 0.0, 0)
    fabric.advance(0)
    start(fabric, "one", "a", "b", 1 * GB, 5 * MS)
    assert fabric.next_event_ns == NEVER
    fabric.change(topology.path("a", "b")[0], 1 * GB, 7 * MS)
    assert run_out(fabric) == {"one": 1007 * MS}


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("capacity", [0.0, 1 * GB])
def test_nothing_to_send_is_there_at_once_whatever_the_link_carries_and_whoever_is_on_it(capacity, beside):
    topology = star({"a": 1 * GB, "b": 1 * GB})
    fabric = Fabric(topology, MS)
    fabric.change(topology.path("a", "b")[0], capacity, 0)
    fabric.advance(0)
    if beside:
        start(fabric, "other", "a", "b", 1 * GB, 1 * MS)
    start(fabric, "empty", "a", "b", 0, 5 * MS)
    assert fabric.next_event_ns == 5 * MS
    assert [flow.about for flow in fabric.advance(5 * MS)] == ["empty"]
    assert len(fabric) == beside


@pytest.mark.parametrize("ends", ["through", "broken off"])
def test_a_flow_that_is_over_cannot_be_broken_off_and_another_on_its_links_goes_on(ends):
    fabric = Fabric(star({"a": 1 * GB, "b": 1 * GB}), MS)
    over = start(fabric, "over", "a", "b", 1 * GB, 0)
    if ends == "through":
        assert fabric.advance(S) == [over]
    else:
        fabric.cancel(over, S)
    start(fabric, "other", "a", "b", 1 * GB, S)
    with pytest.raises(ValueError, match="flow 1: is over, so it cannot be broken off"):
        fabric.cancel(over, S + MS)
    assert len(fabric) == 1
    # It is on the link still, so that who comes shares it: half each until the other's 0.9 GB are through.
    start(fabric, "late", "a", "b", 1 * GB, S + 100 * MS)
    assert run_out(fabric) == {"other": 2900 * MS, "late": 3000 * MS}
