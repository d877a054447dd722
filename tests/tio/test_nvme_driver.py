"""The driver's helper: whatever the extents, the disk and the memory hold what a flat copy would."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tio.dma_port import DmaFault
from tio.nvme import NvmeController
from tio.nvme_admin import NvmeSettings
from tio.nvme_driver import DRIVER_MEMORY_BYTES, NvmeDriver, NvmeDriverError
from tio.nvme_format import Status
from tio.nvme_namespace import NvmeNamespace

BASE = 0x10000
PAGE = 4096


def started(memory, namespace, **offers):
    driver = NvmeDriver(NvmeController(memory, namespace, NvmeSettings(**offers)), memory, BASE)
    driver.start()
    return driver


def test_start_learns_the_disk_and_uses_only_its_own_pages(host_memory):
    driver = started(host_memory, NvmeNamespace(77, 4096))
    assert (driver.blocks, driver.block_bytes, driver.max_transfer_bytes) == (77, 4096, 2 << 20)
    assert not any(host_memory.bytes[:BASE])
    assert not any(host_memory.bytes[BASE + DRIVER_MEMORY_BYTES :])
    assert driver.served == []


@given(
    lba=st.integers(0, 40),
    blocks=st.integers(1, 24),
    offset=st.integers(0, 1023).map(lambda n: 4 * n),
    order=st.permutations(range(26)),
)
@settings(max_examples=25)
def test_what_is_written_from_scattered_pages_is_read_into_others(make_memory, lba, blocks, offset, order):
    memory = make_memory()
    # Two pages a command: every longer transfer is split.
    driver = started(memory, NvmeNamespace(64, 4096), max_transfer_log2=1)
    length = blocks * 4096
    source = [(0x100000 + PAGE * page, PAGE) for page in order[: blocks + 1]]
    source = [(source[0][0] + offset, PAGE - offset), *source[1:]]
    total = sum(size for _, size in source)
    source[-1] = (source[-1][0], source[-1][1] - (total - length))
    source = [extent for extent in source if extent[1]]
    data = bytes(n % 251 for n in range(length))
    position = 0
    for address, size in source:
        memory.write(address, data[position : position + size])
        position += size
    assert driver.write(lba, blocks, source) == 0
    assert sum(done.bytes_written for done in driver.served) == length
    assert driver.read(lba, blocks, [(0x300000, length)]) == 0
    assert sum(done.bytes_read for done in driver.served) == length
    assert len(driver.served) == (blocks + 1) // 2
    assert memory.read(0x300000, length) == data


def test_hundreds_of_commands_wrap_both_queues(host_memory):
    driver = started(host_memory, NvmeNamespace(1024))
    for number in range(300):
        host_memory.write(0x100000, number.to_bytes(512, "little"))
        assert driver.write(number, 1, [(0x100000, 512)]) == 0
    assert driver.flush() == 0
    assert driver.read(0, 300, [(0x200000, 300 * 512)]) == 0
    assert [host_memory.bytes[0x200000 + 512 * n] for n in range(300)] == [n & 0xFF for n in range(300)]


def test_the_disks_status_is_the_answer(host_memory):
    driver = started(host_memory, NvmeNamespace(8))
    assert driver.read(8, 1, [(0x100000, 512)]) == Status.LBA_OUT_OF_RANGE
    assert driver.read(1 << 64, 1, [(0x100000, 512)]) == Status.LBA_OUT_OF_RANGE
    assert driver.read(0, 1, [(0x100002, 512)]) == Status.PRP_OFFSET_INVALID
    assert driver.write(0, 1, [(1 << 60, 512)]) == Status.DATA_TRANSFER_ERROR


@pytest.mark.parametrize("extents", [[], [(0x100000, 511)], [(0x100000, 100), (0x101000, 412)], [(0x100000, 1024)]])
def test_extents_of_the_wrong_shape_are_our_callers_error(host_memory, extents):
    driver = started(host_memory, NvmeNamespace(8))
    with pytest.raises(NvmeDriverError, match="extents"):
        driver.read(0, 1, extents)


def test_a_dead_controller_is_told_not_waited_for_and_starts_again_with_its_media(host_memory):
    driver = started(host_memory, NvmeNamespace(8))
    host_memory.write(0x100000, b"\x77" * 512)
    assert driver.write(3, 1, [(0x100000, 512)]) == 0
    driver._controller.write_register(0x14, 0)
    with pytest.raises(NvmeDriverError, match="completion"):
        driver.flush()
    driver.start()
    assert driver.read(3, 1, [(0x101000, 512)]) == 0
    assert host_memory.read(0x101000, 512) == b"\x77" * 512


def test_queues_that_the_host_cannot_reach_are_its_own_fault(host_memory):
    driver = started(host_memory, NvmeNamespace(8))
    host_memory.refused.add(BASE // PAGE + 2)
    with pytest.raises(DmaFault):
        driver.flush()


def test_misuse_is_named(host_memory):
    controller = NvmeController(host_memory, NvmeNamespace(8))
    with pytest.raises(NvmeDriverError, match="base"):
        NvmeDriver(controller, host_memory, 8)
    with pytest.raises(NvmeDriverError, match=r"start\(\)"):
        NvmeDriver(controller, host_memory, BASE).flush()
