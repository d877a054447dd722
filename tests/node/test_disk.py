"""A VM's disk, and what hostile requests to it can do: get a status, nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_guests import GENERATIONS, MIB, look, make_host, run, start

from node import operations as op
from node.disk import DISK_BLOCKS
from node.generation import Generation
from tio.nvme_driver import DRIVER_MEMORY_BYTES

DATA = bytes(range(256)) * 32


def machine(generation):
    host = make_host()
    guest = start(host, "vm", generation)
    run(host)
    return host, guest, guest.spec.memory.placement("vm", 0, 0)


def do(host, *batch):
    return host.board.execute_guest(host.board.vmcb("vm", 0), batch)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_blocks_come_back_as_they_were_written(generation):
    host, _, place = machine(generation)
    gpa = place.shared_gpa
    answers = do(
        host,
        op.Write(gpa, DATA, private=False),
        op.BlockWrite(77, 2, gpa),
        op.BlockRead(77, 2, gpa + 8192),
        op.Read(gpa + 8192, 8192, private=False),
    )
    assert answers == (None, 0, 0, DATA)
    assert do(host, op.BlockRead(79, 1, gpa), op.Read(gpa, 4096, private=False)) == (0, bytes(4096))


MACHINES = {generation: machine(generation) for generation in GENERATIONS}
ADDRESSES = st.one_of(
    st.integers(-(1 << 70), 1 << 70), st.sampled_from([-1, 0, 1, 63 * MIB, 64 * MIB - 4096, 1 << 45, (1 << 64) - 4096])
)


@pytest.mark.parametrize("generation", GENERATIONS)
@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from([op.BlockRead, op.BlockWrite]),
    lba=st.one_of(st.integers(-5, DISK_BLOCKS + 5), st.integers(-(1 << 70), 1 << 70)),
    blocks=st.one_of(st.integers(-3, 3), st.sampled_from([65536, 65537, 1 << 40])),
    gpa=ADDRESSES,
)
def test_any_request_gets_a_status_and_a_good_one_works_after_it(generation, kind, lba, blocks, gpa):
    host, _, place = MACHINES[generation]
    (status,) = do(host, kind(lba, blocks, gpa))
    assert isinstance(status, int)
    assert 0 <= status < 1 << 15
    good = place.shared_gpa + 65536
    assert do(host, op.Write(good, DATA, private=False), op.BlockWrite(5000, 2, good), op.BlockRead(5000, 2, good)) == (
        None, 0, 0,
    )  # fmt: skip
    assert look(host, MACHINES[generation][1], good, len(DATA), private=False) == DATA


BAD = [
    (0, op.MOST_BLOCKS + 1, 0), (0, 1, -4096), (0, 1, 1 << 45), (0, 1, 1 << 80), (0, 0, 0), (-1, 1, 0),
    (DISK_BLOCKS, 1, 0), (1 << 70, 1, 0),
]  # fmt: skip


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize(("lba", "blocks", "gpa"), BAD)
def test_a_bad_request_moves_nothing(generation, lba, blocks, gpa):
    host, guest, place = machine(generation)
    base = place.base_gpa
    do(host, op.Write(base, DATA))
    assert do(host, op.BlockRead(lba, blocks, gpa or place.shared_gpa))[0] != 0
    assert look(host, guest, base, len(DATA)) == DATA
    assert look(host, guest, place.shared_gpa, 8192, private=False) == bytes(8192)


def test_a_disk_pointed_at_private_memory_is_stopped_by_the_rmp():
    host, guest, place = machine(Generation.SEV_SNP)
    do(host, op.Write(place.base_gpa, DATA))
    assert do(host, op.BlockRead(0, 1, place.base_gpa))[0] != 0
    assert look(host, guest, place.base_gpa, len(DATA)) == DATA


def test_without_an_rmp_the_device_sees_ciphertext_and_its_store_corrupts():
    host, guest, place = machine(Generation.SEV)
    do(host, op.Write(place.base_gpa, DATA))
    assert do(host, op.BlockWrite(3, 1, place.base_gpa), op.BlockRead(3, 1, place.shared_gpa)) == (0, 0)
    assert look(host, guest, place.shared_gpa, 4096, private=False) != DATA[:4096]
    assert do(host, op.BlockRead(9, 1, place.base_gpa)) == (0,)
    assert look(host, guest, place.base_gpa, 4096) not in (DATA[:4096], bytes(4096))


def test_a_disk_whose_queues_the_guest_took_back_fails_and_works_again_when_they_are_shared():
    host, guest, place = machine(Generation.SEV_SNP)
    pool = guest.spec.memory.shared
    assert do(host, op.BlockRead(0, 1, place.shared_gpa)) == (0,)
    assert do(host, op.PageStateChange(pool.gpa, DRIVER_MEMORY_BYTES, shared=False))[0] == 0
    assert do(host, op.BlockRead(0, 1, place.shared_gpa))[0] != 0
    assert do(host, op.PageStateChange(pool.gpa, DRIVER_MEMORY_BYTES, shared=True))[0] == 0
    assert do(host, op.BlockRead(0, 1, place.shared_gpa)) == (0,)


def test_disks_keep_to_their_vm():
    host, guest, place = machine(Generation.PLAIN)
    other = start(host, "other", Generation.PLAIN)
    do(host, op.Write(place.shared_gpa, DATA, private=False), op.BlockWrite(0, 1, place.shared_gpa))
    vmcb = host.board.vmcb("other", 0)
    assert host.board.execute_guest(vmcb, (op.BlockRead(0, 1, place.shared_gpa),)) == (0,)
    assert look(host, other, place.shared_gpa, 4096, private=False) == bytes(4096)
    assert guest.spec.name == "vm"
