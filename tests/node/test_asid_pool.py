"""ASIDs are split by kind, and a used one waits for a flush."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.asid_pool import AsidPool, AsidsExhausted
from node.generation import Generation
from node.product import PRODUCTS

SEV, ES, SNP = Generation.SEV, Generation.SEV_ES, Generation.SEV_SNP


@pytest.mark.parametrize(
    ("max_asid", "min_sev", "sev", "joint"),
    [(509, 100, 410, 99), (1006, 1006, 1, 1005), (15, 1, 15, 0), (15, 16, 0, 15)],
)
def test_the_split_decides_how_many_of_each_kind_there_are(max_asid: int, min_sev: int, sev: int, joint: int) -> None:
    pool = AsidPool(max_asid, min_sev)
    assert (pool.capacity(SEV), pool.capacity(SNP), pool.capacity(ES)) == (sev, joint, joint)


def test_es_and_snp_share_the_low_asids_and_sev_has_the_rest() -> None:
    pool = AsidPool(6, 4)
    assert [pool.allocate(kind) for kind in (SNP, ES, SEV, SEV, SNP)] == [1, 2, 4, 5, 3]
    with pytest.raises(AsidsExhausted, match="ASID: all 3 of the host for SEV_ES are in use"):
        pool.allocate(ES)


def test_a_used_asid_is_not_given_again_before_a_flush() -> None:
    pool = AsidPool(2, 3)
    first = pool.allocate(SNP)
    pool.release(first)
    assert not pool.needs_flush(SNP)
    assert pool.allocate(SNP) == 2
    assert pool.needs_flush(SNP)
    with pytest.raises(AsidsExhausted):
        pool.allocate(SNP)
    pool.after_flush()
    assert pool.allocate(SNP) == first
    assert pool.peak(SNP) == 2


def test_an_asid_that_nobody_holds_cannot_be_released() -> None:
    with pytest.raises(KeyError):
        AsidPool(5, 3).release(1)


@given(st.lists(st.tuples(st.sampled_from([SEV, ES, SNP]), st.sampled_from(["take", "give", "flush"])), max_size=60))
def test_no_asid_is_held_twice_or_outside_of_its_kind(steps: list[tuple[Generation, str]]) -> None:
    pool = AsidPool(9, 5)
    held: list[int] = []
    dirty: set[int] = set()
    for kind, step in steps:
        if step == "flush":
            pool.after_flush()
            dirty.clear()
        elif step == "give" and held:
            dirty.add(held[0])
            pool.release(held.pop(0))
        elif step == "take":
            try:
                asid = pool.allocate(kind)
            except AsidsExhausted:
                continue
            assert asid not in held
            assert asid not in dirty
            assert (5 <= asid <= 9) if kind is SEV else (1 <= asid <= 4)
            held.append(asid)
        assert pool.in_use(SEV) + pool.in_use(SNP) == len(held)


def test_products_have_the_published_figures() -> None:
    """Real hosts: SEV 100-509 and ES 1-99 on Milan, SEV 99-1006 on Genoa, 15 ASIDs on Naples."""
    figures = {name: (one.max_asid, one.min_sev_asid) for name, one in PRODUCTS.items()}
    assert figures["Milan"] == (509, 100)
    assert figures["Genoa"] == (1006, 99)
    assert figures["Naples"][0] == 15
    assert (PRODUCTS["Milan"].c_bit, PRODUCTS["Naples"].c_bit) == (51, 47)
    assert PRODUCTS["Milan"].memory_bandwidth_bytes_per_s == pytest.approx(204.8e9)
    assert PRODUCTS["Genoa"].memory_bandwidth_bytes_per_s == pytest.approx(460.8e9)
    assert {name for name, one in PRODUCTS.items() if SNP in one.generations} == {
        "Milan", "Genoa", "Bergamo", "Siena", "Turin",
    }  # fmt: skip
    assert {name for name, one in PRODUCTS.items() if Generation.SEV_TIO in one.generations} == {"Turin"}
