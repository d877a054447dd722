"""Hosts on which the same few loads meet find what these come to, as they would compute it themselves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node import load_mix
from node.cache_shares import CacheUser
from node.contention import Contention, PhaseLoad
from node.load_mix import LoadMix, MixFamily
from node.neighbour_ledger import Owner

LATENCY_NS = 100.0
FACTOR = 0.45
LOADS = [
    PhaseLoad(0.3, 0.001, 0.1, 1.4),
    PhaseLoad(0.6, 0.0, 2.0, 1.25),
    PhaseLoad(0.2, 0.002, 4.0, 2.0),
    PhaseLoad(0.1, 0.02, 64.0),
    PhaseLoad(0.1, 0.0, 8.0, 9.0),
]
"""Three that their caps hold unless it gets crowded, one without a cap, and streams."""

changes = st.lists(st.tuples(st.sampled_from(LOADS), st.booleans(), st.integers(0, 2000)), max_size=40)


def host() -> Contention:
    return Contention(64, 20e9, LATENCY_NS, FACTOR)


@settings(max_examples=60, deadline=None)
@given(changes)
def test_what_a_mix_comes_to_is_what_its_loads_come_to_bit_by_bit(steps: list[tuple[PhaseLoad, bool, int]]) -> None:
    following, computing, now = host(), host(), 0
    running: list[int] = []
    for load, leaves, passes in steps:
        computing._mix = None
        if leaves and running:
            slot = running.pop(0)
            assert following.stop(slot) == computing.stop(slot)
        else:
            running.append(following.start(load, 1e9))
            assert computing.start(load, 1e9) == running[-1]
        computing._mix = None
        assert following.solve() == computing.solve()
        assert (following.latency_ns, following.utilisation) == (computing.latency_ns, computing.utilisation)
        assert [following.rate_per_ns(one) for one in running] == [computing.rate_per_ns(one) for one in running]
        now += passes
        following.advance(now)
        computing.advance(now)
    assert following.busy_bytes == computing.busy_bytes


def test_a_mix_is_one_whichever_way_led_to_it_unless_another_load_came_first() -> None:
    family = MixFamily(64, 20.0, LATENCY_NS, FACTOR)
    one, other = LOADS[:2]

    def after(*steps: tuple[PhaseLoad, int]) -> LoadMix:
        mix = family.none
        for step in steps:
            found = mix[step]
            assert found is not None
            mix = found
        return mix

    assert after((one, 1), (one, 1)) is after((one, 2)) is after((one, 3), (one, -1))
    assert after((one, 1), (one, -1)) is family.none
    assert after((one, 1), (other, 1)) is not after((other, 1), (one, 1))


def test_of_many_loads_and_of_those_that_go_by_their_neighbours_nothing_is_kept() -> None:
    family = MixFamily(64, 2000.0, LATENCY_NS, FACTOR)
    mix: LoadMix | None = family.none
    capped = [*LOADS[:3], LOADS[4], LOADS[0]._replace(core_ns=0.31)]
    for load in capped:
        assert mix is not None
        mix = mix[load, 1]
    assert mix is None
    assert family.none[LOADS[0], 65] is None
    assert family.none[LOADS[0]._replace(owner=Owner("vm", "")), 1] is None
    assert family.none[LOADS[0]._replace(misses=CacheUser(1.0, 1e6)), 1] is None
    assert not family._known.keys() - {()} - {tuple((one, 1) for one in capped[:count]) for count in range(5)}


def test_of_loads_that_their_own_traffic_holds_back_nothing_is_kept_and_a_host_pays_for_no_look_up() -> None:
    family, crowded = MixFamily(64, 20.0, LATENCY_NS, FACTOR), host()
    assert family.none[LOADS[4], 3] is None  # More traffic at their caps than the memory has.
    assert family.none[LOADS[3], 1] is None  # No cap.
    crowded.start(LOADS[3], 1e9)
    crowded.solve()
    assert crowded._mix is None
    crowded.start(LOADS[0], 1e9)
    crowded.solve()
    assert crowded._mix is None


def test_a_family_forgets_mixes_before_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    family = MixFamily(64, 20.0, LATENCY_NS, FACTOR)
    monkeypatch.setattr(load_mix, "_MOST_KNOWN", 10)
    for count in range(1, 60):
        first = family.none[LOADS[0], count]
        assert first is not None
        second = first[LOADS[1], 1]
        assert second is not None
        assert len(family._known) <= 12
        assert second[LOADS[1], -1] is not None
