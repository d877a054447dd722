"""Who sees what of a guest's memory: DIMM, host with C=0 and C=1, device, other tenant, by generation.

Expected is what the sheet of memory encryption says, section 7; ciphertext is told from
garbage by an AES computation of the test's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count

import pytest
from cached_boards import base, by_guest, by_host, drive, shared
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from toy_guests import SECOND, final_state, make_host, run, spa, start

from node import operations as op
from node.counter_random import CounterRandom
from node.generation import Generation
from node.guest import Guest, GuestState
from node.host import Host
from node.iommu_driver import IommuDriver
from node.physical_port import PhysicalPort
from node.platform import HostMode, Platform
from node.tweak_table import HIGHEST_BIT, LOWEST_BIT, TweakTable
from psp.system_bus import RmpEntry

SECRET = b"sixteen bytes.A." + b"sixteen bytes.B."
ONES = b"\xff" * 32
SEED, HOST = 7, "host"
"""Of ``make_host``."""
G, NONE, SME, TSME = Generation, Platform(), Platform(HostMode.SME), Platform(HostMode.TSME)
HIDING, SME_HIDING = Platform(max_snp_asid=40), Platform(HostMode.SME, max_snp_asid=40)


def tweak(at: int) -> bytes:
    random, out = CounterRandom(SEED).octets(HOST, "memory tweaks", 0, TweakTable.RANDOM_BYTES), 0
    for bit in range(LOWEST_BIT, HIGHEST_BIT + 1):
        if at >> bit & 1:
            first = (bit - LOWEST_BIT) * 16
            out ^= int.from_bytes(random[first : first + 16], "little")
    return out.to_bytes(16, "little")


def aes(key: bytes, at: int, data: bytes, *, encrypt: bool) -> bytes:
    """XEX, block by block."""
    out = b""
    for first in range(0, len(data), 16):
        mask = tweak(at + first)
        context = Cipher(algorithms.AES(key), modes.ECB())
        one = context.encryptor() if encrypt else context.decryptor()
        block = bytes(a ^ b for a, b in zip(data[first : first + 16], mask, strict=True))
        out += bytes(a ^ b for a, b in zip(one.update(block), mask, strict=True))
    return out


def key_of(host, guest) -> bytes:
    """The key that lies on the DIMM side of a guest's private memory; b"" for none."""
    firmware = host.board.psp
    for context in firmware.legacy.guests.values():
        if guest.asid and context.asid == guest.asid:
            return context.key
    pages = firmware.snp.guests.pages
    for context in map(pages.read, pages.spas):
        if guest.asid and context.asid == guest.asid:
            return context.memory_key[: host.board.controller.key_bytes]
    own = host_key(host)
    if guest.spec.generation is G.SME or host.board.platform.mode is HostMode.TSME:
        return own
    return b""


def host_key(host) -> bytes:
    return CounterRandom(SEED).octets(HOST, "host key", 0, 16)


SETTINGS = [
    (G.PLAIN, "Rome", NONE), (G.PLAIN, "Turin", NONE), (G.SME, "Milan", SME), (G.PLAIN, "Milan", TSME),
    (G.SEV, "Rome", NONE), (G.SEV, "Milan", SME), (G.SEV, "Genoa", TSME), (G.SEV_SNP, "Milan", NONE),
    (G.SEV_SNP, "Genoa", SME), (G.SEV_SNP, "Turin", HIDING), (G.SEV, "Turin", HIDING), (G.PLAIN, "Turin", HIDING),
    (G.SEV_SNP, "Turin", SME_HIDING),
]  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A guest that wrote its secret into a private and a shared page."""

    host: Host
    guest: Guest
    at: int
    """SPA of the private page."""
    hidden: bool
    """Whether cores are to find ones there."""

    @property
    def mode(self) -> HostMode:
        return self.host.board.platform.mode

    def stored(self) -> bytes:
        """What the DIMM must hold of the private page."""
        key = key_of(self.host, self.guest)
        return aes(key, self.at, SECRET, encrypt=True) if key else SECRET

    def under_host_key(self) -> bytes:
        """What the engine makes of it with the host's key."""
        return aes(host_key(self.host), self.at, self.stored(), encrypt=False)

    def without_c_bit(self) -> bytes:
        """What anybody reads without a C-bit where nothing is hidden."""
        return self.under_host_key() if self.mode is HostMode.TSME else self.stored()


