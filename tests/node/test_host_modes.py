"""A host that encrypts its own memory: what DRAM holds, what software sees, and that nothing else changes."""

import pytest
from toy_guests import COSTS, GENERATIONS, look, make_host, run, spa, start

from node import operations as op
from node.board import Board
from node.counter_random import CounterRandom
from node.generation import Generation
from node.guest import GuestState
from node.host_instructions import VMEXIT_INVALID
from node.host_kind import HostKind
from node.memory_controller import HOST_KEY
from node.phase_cost import GenerationCost
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


@pytest.mark.parametrize(
    ("generation", "mode"),
    [*((one, mode) for mode in HostMode for one in GENERATIONS), (Generation.SME, HostMode.SME)],
)
@pytest.mark.parametrize("caches", [False, True])
def test_a_guest_lives_its_whole_life_on_a_host_of_any_mode(generation, mode, caches):
    host, guest, place = machine(generation, Platform(mode=mode, caches=caches))
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
    c_bit = generation is Generation.SME
    assert host.board.execute_host((op.HostRead(spa(host, guest, shared), len(DATA), c_bit),)) == (DATA,)
    host.destroy("vm")
    run(host)
    assert guest.state is GuestState.DESTROYED
    assert host.hypervisor.frames.used_bytes == 4096


@pytest.mark.parametrize(
    ("product", "cipher"), [(product.name, cipher) for product in PRODUCTS.values() for cipher in product.ciphers]
)
@pytest.mark.parametrize("mode", [HostMode.NONE, HostMode.TSME])
def test_guests_live_under_every_cipher_that_a_product_offers(product, cipher, mode):
    platform = Platform(mode=mode, memory_cipher=cipher)
    for generation in set(GENERATIONS) & PRODUCTS[product].generations:
        host, guest, place = machine(generation, platform, product=product, min_sev_asid=9)
        by_guest(host, op.Write(place.base_gpa, DATA), op.Write(place.shared_gpa, DATA, private=False))
        assert look(host, guest, place.base_gpa, len(DATA)) == DATA
        assert look(host, guest, place.shared_gpa, len(DATA), private=False) == DATA
        host.destroy("vm")
        run(host)
        assert host.hypervisor.frames.used_bytes == 4096


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_transparent_host_keeps_nothing_in_the_clear_in_dram(generation):
    host, guest, place = machine(generation)
    secret = b"not for the DIMM" * 16
    by_guest(host, op.Write(place.base_gpa, secret), op.Write(place.shared_gpa, secret, private=False))
    for gpa in (place.base_gpa, place.shared_gpa):
        assert secret[:16] not in host.board.dram.read(spa(host, guest, gpa), len(secret))
    (area,) = guest.vcpus
    assert host.board.dram.read(area.save_area_spa, 64) != host.board.save_areas.load(host.board.vmcb("vm", 0))[:64]


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


