"""One packer for all messages packs as a fresh one does, whatever came before."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.packing import packed

BODIES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(BODIES, max_size=6))
def test_bodies_in_a_row_are_packed_as_by_packers_of_their_own(bodies):
    assert [packed(body) for body in bodies] == [msgpack.packb(body) for body in bodies]


def test_a_body_that_cannot_be_packed_leaves_nothing_behind():
    with pytest.raises(TypeError):
        packed(("begun", object()))
    assert packed(("next",)) == msgpack.packb(("next",))


def test_large_bodies_are_packed_whole():
    large = bytes(5 << 20)
    assert packed((large, 1)) == msgpack.packb((large, 1))
    assert packed(1) == b"\x01"
