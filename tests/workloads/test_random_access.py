"""The order of an epoch is a bijection that can be turned round, and accesses have all sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.operations import Read
from workloads.keyed_content import KeyedContent
from workloads.random_access import EpochOrder


@given(bits=st.integers(4, 16), epoch=st.integers(0, 1 << 30), key=st.binary(min_size=32, max_size=32))
def test_an_epoch_visits_every_page_once_and_knows_when(bits, epoch, key) -> None:
    order = EpochOrder.of(KeyedContent(key), epoch, bits)
    positions = np.arange(1 << bits, dtype=np.uint64)
    pages = order.pages(positions)
    assert len(set(pages.tolist())) == len(pages)
    assert int(pages.max()) == len(pages) - 1
    assert np.array_equal(order.positions(pages), positions)


def test_accesses_have_all_sizes_from_a_line_to_a_page(machine, monkeypatch) -> None:
    one = machine("random-access")
    sizes = set()
    execute = one.memory.execute
    monkeypatch.setattr(
        one.memory, "execute", lambda op: (isinstance(op, Read) and sizes.add(op.length), execute(op))[1]
    )
    one.run(60)
    assert sizes == {64, 128, 256, 512, 1024, 2048, 4096}


@pytest.mark.parametrize("batch", [1, 16])
def test_every_page_is_stored_anew_in_each_epoch(machine, batch) -> None:
    one = machine("random-access", table_bytes=64 << 10, batch=batch, loads=0)
    one.run(1)
    length = 64 << 10
    before = one.memory.load(one.placement.base_gpa, length, private=True)
    one.run(1 + 16 // batch)
    after = one.memory.load(one.placement.base_gpa, length, private=True)
    assert all(before[at : at + 64] != after[at : at + 64] for at in range(0, length, 4096))
    assert one.registers.r13 == 16
