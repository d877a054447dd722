"""Where cards stand: bus numbers, windows of MMIO above memory, and what of it the RMP covers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.card_slot import MOST_PORTS, CardSlot, windows, with_cards
from node.product import PRODUCTS
from node.rmp_layout import at_end_of_memory
from psp.system_bus import PAGE_BYTES
from tio.device_identity import CardKind

GIB = 1 << 30
SLOTS = st.lists(
    st.builds(
        CardSlot,
        st.integers(1, MOST_PORTS),
        st.sampled_from(CardKind),
        memory_bytes=st.integers(12, 34).map(lambda bits: 1 << bits),
        virtual_functions=st.integers(0, 7),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda one: one.port,
).map(tuple)


@settings(max_examples=25)
@given(SLOTS, st.integers(1, 1 << 14))
def test_windows_lie_above_memory_one_after_another_each_at_its_own_alignment(
    cards: tuple[CardSlot, ...], pages: int
) -> None:
    before = pages * PAGE_BYTES
    for window, slot in zip(windows(before, cards), cards, strict=True):
        assert window.slot is slot
        assert window.base >= before
        assert not window.length & window.length - 1
        assert not window.base % window.length
        assert window.length > (1 + slot.virtual_functions) * slot.memory_bytes
        before = window.end


@settings(max_examples=25)
@given(SLOTS)
def test_where_there_is_sev_tio_the_rmp_covers_all_windows_and_memory(cards: tuple[CardSlot, ...]) -> None:
    memory = 6 << 40
    product = with_cards(PRODUCTS["Turin"], memory, cards)
    layout = at_end_of_memory(memory, segmented=product.rmp.segmented, mmio=product.rmp.mmio)
    assert layout.covers(0, memory // PAGE_BYTES)
    for window in windows(memory, cards):
        assert layout.covers(window.base // PAGE_BYTES, window.end // PAGE_BYTES)


@pytest.mark.parametrize("name", ["Naples", "Milan", "Genoa"])
def test_other_products_are_as_they_were(name: str) -> None:
    cards = (CardSlot(1, CardKind.GPU),)
    assert with_cards(PRODUCTS[name], GIB, cards) is PRODUCTS[name]
    assert with_cards(PRODUCTS["Turin"], GIB, ()) is PRODUCTS["Turin"]


def test_two_cards_have_no_port_in_common_and_ports_are_functions_of_bus_0() -> None:
    with pytest.raises(ValueError, match="one card a port"):
        list(windows(GIB, (CardSlot(3, CardKind.GPU), CardSlot(3, CardKind.NIC))))
    with pytest.raises(ValueError, match="memory_bytes of a GPU: expected"):
        CardSlot(1, CardKind.GPU, memory_bytes=3 << 20)
    with pytest.raises(ValueError, match="virtual_functions: expected"):
        CardSlot(1, CardKind.NIC, virtual_functions=65)
    for port in (0, MOST_PORTS + 1, -1):
        with pytest.raises(ValueError, match="port: expected"):
            CardSlot(port, CardKind.NVME)
    assert CardSlot(MOST_PORTS, CardKind.NVME).root_port == 0xF8
    assert CardSlot(MOST_PORTS, CardKind.NVME).requester == 0x2000
