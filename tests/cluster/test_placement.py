"""First fit over the hosts' memory, vCPUs and ASIDs; what is given back can be used again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.placement import FIRMWARE_BYTES, FirstFit, HostAccount
from node.generation import Generation
from node.guest import GuestSpec
from node.product import PRODUCTS
from node.program import ProgramSpec

GIB = 1 << 30


def guest(name: str, generation: Generation = Generation.PLAIN, memory: int = GIB, vcpus: int = 1) -> GuestSpec:
    return GuestSpec(name, generation, vcpus, memory, ProgramSpec("stream"), seed=1)


def account(name: str, **changes: object) -> HostAccount:
    values: dict[str, object] = {
        "generations": frozenset({Generation.PLAIN, Generation.SEV, Generation.SEV_SNP}),
        "free_bytes": 8 * GIB,
        "free_vcpus": 8.0,
        "free_asids": {Generation.SEV: 2, Generation.SEV_SNP: 1},
    }
    return HostAccount(name, **{**values, **changes})  # type: ignore[arg-type]


def test_the_first_host_that_fits_is_taken() -> None:
    fit = FirstFit((account("small", free_bytes=GIB // 2), account("big"), account("other")))
    assert fit.place(guest("vm")) == "big"


def test_a_pinned_machine_goes_nowhere_else() -> None:
    fit = FirstFit((account("a"), account("b", free_vcpus=0.5)))
    assert fit.place(guest("vm"), pin="b") is None


@pytest.mark.parametrize(
    ("generation", "count"), [(Generation.SEV, 2), (Generation.SEV_SNP, 1), (Generation.PLAIN, 7)]
)
def test_a_host_takes_no_more_than_it_has(generation: Generation, count: int) -> None:
    fit = FirstFit((account("only", free_bytes=7 * (GIB + FIRMWARE_BYTES)),))
    placed = [fit.place(guest(f"vm-{number}", generation)) for number in range(10)]
    assert sum(host is not None for host in placed) == count


def test_what_a_machine_held_is_given_back_once() -> None:
    fit = FirstFit((account("only"),))
    assert fit.place(guest("first", Generation.SEV_SNP)) == "only"
    assert fit.place(guest("second", Generation.SEV_SNP)) is None
    assert fit.release("first") == "only"
    assert fit.release("first") is None
    assert fit.place(guest("second", Generation.SEV_SNP)) == "only"


def test_a_host_without_the_generation_is_passed_over() -> None:
    fit = FirstFit((account("old", generations=frozenset({Generation.PLAIN})), account("new")))
    assert fit.place(guest("vm", Generation.SEV_SNP)) == "new"


def test_the_search_for_a_second_place_begins_where_it_is_told_to_and_goes_round_and_past_the_vm_s_own_host() -> None:
    fit = FirstFit((account("a"), account("b"), account("full", free_bytes=0), account("home")))
    fit.place(guest("vm"), pin="home")
    assert fit.keep("vm", None, frozenset({"a"}), first=1) == "b"
    fit.settle("vm", moved=False)
    assert fit.keep("vm", None, frozenset(), first=2) == "a"
    fit.settle("vm", moved=False)
    assert fit.keep("vm", None, frozenset({"a", "b"}), first=3) is None


def test_a_host_that_does_not_exist_takes_nothing() -> None:
    fit = FirstFit((account("a"),))
    assert fit.place(guest("vm"), pin="nowhere") is None


def test_memory_that_is_backed_twice_is_counted_for_guests_whose_private_memory_is_apart() -> None:
    """A guest of 4 GiB holds 7: one fits where two plain ones do."""
    room = 9 * GIB
    for generation, count in ((Generation.PLAIN, 2), (Generation.SEV, 2), (Generation.SEV_SNP, 1)):
        fit = FirstFit((account("only", free_bytes=room, backs_twice=0.75),))
        placed = [fit.place(guest(f"vm-{number}", generation, 4 * GIB)) for number in range(3)]
        assert sum(host is not None for host in placed) == count
        for number in range(3):
            fit.release(f"vm-{number}")
        assert fit.accounts[0].free_bytes == room


accounts = st.lists(
    st.builds(
        account,
        st.just("host"),
        generations=st.sampled_from([frozenset({Generation.PLAIN}), frozenset(Generation)]),
        free_bytes=st.integers(0, 4).map(lambda count: count * (GIB + FIRMWARE_BYTES)),
        free_vcpus=st.sampled_from([0.0, 1.0, 3.0]),
        free_asids=st.sampled_from([{}, {Generation.SEV: 1, Generation.SEV_SNP: 2}, {Generation.SEV: 0}]),
    ),
    max_size=9,
)
wishes = st.lists(
    st.tuples(
        st.sampled_from([Generation.PLAIN, Generation.SEV, Generation.SEV_ES, Generation.SEV_SNP]),
        st.integers(1, 3), st.integers(1, 2), st.integers(0, 8), st.booleans(),
    ),
    max_size=25,
)  # fmt: skip


def scanned(fit: FirstFit, wanted: GuestSpec, first: int, excluded: frozenset[str]) -> str | None:
    """First fit in the plainest way: ask one host after another."""
    hosts = fit.accounts
    for number in range(first, first + len(hosts)):
        one = hosts[number % len(hosts)]
        if one.name not in excluded and one.takes(wanted):
            return one.name
    return None


@settings(max_examples=60, deadline=None)
@given(accounts, wishes)
def test_the_host_found_is_the_one_that_a_scan_of_all_finds(hosts: list[HostAccount], asked: list[tuple]) -> None:
    for number, one in enumerate(hosts):
        one.name = f"host-{number}"
    fit = FirstFit(tuple(hosts))
    for number, (generation, gib, vcpus, first, leaves) in enumerate(asked):
        wanted = guest(f"vm-{number}", generation, gib * GIB, vcpus)
        expected = scanned(fit, wanted, 0, frozenset())
        assert fit.place(wanted) == expected
        if expected is not None and hosts:
            second = scanned(fit, wanted, first % len(hosts), frozenset({expected}))
            assert fit.keep(wanted.name, None, frozenset({expected}), first % len(hosts)) == second
            if second is not None:
                fit.settle(wanted.name, moved=leaves)
        if leaves:
            fit.release(wanted.name)


def test_what_a_machine_that_is_to_move_finds_too_little_of_is_named() -> None:
    full = account("full", free_bytes=GIB // 2, free_vcpus=0.5)
    none = account("none", free_asids={Generation.SEV: 0, Generation.SEV_SNP: 0})
    fit = FirstFit((account("home"), full, none))
    assert fit.place(guest("vm", Generation.SEV)) == "home"
    assert fit.keep("vm", None, frozenset({"home"})) is None
    assert fit.no_room("vm", None, frozenset({"home"})) == "no host has room: memory, vCPUs, ASIDs"
    assert fit.no_room("vm", "full", frozenset({"home"})) == "no room on full: memory, vCPUs"
    assert fit.no_room("vm", "none", frozenset({"home"})) == "no room on none: ASIDs"
    assert fit.no_room("vm", None, frozenset({"home", "full"})) == "no host has room: ASIDs"
    fit.close("none")
    emptied = "no host has room: all others that could take it are being emptied"
    assert fit.no_room("vm", None, frozenset({"home", "full"})) == emptied
    alone = FirstFit((account("home"),))
    alone.place(guest("vm"))
    assert alone.no_room("vm", None, frozenset()) == "no host has room: there is no other"


@pytest.mark.parametrize("never", [
    {"generations": frozenset({Generation.PLAIN}), "free_asids": {Generation.SEV: 0}},
    {"product": PRODUCTS["Rome"], "free_vcpus": 0.0},
])  # fmt: skip
def test_what_a_host_to_which_a_vm_could_never_go_has_too_little_of_is_not_what_it_lacks(never: dict[str, Any]) -> None:
    hosts = account("home", product=PRODUCTS["Milan"]), account("never", **never), account("full", free_bytes=0)
    fit = FirstFit(hosts)
    assert fit.place(guest("vm", Generation.SEV)) == "home"
    assert fit.misfit("vm", "never") is not None
    assert fit.no_room("vm", None, frozenset({"home"})) == "no host has room: memory"
    fit.close("full")
    emptied = "no host has room: all others that could take it are being emptied"
    assert fit.no_room("vm", None, frozenset({"home"})) == emptied
