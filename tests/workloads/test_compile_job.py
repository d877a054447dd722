"""The compile-like job: what comes from the host's side is compared before it is used."""

import pytest

from node.operations import BLOCK_BYTES, Shutdown
from workloads.compile_job import COMPILE_RIP

PARAMETERS = {"sources": 3, "source_blocks": 2, "object_bytes": 4096, "objects": 4}


@pytest.fixture
def job(machine):
    one = machine("compile-job", **PARAMETERS)
    while one.registers.rip != COMPILE_RIP:
        one.step()
    return one


def test_a_job_of_n_units_ends_with_code_0(machine) -> None:
    one = machine("compile-job", **PARAMETERS, units=7).run()
    assert one.shutdown == Shutdown(0)
    assert one.registers.r13 == 7


def test_each_vcpu_keeps_its_sources_in_its_own_part_of_the_disk(job) -> None:
    assert sorted(job.memory.blocks) == list(range(6, 12))  # vCPU 1: after the 3 x 2 blocks of vCPU 0


def test_a_source_changed_on_the_disk_is_noticed_before_it_is_compiled(job) -> None:
    objects = range(0x0240_0000 // 4096, 0x0240_0000 // 4096 + PARAMETERS["objects"])
    before = job.memory.image()
    job.memory.blocks = {lba: data[:-1] + bytes([data[-1] ^ 1]) for lba, data in job.memory.blocks.items()}
    job.step()
    assert job.shutdown == Shutdown(1)
    after = job.memory.image()
    assert [after.get((True, at)) for at in objects] == [before.get((True, at)) for at in objects]


def test_two_sources_swapped_on_the_disk_are_noticed(job) -> None:
    blocks = job.memory.blocks
    blocks[6], blocks[8] = blocks[8], blocks[6]
    job.step()
    assert job.shutdown == Shutdown(1)


def test_a_disk_that_reports_an_error_ends_the_job_with_code_2(job) -> None:
    job.memory.disk_status = 0x281
    job.step()
    assert job.shutdown == Shutdown(2)


SOURCE_BYTES = 2 * BLOCK_BYTES


def test_where_devices_reach_only_the_pool_each_source_is_copied_once_a_way(machine) -> None:
    one = machine("compile-job", **PARAMETERS, units=7).run()
    assert one.memory.copied == (3 + 7) * SOURCE_BYTES  # each written once, one read a unit
    # Slots are given back: the book is as it was when it was opened, but for slots that are not there.
    assert one.memory.book[:32] == bytes(32)


def test_where_devices_reach_all_memory_nothing_is_copied_and_the_work_is_the_same(machine) -> None:
    bounced, direct = (machine("compile-job", bounces=way, **PARAMETERS, units=7).run() for way in (True, False))
    assert direct.shutdown == Shutdown(0)
    assert (direct.memory.copied, direct.memory.blocks) == (0, bounced.memory.blocks)
    assert not [place for place in direct.memory.chunks if not place[0]]  # the pool was left alone
    private = [{at: data for at, data in one.memory.image().items() if at[0]} for one in (bounced, direct)]
    assert private[0] == private[1]
