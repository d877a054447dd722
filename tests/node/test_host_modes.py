"""A host that encrypts its own memory: what DRAM holds, what software sees, and that nothing else changes."""

import pytest
from toy_guests import GENERATIONS, look, make_host, run, spa, start

from node import operations as op
from node.board import Board
from node.counter_random import CounterRandom
from node.generation import Generation
from node.guest import GuestState
from node.memory_controller import HOST_KEY
from node.platform import HostMode, Platform
from node.product import PRODUCTS

DATA = bytes(range(256)) * 32
TSME = Platform(mode=HostMode.TSME)


def machine(generation, platform=TSME, **settings):
    host = make_host(platform=platform, **settings)
    guest = start(host, "vm", generation)
    run(host)
    return host, guest, guest.spec.memory.placement("vm", 0, 0)


def by_guest(host, *batch):
    return host.board.execute_guest(host.board.vmcb("vm", 0), batch)


@pytest.mark.parametrize("mode", HostMode)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_guest_lives_its_whole_life_on_a_host_of_any_mode(generation, mode):
    host, guest, place = machine(generation, Platform(mode=mode))
    assert guest.launch_digest == machine(generation, Platform())[1].launch_digest
    shared = place.shared_gpa
    assert by_guest(
        host,
        op.Write(place.base_gpa, DATA),
        op.Write(shared, DATA, private=False),
        op.BlockWrite(77, 2, shared),
        op.BlockRead(77, 2, shared + 8192),
        op.Read(shared + 8192, 8192, private=False),
    ) == (None, None, 0, 0, DATA)
    host.pause("vm")
    run(host)
    host.resume("vm")
    run(host)
    assert look(host, guest, place.base_gpa, len(DATA)) == DATA
    (seen,) = host.board.execute_host((op.HostRead(spa(host, guest, shared), len(DATA)),))
    assert seen == DATA
    host.destroy("vm")
    run(host)
    assert guest.state is GuestState.DESTROYED
    assert host.hypervisor.frames.used_bytes == 4096


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_transparent_host_keeps_nothing_in_the_clear_in_dram(generation):
    host, guest, place = machine(generation)
    secret = b"not for the DIMM" * 16
    by_guest(host, op.Write(place.base_gpa, secret), op.Write(place.shared_gpa, secret, private=False))
    for gpa in (place.base_gpa, place.shared_gpa):
        assert secret[:16] not in host.board.dram.read(spa(host, guest, gpa), len(secret))
    (area,) = guest.vcpus
    assert host.board.dram.read(area.save_area_spa, 64) != host.board.load_save_area(host.board.vmcb("vm", 0))[:64]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_memory_of_a_transparent_host_that_nobody_wrote_reads_as_zeros_to_whom_it_belongs(generation):
    host, guest, place = machine(generation)
    assert look(host, guest, place.shared_gpa + 65536, 8192, private=False) == bytes(8192)
    private = look(host, guest, place.base_gpa + 65536, 8192)
    assert (private == bytes(8192)) is (generation is Generation.PLAIN)
    assert host.board.execute_host((op.HostClear(1 << 31, 4096), op.HostRead(1 << 31, 16))) == (None, bytes(16))
    assert host.board.dram.read(1 << 31, 16) != bytes(16)




def test_each_boot_of_each_host_has_a_host_key_of_its_own():
    def dram(name, seed, mode=HostMode.TSME):
        board = Board(name, PRODUCTS["Rome"], 1 << 30, 100, CounterRandom(seed), Platform(mode=mode))
        board.controller.write(0x10_0000, DATA, 0 if mode is HostMode.TSME else HOST_KEY)
        return board.dram.read(0x10_0000, 64)

    assert dram("a", 1) == dram("a", 1) == dram("a", 1, HostMode.SME)
    assert len({dram("a", 1), dram("a", 2), dram("b", 1)}) == 3
