"""The media: sparse, and otherwise like a flat array of bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tio.nvme_namespace import NvmeNamespace

BLOCKS = 64


@given(
    block_bytes=st.sampled_from([512, 4096]),
    steps=st.lists(st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, 16), st.integers(1, 255)), max_size=12),
)
def test_reads_see_exactly_what_was_written_and_zeros_elsewhere(block_bytes, steps):
    namespace = NvmeNamespace(BLOCKS, block_bytes)
    model = bytearray(BLOCKS * block_bytes)
    for lba, wanted, value in steps:
        count = min(wanted, BLOCKS - lba)
        data = bytes([value]) * (count * block_bytes)
        namespace.write(lba, data)
        model[lba * block_bytes : (lba + count) * block_bytes] = data
    assert namespace.read(0, BLOCKS) == model
    for lba in range(BLOCKS):
        assert namespace.read(lba, 1) == model[lba * block_bytes : (lba + 1) * block_bytes]


def test_a_terabyte_holds_only_what_was_written():
    namespace = NvmeNamespace((1 << 40) // 512)
    namespace.write(namespace.blocks - 1, b"\x55" * 512)
    assert namespace.resident_bytes == 4096
    assert namespace.read(namespace.blocks - 8, 8) == bytes(7 * 512) + b"\x55" * 512
    assert namespace.resident_bytes == 4096


@pytest.mark.parametrize(("lba", "count"), [(-1, 1), (BLOCKS, 1), (BLOCKS - 1, 2), (0, -1)])
def test_ranges_outside_of_the_namespace_are_refused(lba, count):
    with pytest.raises(ValueError, match="blocks"):
        NvmeNamespace(BLOCKS).read(lba, count)


def test_part_of_a_block_and_odd_block_sizes_are_refused():
    with pytest.raises(ValueError, match="data"):
        NvmeNamespace(BLOCKS).write(0, bytes(100))
    with pytest.raises(ValueError, match="block_bytes"):
        NvmeNamespace(BLOCKS, 1024)
    with pytest.raises(ValueError, match="blocks"):
        NvmeNamespace(0)
