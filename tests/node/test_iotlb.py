"""The IOTLB: what is forgotten is gone, of that domain and no other; what is not stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.iommu_page_table import Translation
from node.iotlb import MOST_ENTRIES, Iotlb

PAGE = 1 << 12
SIZES = (12, 21, 30)
PUTS = st.tuples(st.integers(0, 2), st.integers(0, 1 << 32), st.sampled_from(SIZES))
RANGES = st.one_of(
    st.integers(0, 1 << 20).map(lambda page: (page * PAGE, (page + 1) * PAGE)),
    st.tuples(st.integers(0, 20), st.integers(12, 40)).map(lambda one: (one[0] << one[1], one[0] + 1 << one[1])),
)


@given(st.lists(PUTS, max_size=20), st.integers(0, 2), RANGES)
def test_a_range_of_one_domain_is_forgotten_whole(puts, domain, span) -> None:
    tlb = Iotlb()
    start, end = span
    for who, iova, bits in puts:
        tlb.put(who, iova, Translation(0, bits, read=True, write=True))
    tlb.forget(domain, start, end)
    for who, iova, bits in puts:
        first = iova >> bits << bits
        met = who == domain and first < end and start < first + (1 << bits)
        assert ((who, bits, iova >> bits) in tlb._entries) is not met
    for who, iova, _ in puts:
        if who == domain and start <= iova < end:
            assert tlb.find(who, iova) is None


def test_the_oldest_makes_room() -> None:
    tlb = Iotlb()
    for page in range(MOST_ENTRIES + 1):
        tlb.put(1, page * PAGE, Translation(page * PAGE, 12, read=True, write=True))
    assert len(tlb) == MOST_ENTRIES
    assert tlb.find(1, 0) is None
    assert tlb.find(1, MOST_ENTRIES * PAGE) is not None
