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
    before = job.memory.image()
    job.memory.blocks = {lba: data[:-1] + bytes([data[-1] ^ 1]) for lba, data in job.memory.blocks.items()}
    job.step()
    assert job.shutdown == Shutdown(1)
    after = job.memory.image()
    assert {at: data for at, data in after.items() if at[0]} == {at: data for at, data in before.items() if at[0]}


def test_two_sources_swapped_on_the_disk_are_noticed(job) -> None:
    blocks = job.memory.blocks
    blocks[6], blocks[8] = blocks[8], blocks[6]
    job.step()
    assert job.shutdown == Shutdown(1)


def test_a_disk_that_reports_an_error_ends_the_job_with_code_2(job) -> None:
    job.memory.disk_status = 0x281
    job.step()
    assert job.shutdown == Shutdown(2)


def test_sources_never_enter_private_memory_by_dma(job) -> None:
    assert all(not private for private, _ in job.memory.chunks)
    assert all(len(block) == BLOCK_BYTES for block in job.memory.blocks.values())