def test_the_rmp_of_a_transparent_host_is_ciphertext_in_dram_and_says_what_it_says_elsewhere():
    host, guest, place = machine(Generation.SEV_SNP)
    plain, other, _ = machine(Generation.SEV_SNP, Platform())
    at = spa(host, guest, place.base_gpa)
    assert at == spa(plain, other, place.base_gpa)
    assert host.board.rmp.entry(at) == plain.board.rmp.entry(at)
    raw = [one.board.dram.read(one.board.rmp.layout.entry_spa(at // 4096), 16) for one in (host, plain)]
    assert raw[0] != raw[1]
    (seen,) = host.board.execute_host((op.HostRead(host.board.rmp.layout.entry_spa(at // 4096), 16),))
    assert seen == raw[1]


# Generation SME: a plain VM whose memory the host maps with C=1.

SME = Platform(mode=HostMode.SME)


def test_an_sme_guest_reads_and_writes_as_a_plain_one_and_dram_holds_ciphertext_of_the_hosts_key():
    host, guest, place = machine(Generation.SME, SME)
    secret = b"not for the DIMM" * 300
    for gpa, private in ((place.base_gpa, True), (place.shared_gpa, False)):
        assert look(host, guest, gpa, 4096, private=private) == bytes(4096)
        assert by_guest(host, op.Write(gpa + 100, secret, private)) == (None,)
        # The C-bit of a plain guest's own tables is no bit of its.
        assert look(host, guest, gpa + 100, len(secret), private=not private) == secret
        at = spa(host, guest, gpa) + 100
        assert host.board.execute_host((op.HostRead(at, len(secret), encrypted=True),)) == (secret,)
        (seen,) = host.board.execute_host((op.HostRead(at, len(secret)),))
        assert seen == host.board.dram.read(at, len(secret))
        assert secret[:16] not in seen
    vcpu = guest.vcpus[0]
    area = host.board.save_areas.load(host.board.vmcb("vm", 0))
    assert host.board.execute_host((op.HostRead(vcpu.save_area_spa, len(area), encrypted=True),)) == (area,)
    assert host.board.dram.read(vcpu.save_area_spa, len(area)) != area


def test_without_memory_encryption_an_sme_guest_is_refused_and_keeps_nothing():
    host = make_host()
    guest = start(host, "vm", Generation.SME)
    assert guest.state is GuestState.REFUSED
    assert guest.reason == "generation: SME needs a host whose own memory encryption is on"
    assert host.hypervisor.frames.used_bytes == 4096
    assert host.board.nested == {}


def test_a_c_bit_without_memory_encryption_faults_whoever_sets_it():
    host, guest, place = machine(Generation.PLAIN, Platform())
    at = spa(host, guest, place.base_gpa)
    for one in (
        op.HostRead(at, 16, encrypted=True),
        op.HostWrite(at, bytes(16), encrypted=True),
        op.HostWrite(at, bytes(4096), encrypted=True),
        op.HostClear(at, 4096, encrypted=True),
        op.HostReadWritten(at, 4096, encrypted=True),
    ):
        by_guest(host, op.Write(place.base_gpa, DATA))
        assert host.board.execute_host((one,)) == (op.Fault(op.FaultKind.MACHINE_CHECK, at),)
        assert look(host, guest, place.base_gpa, len(DATA)) == DATA
    host.board.execute_host((op.NestedMap("vm", 0x4000_0000, at, 4096, large=False, encrypted=True),))
    assert by_guest(host, op.Read(0x4000_0000, 16)) == (op.Fault(op.FaultKind.MACHINE_CHECK, 0x4000_0000),)
    assert by_guest(host, op.BlockRead(0, 1, 0x4000_0000))[0] != 0
    host.board.execute_host((op.VmcbWrite("vm", 0, 0, Generation.SME.name, at),))
    assert host.board.execute_host((op.VmRun("vm", 0),)) == (VMEXIT_INVALID,)


def test_a_sev_guests_shared_access_goes_by_the_nested_entrys_c_bit_and_a_private_one_does_not():
    host, guest, place = machine(Generation.SEV, SME)
    gpa, at = place.shared_gpa, spa(host, guest, place.shared_gpa)
    host.board.execute_host((op.NestedMap("vm", gpa, at, 4096, large=False, encrypted=True),))
    assert by_guest(host, op.Write(gpa, DATA[:8192], private=False)) == (None,)
    cipher, plain = host.board.execute_host((op.HostRead(at, 4096), op.HostRead(at + 4096, 4096)))
    assert (cipher != DATA[:4096], plain) == (True, DATA[4096:8192])
    assert host.board.execute_host((op.HostRead(at, 4096, encrypted=True),)) == (DATA[:4096],)
    assert look(host, guest, gpa + 4000, 200, private=False) == DATA[4000:4200]
    by_guest(host, op.Write(gpa, DATA[:4096]))
    assert look(host, guest, gpa, 4096) == DATA[:4096]
    assert host.board.execute_host((op.HostRead(at, 64, encrypted=True),)) != (DATA[:64],)


def test_the_cost_of_encryption_is_the_hosts_mode_and_the_guests_generation():
    def costs(generation, mode):
        own = GenerationCost.of(generation, COSTS, HostKind(1e9, mode))
        return own.encryption_ns > 0, own.shared_encryption_ns > 0, own.bandwidth_share < 1

    for mode in (HostMode.NONE, HostMode.SME):
        assert costs(Generation.PLAIN, mode) == (False, False, False)
        assert costs(Generation.SEV_SNP, mode) == (True, False, True)
    assert costs(Generation.SME, HostMode.SME) == (True, True, True)
    for generation in GENERATIONS:
        assert costs(generation, HostMode.TSME) == (True, True, True)