@pytest.fixture(params=SETTINGS, ids=lambda one: f"{one[0].name} {one[1]} {one[2].mode} {one[2].max_snp_asid}")
def chosen(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["", "caches"])
def scene(chosen, request) -> Scene:
    generation, product, platform = chosen
    host = make_host(product=product, platform=replace(platform, caches=request.param))
    guest = start(host, "vm", generation)
    run(host)
    private, pool = base(guest), shared(guest)
    answers = by_guest(host, guest, op.Write(private, SECRET), op.Write(pool, SECRET, private=False))
    assert answers == (None, None)
    by_host(host, op.Wbinvd())
    return Scene(host, guest, spa(host, guest, private), generation is G.SEV_SNP and platform.max_snp_asid > 0)


def test_the_dimm_holds_ciphertext_of_private_memory_from_sme_on(scene):
    """Ciphertext hiding changes nothing for who has it in his hands."""
    dimm = PhysicalPort(scene.host.board.dram)
    assert dimm.dump(scene.at, 32) == scene.stored()
    assert (scene.stored() == SECRET) is (scene.guest.spec.generation is G.PLAIN and scene.mode is HostMode.NONE)


def test_the_dimm_holds_shared_memory_as_the_host_maps_it(scene):
    at = spa(scene.host, scene.guest, shared(scene.guest))
    encrypted = scene.mode is HostMode.TSME or scene.guest.spec.generation is G.SME
    expected = aes(host_key(scene.host), at, SECRET, encrypt=True) if encrypted else SECRET
    assert PhysicalPort(scene.host.board.dram).dump(at, 32) == expected
    c_bit = scene.mode is HostMode.SME and encrypted
    assert by_host(scene.host, op.HostRead(at, 32, encrypted=c_bit)) == (SECRET,)


