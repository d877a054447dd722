"""A host's phases share its threads and its memory channels."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.contention import NEVER_NS, Contention, PhaseLoad

LATENCY_NS = 100.0
FACTOR = 0.45
BANDWIDTH = 100e9

loads = st.builds(
    PhaseLoad,
    core_ns=st.floats(0.05, 2.0),
    miss=st.floats(0.0, 0.05),
    traffic_bytes=st.floats(0.0, 8.0),
    cap_per_ns=st.sampled_from([0.0, 0.1, 1.0, 5.0]),
    pipeline_ns=st.just(0.0),
    miss_ns=st.just(0.0),
    misses=st.none(),
)


def host(threads: int = 64) -> Contention:
    return Contention(threads, BANDWIDTH, LATENCY_NS, FACTOR)


def run_alone(load: PhaseLoad, instructions: float) -> int:
    one = host()
    one.start(load, instructions)
    one.solve()
    return one.next_completion_ns()


def utilisation_by_bisection(phases: list[PhaseLoad]) -> float:
    """The same equations solved in the plainest way, for phases that all have a thread."""

    def demand(u: float) -> float:
        latency = LATENCY_NS * (1 + FACTOR * u / (1 - u))
        rates = [min(p.cap_per_ns or float("inf"), 1 / (p.core_ns + p.miss * latency)) for p in phases]
        return sum(rate * p.traffic_bytes for rate, p in zip(rates, phases, strict=True)) / (BANDWIDTH * 1e-9)

    low, high = 0.0, 1 - 1e-12
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if demand(middle) > middle else (low, middle)
    return low


def test_a_phase_alone_runs_at_the_speed_its_demand_says() -> None:
    load = PhaseLoad(core_ns=0.25, miss=0.0, traffic_bytes=0.0)
    assert run_alone(load, 4e9) == 1_000_000_000


def test_misses_cost_the_idle_latency_when_nobody_else_runs() -> None:
    load = PhaseLoad(core_ns=0.0, miss=0.01, traffic_bytes=0.0)
    assert run_alone(load, 1e6) == 1_000_000


@settings(max_examples=25, deadline=None)
@given(st.lists(loads, min_size=1, max_size=40))
def test_utilisation_solves_the_published_curve(phases: list[PhaseLoad]) -> None:
    one = host()
    for load in phases:
        one.start(load, 1e12)
    one.solve()
    assert one.utilisation == pytest.approx(utilisation_by_bisection(phases), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.lists(loads, min_size=1, max_size=12), st.integers(1, 8))
def test_no_more_thread_time_is_used_than_there_are_threads(phases: list[PhaseLoad], threads: int) -> None:
    one = host(threads)
    slots = [one.start(load, 1e9) for load in phases]
    one.solve()
    one.advance(1_000_000)
    accounts = [one.stop(slot) for slot in slots]
    for account in accounts:
        assert 0 <= account.core_wait_ns <= account.elapsed_ns
    assert one.busy_thread_ns <= threads * 1_000_000 * (1 + 1e-6)


def test_overcommitted_phases_get_equal_shares_and_the_wait_is_accounted() -> None:
    one = host(threads=2)
    load = PhaseLoad(core_ns=1.0, miss=0.0, traffic_bytes=0.0)
    slots = [one.start(load, 1e9) for _ in range(4)]
    one.solve()
    one.advance(1_000_000)
    for slot in slots:
        account = one.stop(slot)
        assert account.instructions == pytest.approx(500_000)
        assert account.core_wait_ns == pytest.approx(500_000)


def test_a_capped_phase_leaves_the_rest_of_its_share_to_others() -> None:
    one = host(threads=1)
    lazy = one.start(PhaseLoad(core_ns=1.0, miss=0.0, traffic_bytes=0.0, cap_per_ns=0.2), 1e9)
    busy = one.start(PhaseLoad(core_ns=1.0, miss=0.0, traffic_bytes=0.0), 1e9)
    one.solve()
    one.advance(1_000_000)
    assert one.stop(lazy).instructions == pytest.approx(200_000)
    assert one.stop(busy).instructions == pytest.approx(800_000)


def test_a_neighbour_s_traffic_makes_misses_longer_and_the_loss_is_accounted() -> None:
    alone = run_alone(PhaseLoad(0.2, 0.01, 0.64), 1e9)
    one = host()
    slot = one.start(PhaseLoad(0.2, 0.01, 0.64), 1e9)
    for _ in range(20):
        one.start(PhaseLoad(0.1, 0.02, 6.4), 1e15)
    one.solve()
    end = one.next_completion_ns()
    one.advance(end)
    account = one.stop(slot)
    idle = 1e9 * (0.2 + 0.01 * LATENCY_NS)
    assert end > alone >= idle
    assert account.loaded_ns == pytest.approx(end - idle, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.lists(loads, min_size=1, max_size=10), st.lists(st.integers(1, 400_000), min_size=1, max_size=6))
def test_elapsed_time_is_the_sum_of_its_parts(phases: list[PhaseLoad], steps: list[int]) -> None:
    phases = [PhaseLoad(load.core_ns, load.miss, load.traffic_bytes) for load in phases]
    one = host(threads=4)
    slots = [one.start(load, 1e9) for load in phases]
    one.solve()
    now = 0
    for step in steps:
        now += step
        one.advance(now)
    for load, slot in zip(phases, slots, strict=True):
        account = one.stop(slot)
        fixed = account.instructions * (load.core_ns + load.miss * LATENCY_NS)
        assert fixed + account.loaded_ns + account.core_wait_ns == pytest.approx(account.elapsed_ns, rel=1e-6)


def test_an_interrupted_phase_keeps_what_is_left() -> None:
    one = host()
    slot = one.start(PhaseLoad(1.0, 0.0, 0.0), 1000)
    one.solve()
    one.advance(400)
    account = one.stop(slot)
    assert (account.instructions, account.remaining) == (400, 600)
    assert one.next_completion_ns() == NEVER_NS


def test_phases_that_end_together_are_all_found() -> None:
    one = host()
    slots = {one.start(PhaseLoad(1.0, 0.0, 0.0), 1000) for _ in range(9)}
    one.solve()
    one.advance(one.next_completion_ns())
    assert set(one.completed()) == slots


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_phase_has_the_rate_of_the_present_latency_whenever_it_came(data: st.DataObject) -> None:
    """The next solution begins with these rates, also those of phases that have just started, to the last bit."""
    one, running, now = host(), {}, 0
    for _ in range(data.draw(st.integers(1, 20))):
        for slot in data.draw(st.permutations(sorted(running)))[: data.draw(st.integers(0, 3))]:
            one.stop(slot)
            del running[slot]
        for load in data.draw(st.lists(loads, max_size=5)):
            running[one.start(load, 1e12)] = load
        for _ in range(2):
            for slot, load in running.items():
                rate = 1 / (load.miss * one.latency_ns + load.core_ns)
                assert one.rate_per_ns(slot) == min(rate, load.cap_per_ns or float("inf"))
            one.solve()
        now += data.draw(st.integers(0, 1000))
        one.advance(now)


@settings(max_examples=25, deadline=None)
@given(st.lists(loads, min_size=5, max_size=12), st.integers(2, 4))
def test_a_host_that_was_overcommitted_forgets_it(phases: list[PhaseLoad], threads: int) -> None:
    one = host(threads)
    slots = [one.start(load, 1e12) for load in phases]
    one.solve()
    for slot in slots[threads:]:
        one.stop(slot)
    one.solve()
    assert one.utilisation == pytest.approx(utilisation_by_bisection(phases[:threads]), abs=1e-6)
    for slot, load in zip(slots[:threads], phases, strict=False):
        rate = 1 / (load.miss * one.latency_ns + load.core_ns)
        assert one.rate_per_ns(slot) == min(rate, load.cap_per_ns or float("inf"))


def test_phases_of_equal_load_keep_their_own_lengths_and_books_whenever_they_came() -> None:
    load = PhaseLoad(core_ns=1.0, miss=0.0, traffic_bytes=0.0)
    one, now = host(), 0
    slots = []
    for length in (900, 300, 600):
        slots.append(one.start(load, length))
        one.solve()
        now += 100
        one.advance(now)
    ended = []
    while one.running:
        one.solve()
        now = one.next_completion_ns()
        one.advance(now)
        ended += [(now, slot, one.stop(slot)) for slot in one.completed()]
    assert [(at, slots.index(slot), done.elapsed_ns) for at, slot, done in ended] == [
        (400, 1, 300), (800, 2, 600), (900, 0, 900),
    ]  # fmt: skip


def test_weeks_of_one_load_round_no_instruction_away() -> None:
    """A host that is never idle for a month: the length of each phase is still met to the nanosecond."""
    load = PhaseLoad(core_ns=0.25, miss=0.0, traffic_bytes=0.0)
    one, now, hour = host(), 0, 3_600_000_000_000
    keeper = one.start(load, 4.0 * 24 * 31 * hour)
    for _ in range(24 * 30):
        slot = one.start(load, 4.0 * hour)
        one.solve()
        assert one.next_completion_ns() == now + hour
        now += hour
        one.advance(now)
        assert one.completed() == [slot]
        assert one.stop(slot).elapsed_ns == hour
    slot = one.start(load, 3.0)
    one.solve()
    assert one.next_completion_ns() == now + 1
    assert one.stop(keeper).remaining == 4.0 * 24 * hour
    assert one.stop(slot).remaining == 3.0


def _capped_at(core_ns: float, miss: float, latency_ns: float) -> PhaseLoad:
    return PhaseLoad(core_ns, miss, 8.0, 1.0 / (core_ns + miss * latency_ns))


nearly_free = st.builds(_capped_at, st.floats(0.05, 0.5), st.floats(0.001, 0.05), st.floats(LATENCY_NS, 4 * LATENCY_NS))
"""Loads whose caps hold up to a latency that a few of them reach."""


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(nearly_free, st.booleans()), min_size=2, max_size=20), st.floats(5.0, 50.0))
def test_caps_that_hold_save_work_and_change_no_bit(changes: list[tuple[PhaseLoad, bool]], per_ns: float) -> None:
    quick, plain = (Contention(16, per_ns * 1e9, LATENCY_NS, FACTOR) for _ in range(2))
    running: list[int] = []
    for load, leaves in changes:
        if leaves and running:
            slot = running.pop(0)
            assert quick.stop(slot) == plain.stop(slot)
        running.append(quick.start(load, 1e9))
        assert running[-1] == plain.start(load, 1e9)
        for alike in plain._loads.values():
            alike.capped_to_ns = -1.0  # As if nobody knew of any cap that holds.
        plain._mix = None
        quick.solve()
        plain.solve()
        assert (quick.latency_ns, quick.utilisation) == (plain.latency_ns, plain.utilisation)
        assert [quick.rate_per_ns(one) for one in running] == [plain.rate_per_ns(one) for one in running]
        quick.advance(quick._now_ns + 1000)
        plain.advance(plain._now_ns + 1000)


copying = st.builds(lambda byte_ns, cap: PhaseLoad(byte_ns, 0.0, 2.0, cap), st.floats(0.1, 2.0), st.floats(0.05, 5.0))
"""What threads without end do: they wait for no miss."""


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(copying, st.integers(1, 9), st.lists(loads, max_size=3)), min_size=1, max_size=6), st.data())
def test_threads_without_end_are_to_others_and_to_the_books_phases_of_any_length(
    changes: list[tuple[PhaseLoad, int, list[PhaseLoad]]], data: st.DataObject
) -> None:
    threaded, phased, now = host(), host(), 0
    taken, others = [], []
    for load, threads, beside in changes:
        taken.append((threaded.occupy(load, threads), [phased.start(load, 1e18) for _ in range(threads)]))
        others += [(threaded.start(other, 1e9), phased.start(other, 1e9)) for other in beside]
        for _ in range(data.draw(st.integers(0, 2))):
            if taken:
                occupied, slots = taken.pop(data.draw(st.integers(0, len(taken) - 1)))
                threaded.release(occupied, now)
                for slot in slots:
                    phased.stop(slot)
        assert threaded.solve() == phased.solve()
        now += data.draw(st.integers(0, 10_000))
        for one in (threaded, phased):
            one.advance(now)
    assert threaded.running == phased.running
    assert [threaded.stop(one) for one, _ in others] == [phased.stop(one) for _, one in others]
    assert (threaded.latency_ns, threaded.busy_bytes) == (phased.latency_ns, phased.busy_bytes)
    for occupied, slots in taken:
        threaded.release(occupied, now)
        for slot in slots:
            phased.stop(slot)
    assert threaded.busy_thread_ns == phased.busy_thread_ns
    assert threaded.solve() == phased.solve() == NEVER_NS
