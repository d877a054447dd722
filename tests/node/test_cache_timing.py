"""Prime and probe: what the time of loads tells about who used a set of the caches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from cached_boards import base, by_guest, by_host
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_guests import make_host, run, spa, start

from node import operations as op
from node.cache_timing import USUAL, CacheGeometry, CacheTiming
from node.generation import Generation
from node.platform import Platform

OWN, SHARED, MEMORY = 4, 14, 103
SECRET = bytes.fromhex("5e7f1ee7c0ffee")
NIBBLES = [nibble for byte in SECRET for nibble in (byte >> 4, byte & 15)]
LINE, TABLE_LINES = 64, 16
TIMED, PLAIN = Platform(cache_timing=True), Platform()
MOST_SETS = 16384
"""Of the shared cache; those of a core's own divide them."""


def small() -> CacheTiming:
    return CacheTiming(replace(USUAL, own=CacheGeometry(4, 2), shared=CacheGeometry(8, 4)))


def test_a_load_is_as_slow_as_the_place_that_its_line_is_in():
    timing = small()
    assert timing.use(0, 0, 1, 0) == MEMORY
    assert timing.use(0, 63, 1, 0) == OWN
    assert timing.use(0, 63, 2, 0) == MEMORY  # the second line of the two
    assert timing.use(1, 0, 1, 0) == SHARED
    assert timing.use(0, 0, 1, 1) == MEMORY  # another key, another line
    timing.flush(0, 64)
    assert timing.use(1, 0, 1, 0) == MEMORY
    timing.flush_all()
    assert (len(timing), timing.use(0, 64, 1, 0)) == (0, MEMORY)


def test_a_line_too_many_in_a_set_pushes_out_the_one_that_was_used_longest_ago():
    timing = small()
    one, two, three = 0, 4 * LINE, 8 * LINE  # one set of a core's own
    for at in (one, two, one, three):
        timing.use(0, at, 1, 0)
    assert [timing.use(0, at, 1, 0) for at in (one, three)] == [OWN, OWN]
    assert timing.use(0, two, 1, 0) == SHARED


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 40), st.booleans()), max_size=60))
def test_the_model_against_lists_of_lines_in_the_order_of_their_use(steps):
    timing = small()
    own: list[list[list[int]]] = [[[] for _ in range(4)] for _ in range(2)]
    shared: list[list[int]] = [[] for _ in range(8)]

    def use(held: list[int], line: int, ways: int) -> bool:
        found = line in held
        held[:] = ([one for one in held if one != line] + [line])[-ways:]
        return found

    for core, line, flush in steps:
        if flush:
            timing.flush(line * LINE, LINE)
            for held in (*own[0], *own[1], *shared):
                held[:] = [one for one in held if one != line]
            continue
        expected = OWN
        if not use(own[core][line % 4], line, 2):
            expected = SHARED if use(shared[line % 8], line, 4) else MEMORY
        assert timing.use(core, line * LINE + 5, 1, 7) == expected


def recovered(host, victim, table_gpa: int, lines: dict[int, list], load: Callable[..., tuple]) -> list[int | None]:
    """Prime the set of each line of the victim's table, let it look one secret nibble up, and probe."""
    seen = []
    for nibble in NIBBLES:
        by_host(host, op.Wbinvd())  # so that no line of the victim's is near it any more
        for group in lines.values():
            load(*group)
        by_guest(host, victim, op.Read(table_gpa + nibble * LINE, 1))
        # Backwards, so that a probe does not push out what the next one asks for.
        times = {index: max(load(*reversed(group))) for index, group in lines.items()}
        slowest = [index for index, ns in times.items() if ns == max(times.values())]
        seen.append(slowest[0] if len(slowest) == 1 else None)
    return seen


def machines(platform, generation):
    host = make_host(product="Milan", platform=platform)
    victim, attacker = start(host, "victim", generation), start(host, "attacker", Generation.PLAIN)
    run(host)
    return host, victim, attacker


def move(host, vm: str, thread: int) -> None:
    host.pause(vm)
    run(host)
    assert by_host(host, op.VmRun(vm, 0, thread)) == (0,)


def set_of(at: int, sets: int) -> int:
    return at // LINE % sets


@pytest.mark.parametrize("generation", [Generation.PLAIN, Generation.SEV, Generation.SEV_SNP])
@pytest.mark.parametrize(("platform", "learnt"), [(TIMED, True), (PLAIN, False), (Platform(caches=True), False)])
@pytest.mark.parametrize("thread", [0, 1], ids=["same thread", "sibling thread"])
def test_a_neighbour_on_the_victims_core_reads_its_table_look_ups(platform, learnt, generation, thread):
    host, victim, attacker = machines(platform, generation)
    move(host, "victim", thread)
    table = base(victim)
    at, own = spa(host, victim, table), spa(host, attacker, base(attacker))
    stride = 1024 * LINE
    lines = {
        index: [
            op.TimedRead(base(attacker) + (set_of(at, 1024) + index - set_of(own, 1024)) % 1024 * LINE + way * stride)
            for way in range(8)
        ]
        for index in range(TABLE_LINES)
    }
    seen = recovered(host, victim, table, lines, lambda *batch: by_guest(host, attacker, *batch))
    assert seen == (NIBBLES if learnt else [None] * len(NIBBLES))


@pytest.mark.parametrize(("platform", "learnt"), [(TIMED, True), (PLAIN, False)])
def test_the_host_on_another_core_reads_them_in_the_cache_that_all_share(platform, learnt):
    host, victim, _ = machines(platform, Generation.SEV_SNP)
    move(host, "victim", 10)
    table = base(victim)
    at = spa(host, victim, table)
    free = 1 << 31
    stride = MOST_SETS * LINE
    lines = {
        index: [op.HostTimedRead(free + (at // LINE + index) % MOST_SETS * LINE + way * stride) for way in range(16)]
        for index in range(TABLE_LINES)
    }

    seen = recovered(host, victim, table, lines, lambda *batch: by_host(host, *batch))
    assert seen == (NIBBLES if learnt else [None] * len(NIBBLES))


def test_a_neighbour_on_another_core_learns_nothing_from_its_own_cache():
    host, victim, attacker = machines(TIMED, Generation.SEV)
    move(host, "victim", 2)
    table = base(victim)
    at, own = spa(host, victim, table), spa(host, attacker, base(attacker))
    first = base(attacker) + (set_of(at, 1024) - set_of(own, 1024)) % 1024 * LINE
    lines = {index: [op.TimedRead(first + index * LINE + way * 1024 * LINE) for way in range(8)] for index in range(8)}
    assert set(recovered(host, victim, table, lines, lambda *batch: by_guest(host, attacker, *batch))) == {None}


@pytest.mark.parametrize("platform", [TIMED, PLAIN])
def test_a_timed_load_that_faults_answers_with_the_fault(platform):
    host, victim, _ = machines(platform, Generation.SEV)
    assert by_guest(host, victim, op.TimedRead(1 << 50))[0].kind is op.FaultKind.NESTED_PAGE_FAULT
    assert by_host(host, op.HostTimedRead(1 << 50))[0].kind is op.FaultKind.MACHINE_CHECK