def test_the_host_without_c_bit_reads_what_lies_there_and_ones_where_it_is_hidden(scene):
    seen = ONES if scene.hidden else scene.without_c_bit()
    assert by_host(scene.host, op.HostRead(scene.at, 32)) == (seen,)
    (runs,) = by_host(scene.host, op.HostReadWritten(scene.at // 4096 * 4096, 4096))
    ((first, data),) = runs.runs
    assert data[scene.at - first :][:32] == seen
    assert (seen == SECRET) is (scene.guest.spec.generation is G.PLAIN)


def test_the_host_with_c_bit_reads_through_its_own_key_where_it_has_one(scene):
    (seen,) = by_host(scene.host, op.HostRead(scene.at, 32, encrypted=True))
    if scene.mode is not HostMode.SME:
        # MemEncryptionModeEn is clear, under TSME alone too: an address bit, and nothing is that far up.
        (runs,) = by_host(scene.host, op.HostReadWritten(scene.at // 4096 * 4096, 4096, encrypted=True))
        assert (seen.kind, runs.kind) == (op.FaultKind.MACHINE_CHECK,) * 2
        return
    assert seen == (ONES if scene.hidden else scene.under_host_key())
    assert (seen == SECRET) is (scene.guest.spec.generation is G.SME)


def test_a_hosts_store_spoils_a_private_page_or_faults_on_the_rmp(scene):
    (answer,) = by_host(scene.host, op.HostWrite(scene.at, b"evil" * 4))
    (seen,) = by_guest(scene.host, scene.guest, op.Read(base(scene.guest), 32))
    if scene.guest.spec.generation is G.SEV_SNP:
        assert answer.kind is op.FaultKind.RMP_FAULT
        assert seen == SECRET
        return
    assert answer is None
    raw = b"evil" * 4
    if scene.mode is HostMode.TSME:
        raw = aes(host_key(scene.host), scene.at, raw, encrypt=True)
    key = key_of(scene.host, scene.guest)
    read = aes(key, scene.at, raw, encrypt=False) if key else raw
    if scene.host.board.platform.caches and not scene.host.spec.product.coherent_across_keys and key:
        # Its own line was written back and dropped before: the host's is dirty still, and memory is as it was.
        read = SECRET[:16]
    assert seen == read + SECRET[16:]


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("generation", [G.PLAIN, G.SEV, G.SEV_SNP])
def test_another_tenant_reads_garbage_of_its_own_key_ciphertext_or_nothing(scene, generation, private):
    host = scene.host
    if generation not in host.spec.product.generations:
        return
    other = start(host, "other", generation)
    run(host)
    gpa = base(other)
    by_host(host, op.NestedUnmap("other", gpa, 4096), op.NestedMap("other", gpa, scene.at // 4096 * 4096, 4096))
    (seen,) = by_guest(host, other, op.Read(gpa, 32, private))
    assigned = scene.guest.spec.generation is G.SEV_SNP
    if private and (generation is G.SEV_SNP or (generation is G.SEV and assigned)):
        assert seen.kind is op.FaultKind.RMP_FAULT
        return
    if generation is G.SEV and private:
        expected = aes(key_of(host, other), scene.at, scene.stored(), encrypt=False)
    else:
        expected = ONES if scene.hidden else scene.without_c_bit()
    assert seen == expected
    assert seen != SECRET or scene.guest.spec.generation is G.PLAIN


SLOT, REQUESTER, DOMAIN, IOVA = 3, 0x118, 7, 0x40_0000


def by_device(scene, c_bit: int) -> op.Answer:
    """What a device reads that the host has given the page, with this C-bit in the IOMMU's own entry."""
    frames = count(3 << 30, 4096)
    driver = IommuDriver(lambda: next(frames))
    page = scene.at // 4096 * 4096
    drive(scene.host.board, driver.attach(REQUESTER, DOMAIN, [(IOVA, page)], c_bit=c_bit))
    return by_host(scene.host, op.DeviceRead(SLOT, IOVA + scene.at - page, 32))[0]


def test_a_device_without_c_bit_reads_what_lies_there_and_nothing_of_an_snp_guest(scene):
    seen = by_device(scene, 0)
    if scene.guest.spec.generation is G.SEV_SNP:
        assert seen.kind is op.FaultKind.DMA_ABORTED
    else:
        assert seen == scene.without_c_bit()


def test_a_device_with_c_bit_reads_through_the_hosts_key_where_there_is_one(scene):
    seen = by_device(scene, 1 << scene.host.spec.product.c_bit)
    if scene.guest.spec.generation is G.SEV_SNP or scene.mode is not HostMode.SME:
        assert seen.kind is op.FaultKind.DMA_ABORTED
    else:
        assert seen == scene.under_host_key()
        assert (seen == SECRET) is (scene.guest.spec.generation is not G.SEV)


def test_a_value_that_comes_back_is_seen_to_come_back_unless_ciphertext_is_hidden(scene):
    """The dictionary and collision attacks on deterministic ciphertext (CVE-2021-46744)."""
    values, seen = [b"yes", b"no", b"no", b"yes", b"no"], []
    for value in values:
        by_guest(scene.host, scene.guest, op.Write(base(scene.guest), value.ljust(16)))
        by_host(scene.host, op.Wbinvd())
        seen += by_host(scene.host, op.HostRead(scene.at, 16))
    told = [values[seen.index(one)] for one in seen]
    assert told == ([values[0]] * 5 if scene.hidden else values)


# Somebody with the DIMMs in his hands.

GHOST = 1 << 30
"""An address that nobody uses."""


def test_cells_that_are_poked_are_to_the_guest_what_its_engine_makes_of_them(scene):
    PhysicalPort(scene.host.board.dram).poke(scene.at, b"anything at all.")
    key = key_of(scene.host, scene.guest)
    read = aes(key, scene.at, b"anything at all.", encrypt=False) if key else b"anything at all."
    assert by_guest(scene.host, scene.guest, op.Read(base(scene.guest), 32)) == (read + SECRET[16:],)


def test_an_alias_shows_what_lies_there_whatever_is_hidden_or_owned_and_takes_a_replay(scene):
    host, page = scene.host, scene.at // 4096 * 4096
    PhysicalPort(host.board.dram).alias(GHOST, 4096, page)
    ghost = GHOST + scene.at % 4096
    stored = scene.stored()
    seen = aes(host_key(host), ghost, stored, encrypt=False) if scene.mode is HostMode.TSME else stored
    assert by_host(host, op.HostRead(ghost, 32)) == (seen,)
    by_guest(host, scene.guest, op.Write(base(scene.guest), bytes(32)))
    by_host(host, op.Wbinvd())
    assert by_host(host, op.HostWrite(ghost, seen), op.Wbinvd()) == (None, None)
    assert by_guest(host, scene.guest, op.Read(base(scene.guest), 32)) == (SECRET,)


def test_a_dropped_route_loses_stores_and_answers_with_ones_that_the_engine_decrypts(scene):
    port, key = PhysicalPort(scene.host.board.dram), key_of(scene.host, scene.guest)
    page = scene.at // 4096 * 4096
    port.drop(page, 4096)
    nothing = aes(key, scene.at, ONES, encrypt=False) if key else ONES
    assert by_guest(scene.host, scene.guest, op.Write(base(scene.guest), bytes(32))) == (None,)
    by_host(scene.host, op.Wbinvd())
    assert by_guest(scene.host, scene.guest, op.Read(base(scene.guest), 32)) == (nothing,)
    by_host(scene.host, op.Wbinvd())
    port.restore(page, 4096)
    assert by_guest(scene.host, scene.guest, op.Read(base(scene.guest), 32)) == (SECRET,)


def test_hiding_ends_where_a_page_is_the_hosts_again():
    host = make_host(product="Turin", platform=HIDING)
    guest = start(host, "vm", G.SEV_SNP)
    run(host)
    gpa = base(guest)
    at = spa(host, guest, gpa)
    edge = at // 2097152 * 2097152
    by_guest(host, guest, op.Write(gpa, SECRET))
    assert by_host(host, op.HostRead(edge - 16 + 2097152, 32))[0][:16] == ONES[:16]
    by_guest(host, guest, op.PageStateChange(gpa, 4096, shared=True))
    (seen,) = by_host(host, op.HostRead(at, 4096 + 16))
    assert seen[:4096] == host.board.dram.read(at, 4096) != ONES[:16] * 256
    assert seen[4096:] == ONES[:16]


def test_hiding_goes_by_the_owner_in_the_rmp_up_to_the_last_asid_for_snp():
    host = make_host(product="Turin", platform=HIDING)
    page = 3 << 30
    owners = {0: False, 1: True, 40: True, 41: False, 98: False}
    for asid, hidden in owners.items():
        entry = RmpEntry(assigned=True, gpa=0x5000 if asid else 0, asid=asid)
        answers = by_host(host, op.HostWrite(page, SECRET), op.RmpUpdate(page, 4096, entry), op.HostRead(page, 32))
        assert answers == (None, 0, ONES if hidden else SECRET)
        page += 4096


def test_a_vm_lives_under_ciphertext_hiding_as_without():
    ends = []
    for platform in (NONE, HIDING):
        host = make_host(product="Turin", platform=platform)
        guest = start(host, "vm", G.SEV_SNP, "ledger", units=8)
        run(host, 20 * SECOND)
        ends.append((guest.launch_digest, final_state(host, guest, 64 << 10)))
    assert ends[0] == ends[1]


def test_snp_guests_have_the_asids_up_to_the_split_and_no_more():
    host = make_host(product="Turin", platform=Platform(max_snp_asid=2))
    guests = [start(host, f"vm{number}", G.SEV_SNP) for number in range(3)]
    assert [one.asid for one in guests[:2]] == [1, 2]
    assert guests[2].state is GuestState.REFUSED
    assert guests[2].reason == "ASID: all 2 of the host for SEV_SNP are in use"
