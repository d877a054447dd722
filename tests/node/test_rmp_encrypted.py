"""Where the host's key covers the RMP, its bytes in DRAM are that key's ciphertext of what it says."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from rmp_tables import GUEST_SPA, SEGMENT_PAGES, flat_rmp, segmented_rmp, snp_board

from node import operations as op
from node.dram import Dram, Unanswered, Words
from node.memory_controller import HOST_KEY
from node.physical_port import PhysicalPort
from node.platform import HostMode, Platform
from node.rmp import GuestCore, NotValidated, ReverseMapTable, RmpCode, RmpFault
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

MIB = 1 << 20
OWNER = GuestCore(1)
FACTOR = 0x9E37_79B9_7F4A_7C15


class Pad:
    """Each word plus its own address, and then some: shows which address was used for what."""

    def encrypt(self, plain: Words, spa: int, out: Words) -> None:
        out[:] = plain + self._pad(spa, len(plain))

    def decrypt(self, cipher: Words, spa: int, out: Words) -> None:
        out[:] = cipher - self._pad(spa, len(cipher))

    def _pad(self, spa: int, words: int) -> Words:
        assert not spa % 16
        assert not words % 2
        addresses: Words = np.arange(words, dtype=np.uint64) * np.uint64(8) + np.uint64(spa)
        return addresses * np.uint64(FACTOR)


def opened(dram: Dram, spa: int, length: int) -> bytes:
    """What DRAM holds, taken apart word by word."""
    raw = dram.read(spa, length)
    words = (int.from_bytes(raw[at : at + 8], "little") - (spa + at) * FACTOR for at in range(0, length, 8))
    return b"".join((word % (1 << 64)).to_bytes(8, "little") for word in words)


def lived(rmp: ReverseMapTable, dram: Dram, base: int, *, seen: bool) -> list[object]:
    """Some of everything, from ``base`` on; what became of it."""
    answers: list[object] = []
    rmp.initialise()
    if seen:
        dram.read(rmp.layout.entry_spa(base // PAGE_BYTES), 4 * 8192)
        dram.read(rmp.layout.base, PAGE_BYTES)
    answers.append(rmp.rmpupdate(base, 2 * LARGE_PAGE_BYTES, RmpEntry(assigned=True, large=True, asid=1)))
    answers.append(rmp.pvalidate(base, 0, OWNER, 2 * LARGE_PAGE_BYTES, large=True, validate=True))
    answers.append(rmp.psmash(base))
    third, fourth = base + 2 * LARGE_PAGE_BYTES, base + 3 * LARGE_PAGE_BYTES
    answers.append(rmp.rmpupdate(third, 100 * PAGE_BYTES, RmpEntry(assigned=True, gpa=8 * MIB, asid=2)))
    answers.append(rmp.rmpupdate(base + 7 * PAGE_BYTES, PAGE_BYTES, RmpEntry()))
    answers.append(rmp.rmpadjust(base, 0, OWNER, PAGE_BYTES, False, 1, 3, vmsa=False))
    rmp.set_entry(fourth, RmpEntry(assigned=True, immutable=True))
    for length in (LARGE_PAGE_BYTES, 4 * LARGE_PAGE_BYTES):
        codes = rmp.rmpupdate_each(base, length, RmpEntry(assigned=True, asid=1))
        answers.append(codes if isinstance(codes, RmpCode) else codes.tolist())
    codes = rmp.pvalidate_each(base, 0, OWNER, 4 * LARGE_PAGE_BYTES, large=False, validate=True)
    answers.append(codes if isinstance(codes, RmpCode) else codes.tolist())
    answers += [rmp.entry(base + page * PAGE_BYTES) for page in (0, 1, 7, 511, 512, 1023, 1024, 1123, 1124, 1536)]
    answers += [rmp.pages_of_asid(asid) for asid in range(3)]
    return answers


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("kind", ["flat", "segmented"])
def test_dram_holds_the_ciphertext_of_what_a_plain_table_would_hold(kind: str, seen: bool) -> None:
    tables = [
        flat_rmp(64 * MIB, cipher=cipher) if kind == "flat" else segmented_rmp(cipher=cipher)
        for cipher in (None, Pad())
    ]
    base = 0 if kind == "flat" else SEGMENT_PAGES * PAGE_BYTES
    (plain, plain_dram), (covered, covered_dram) = tables
    assert lived(covered, covered_dram, base, seen=seen) == lived(plain, plain_dram, base, seen=seen)
    entries = plain.layout.entry_spa(base // PAGE_BYTES)
    for spa, length in ((entries, 5 * 8192), (plain.layout.base, plain.layout.header_bytes)):
        bytes_of_plain = plain_dram.read(spa, length)
        assert covered_dram.read(spa, length) != bytes_of_plain
        assert any(bytes_of_plain)
        if spa == entries:
            assert opened(covered_dram, spa, length) == bytes_of_plain
    counters = plain.layout.base
    assert opened(covered_dram, counters, 64) == plain_dram.read(counters, 64)
    if kind == "segmented":
        table = plain.layout.base + (16 << 10)
        assert opened(covered_dram, table, 4096) == plain_dram.read(table, 4096) == plain.layout.segment_table()


def test_a_poke_garbles_an_entry_and_an_old_ciphertext_brings_the_old_owner_back() -> None:
    rmp, dram = flat_rmp(4 * MIB, cipher=Pad())
    rmp.initialise()
    own = RmpEntry(assigned=True, asid=1)
    at = rmp.layout.entry_spa(0)
    rmp.rmpupdate(0, PAGE_BYTES, own)
    rmp.pvalidate(0, 0, OWNER, PAGE_BYTES, large=False, validate=True)
    old = dram.read(at, 16)
    rmp.check_guest_private(0, 0, 1, 8)
    rmp.rmpupdate(0, PAGE_BYTES, RmpEntry())
    rmp.check_host_write(0, 8)
    dram.write(at, old)
    rmp.check_guest_private(0, 0, 1, 8)
    # Zeros, which would free a page in a plain table, are just another ciphertext.
    dram.write(at, bytes(16))
    assert rmp.entry(0) != RmpEntry()
    with pytest.raises((RmpFault, NotValidated)):
        rmp.check_guest_private(0, 0, 1, 8)


def test_lost_writes_are_lost_under_the_key_too() -> None:
    rmp, dram = flat_rmp(4 * MIB, cipher=Pad())
    rmp.initialise()
    at = rmp.layout.entry_spa(0)
    dram.drop(at, PAGE_BYTES, Unanswered.ZEROS)
    before = rmp.entry(0)
    rmp.rmpupdate(0, PAGE_BYTES, RmpEntry(assigned=True, asid=1))
    assert rmp.entry(0) == before
    dram.straighten(at, PAGE_BYTES)
    assert rmp.entry(0) == RmpEntry()


HOSTS = {
    "TSME": (Platform(mode=HostMode.TSME), {}),
    "SME, by the switch": (Platform(mode=HostMode.SME), {"under_host_key": True}),
}


@pytest.mark.parametrize("product", ["Milan", "Turin"])
@pytest.mark.parametrize("name", HOSTS)
def test_the_host_s_key_covers_the_table_of_a_board(name: str, product: str) -> None:
    platform, switches = HOSTS[name]
    board = snp_board(product, platform=platform, **switches)
    entry = RmpEntry(assigned=True, asid=1)
    assert board.execute_host((op.RmpUpdate(GUEST_SPA, LARGE_PAGE_BYTES, entry),)) == (0,)
    accept = (op.PValidate(0, LARGE_PAGE_BYTES, large=False), op.Write(0x5000, b"private"), op.Read(0x5000, 7))
    guest = board.execute_guest(board.vmcb("one", 0), accept)
    assert guest == (op.PValidateResult(0, unchanged=False), None, b"private")
    assert board.rmp is not None
    at = board.rmp.layout.entry_spa(GUEST_SPA // PAGE_BYTES + 5)
    own = struct.pack("<2Q", 1 | 0x5000 | 1 << 51 | 1 << 62, 0xF)
    port = PhysicalPort(board.dram)
    assert port.dump(at, 16) != own
    assert board.controller.read(at, 16, 0 if platform.mode is HostMode.TSME else HOST_KEY) == own
    seen = board.execute_host((op.HostRead(at, 16),))[0]
    assert (seen == own) is (platform.mode is HostMode.TSME)
    # Old ciphertext put back by the DIMM's holder is an old entry; made-up bytes are none that he chose.
    old = port.dump(at, 16)
    assert board.execute_host((op.RmpUpdate(GUEST_SPA + 5 * PAGE_BYTES, PAGE_BYTES, RmpEntry()),)) == (0,)
    assert isinstance(board.execute_guest(board.vmcb("one", 0), (op.Read(0x5000, 7),))[0], op.Fault)
    port.poke(at, own)
    assert isinstance(board.execute_guest(board.vmcb("one", 0), (op.Read(0x5000, 7),))[0], op.Fault)
    port.poke(at, old)
    assert board.execute_guest(board.vmcb("one", 0), (op.Read(0x5000, 7),)) == (b"private",)


def test_a_host_without_a_key_or_the_switch_keeps_its_table_in_the_clear() -> None:
    for platform, switches in ((Platform(), {"under_host_key": True}), (Platform(mode=HostMode.SME), {})):
        board = snp_board(platform=platform, **switches)
        assert board.execute_host((op.RmpUpdate(GUEST_SPA, PAGE_BYTES, RmpEntry(assigned=True, asid=1)),)) == (0,)
        assert board.rmp is not None
        at = board.rmp.layout.entry_spa(GUEST_SPA // PAGE_BYTES)
        assert PhysicalPort(board.dram).dump(at, 8) == struct.pack("<Q", 1 | 1 << 51)
