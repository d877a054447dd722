"""DRAM holds ciphertext, the cipher is the published one, and an address is part of it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from node.cipher_modes import CIPHER_DESIGNS
from node.dram import CHUNK_BYTES, Dram, MachineCheck
from node.memory_cipher import CipherMode
from node.memory_controller import HOST_KEY, MemoryController, NoHostKey, NoKey
from node.tweak_table import HIGHEST_BIT, LOWEST_BIT, TweakTable

KEY = bytes(range(16))
HOST = bytes(range(100, 116))
RANDOM = np.random.default_rng(7).bytes(TweakTable.RANDOM_BYTES)
OTHER_RANDOM = np.random.default_rng(8).bytes(TweakTable.RANDOM_BYTES)
GIB = 1 << 30


def machine(size: int = GIB, random: bytes = RANDOM) -> tuple[Dram, MemoryController]:
    dram = Dram(size)
    controller = MemoryController(dram, CIPHER_DESIGNS[CipherMode.AES_128_XEX].for_boot(lambda _: random))
    controller.install_key(1, KEY)
    controller.install_key(2, KEY[::-1])
    return dram, controller


def tweak(address: int, random: bytes = RANDOM) -> int:
    """T(p) from the random bytes alone: the XOR of a constant for each set address bit."""
    out = 0
    for bit in range(LOWEST_BIT, HIGHEST_BIT + 1):
        if address >> bit & 1:
            start = (bit - LOWEST_BIT) * 16
            out ^= int.from_bytes(random[start : start + 16], "little")
    return out


def block_by_block(plain: bytes, spa: int, key: bytes = KEY, random: bytes = RANDOM) -> bytes:
    """XEX one block at a time, with plain integers."""
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    out = b""
    for start in range(0, len(plain), 16):
        mask = tweak(spa + start, random)
        masked = int.from_bytes(plain[start : start + 16], "little") ^ mask
        middle = int.from_bytes(aes.update(masked.to_bytes(16, "little")), "little")
        out += (middle ^ mask).to_bytes(16, "little")
    return out


@pytest.mark.parametrize(
    ("spa", "length"),
    [
        (0, 16),
        (0x1230, 64),
        (0xFF0, 4096),
        (0x20_0000, 4096),
        (0x1F_F000, 0x3000),
        (0x11_0010, 300_000),
        (CHUNK_BYTES - 32, 64),
    ],
)
def test_dram_holds_what_an_independent_computation_gives(spa: int, length: int) -> None:
    dram, controller = machine()
    plain = np.random.default_rng(spa).bytes(length // 16 * 16)
    controller.write(spa, plain, 1)
    raw = dram.read(spa, len(plain))
    for start in {
        0,
        16 * (len(plain) // 32),
        len(plain) - 16,
        *range(0, len(plain), 65_536),
        0xE000 % len(plain) // 16 * 16,
    }:
        assert raw[start : start + 16] == block_by_block(plain[start : start + 16], spa + start)
    assert controller.read(spa, len(plain), 1) == plain


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, (GIB >> 4) - 1), st.integers(1, 25_000), st.integers(0, 24_999)),
        min_size=1, max_size=8,
    )
)  # fmt: skip
def test_two_hosts_in_turn_get_their_own_tweaks_wherever_they_write(
    writes: list[tuple[bool, int, int, int]],
) -> None:
    """Bulk work of all hosts shares one array of tweaks, which moves from place to place and from host to host."""
    hosts = {False: (RANDOM, *machine()), True: (OTHER_RANDOM, *machine(random=OTHER_RANDOM))}
    plain = np.random.default_rng(9).bytes(25_000 * 16)
    for other, block, blocks, probe in writes:
        random, dram, controller = hosts[other]
        spa, data = block * 16, plain[: min(blocks, (GIB >> 4) - block) * 16]
        controller.write(spa, data, 1)
        for at in (0, probe * 16 % len(data), len(data) - 16):
            assert dram.read(spa + at, 16) == block_by_block(data[at : at + 16], spa + at, random=random)
        assert controller.read(spa, len(data), 1) == data


@settings(max_examples=46, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20_000), st.binary(min_size=1, max_size=9000)), min_size=1, max_size=6), st.data()
)
def test_any_writes_at_any_alignment_read_back_as_a_byte_array_would(
    writes: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    _, controller = machine()
    base = CHUNK_BYTES - 8192  # so that ranges cross a chunk's border
    controller.write(base, bytes(32_768), 1)
    shadow = bytearray(32_768)
    for offset, content in writes:
        controller.write(base + offset, content, 1)
        shadow[offset : offset + len(content)] = content
    offset = data.draw(st.integers(0, 30_000))
    length = data.draw(st.integers(1, 32_768 - offset))
    assert controller.read(base + offset, length, 1) == shadow[offset : offset + length]


@given(st.integers(0, (1 << 52) - 1), st.integers(0, (1 << 52) - 1))
def test_the_tweak_is_linear_in_the_address(a: int, b: int) -> None:
    table = TweakTable.from_random(RANDOM)
    a, b = a & ~0xF, b & ~0xF
    assert table.tweak(a) ^ table.tweak(b) == table.tweak(a ^ b) == tweak(a ^ b)


def test_equal_plaintext_is_equal_at_one_address_and_nowhere_else() -> None:
    dram, controller = machine()
    plain = b"the same sixteen"
    seen = set()
    for spa in range(0, 1 << 16, 16):
        controller.write(spa, plain, 1)
        seen.add(dram.read(spa, 16))
    assert len(seen) == 1 << 12
    before = dram.read(0x40, 16)
    controller.write(0x40, bytes(16), 1)
    controller.write(0x40, plain, 1)
    assert dram.read(0x40, 16) == before


def test_moved_ciphertext_and_another_key_give_garbage() -> None:
    dram, controller = machine()
    plain = np.random.default_rng(1).bytes(4096)
    controller.write(0x1000, plain, 1)
    dram.write(0x5000, dram.read(0x1000, 4096))
    for found in (controller.read(0x5000, 4096, 1), controller.read(0x1000, 4096, 2)):
        assert not any(found[at : at + 16] == plain[at : at + 16] for at in range(0, 4096, 16))


def test_no_plaintext_of_a_private_page_is_in_dram() -> None:
    dram, controller = machine()
    controller.write(0x2000, b"secret" * 600, 1)
    assert b"secret" not in dram.read(0, 0x10_000)
    controller.write(0x2000, b"secret" * 600, 0)
    assert b"secret" in dram.read(0, 0x10_000)


def test_memory_that_nobody_wrote_is_zero_in_dram_and_garbage_through_a_key() -> None:
    dram, controller = machine()
    assert dram.read(12_345, 100) == bytes(100)
    assert controller.read(0x9000, 64, 1) != bytes(64)
    assert dram.resident_bytes == 0


def test_an_asid_without_a_key_is_refused_and_changes_nothing() -> None:
    dram, controller = machine()
    controller.remove_key(1)
    for asid in (1, 3):
        with pytest.raises(NoKey):
            controller.read(0, 16, asid)
        with pytest.raises(NoKey):
            controller.write(0, bytes(16), asid)
    assert dram.resident_bytes == 0


@pytest.mark.parametrize(("spa", "length"), [(GIB, 1), (GIB - 8, 16), (-16, 16), (1 << 60, 4096)])
def test_nothing_answers_outside_of_memory(spa: int, length: int) -> None:
    dram, controller = machine()
    for asid in (0, 1):
        with pytest.raises(MachineCheck):
            controller.read(spa, length, asid)
        with pytest.raises(MachineCheck):
            controller.write(spa, bytes(length), asid)
    assert dram.resident_bytes == 0


def test_released_pages_are_zero_and_free() -> None:
    dram, controller = machine()
    controller.write(0x1000, bytes(16384), 1)
    dram.release(0x2000, 8192)
    assert dram.resident_pages == 2
    assert dram.read(0x2000, 8192) == bytes(8192)
    assert dram.read(0x1000, 4096) != bytes(4096)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_pages_laid_down_are_what_an_eager_write_would_have_made(data: st.DataObject) -> None:
    """Launched pages are encrypted when somebody looks; whoever looks, in whatever order, sees no difference."""
    source = np.random.default_rng(3).bytes(40 * 4096)
    base = CHUNK_BYTES - 16 * 4096
    (lazy, late), (eager, early) = machine(), machine()
    late.lay(base, source, 0)
    early.write(base, source, 0)
    pages = st.integers(0, 39)
    for _ in range(data.draw(st.integers(1, 12))):
        page, count, way = data.draw(pages), data.draw(st.integers(1, 6)), data.draw(st.integers(0, 5))
        spa, length = base + page * 4096, min(count, 40 - page) * 4096
        if way == 0:
            late.encrypt_in_place(spa, length, 1)
            early.write(spa, early.read(spa, length, 0), 1)
        elif way == 1:
            late.lay(spa, source[:length], 2)
            early.write(spa, source[:length], 2)
        elif way == 2:
            late.write(spa + 100, b"changed", 1)
            early.write(spa + 100, b"changed", 1)
        elif way == 3:
            lazy.release(spa, length)
            eager.release(spa, length)
        elif way == 4:
            assert late.read(spa + 5, length - 9, 1) == early.read(spa + 5, length - 9, 1)
        else:
            assert lazy.read(spa, length) == eager.read(spa, length)
        assert lazy.resident_pages <= eager.resident_pages
    assert lazy.read(base - 4096, 42 * 4096) == eager.read(base - 4096, 42 * 4096)
    assert lazy.resident_pages == eager.resident_pages


def test_a_launched_image_costs_nothing_until_somebody_looks() -> None:
    dram, controller = machine()
    controller.lay(0, bytes(range(256)) * 8192, 0)
    for page in range(512):
        controller.encrypt_in_place(page * 4096, 4096, 1)
    assert dram.resident_bytes == 0
    assert dram.read(4096, 16) == block_by_block(bytes(range(16)), 4096)
    assert dram.resident_pages == 1


def test_the_hosts_key_serves_c_bit_accesses_and_leaves_others_plain() -> None:
    dram, controller = machine()
    controller.install_host_key(HOST, transparent=False)
    plain = bytes(range(256)) * 16
    controller.write(0x3000, plain, HOST_KEY)
    assert dram.read(0x3000, 64) == block_by_block(plain[:64], 0x3000, HOST)
    assert controller.read(0x3000, 4096, HOST_KEY) == plain
    assert controller.read(0x3000, 4096, 0) == dram.read(0x3000, 4096)
    assert controller.read(0x3000, 4096, 1)[:64] != plain[:64]
    controller.write(0x5000, plain, 0)
    assert dram.read(0x5000, 4096) == plain
    controller.lay(0x8000, plain, HOST_KEY)
    assert controller.read(0x8010, 32, HOST_KEY) == plain[0x10:0x30]
    assert dram.resident_pages == 2, "a laid page is not real before somebody looks past the key"
    assert dram.read(0x8000, 64) == block_by_block(plain[:64], 0x8000, HOST)


def test_a_c_bit_access_without_memory_encryption_finds_no_memory_and_changes_nothing() -> None:
    dram, controller = machine()
    for access in (
        lambda: controller.read(0x1000, 16, HOST_KEY),
        lambda: controller.write(0x1000, bytes(16), HOST_KEY),
        lambda: controller.lay(0x1000, bytes(4096), HOST_KEY),
        lambda: controller.clear(0x1000, 4096, HOST_KEY),
    ):
        with pytest.raises(NoHostKey):
            access()
    assert dram.resident_bytes == 0
    controller.write(0x1000, b"plain", 0)
    assert dram.read(0x1000, 5) == b"plain"


def test_a_transparent_host_reads_back_what_it_wrote_and_dram_holds_ciphertext() -> None:
    dram, controller = machine()
    controller.install_host_key(HOST, transparent=True)
    plain = b"nobody's secret " * 512
    controller.write(0x3000, plain, 0)
    assert dram.read(0x3000, 64) == block_by_block(plain[:64], 0x3000, HOST)
    assert controller.read(0x3000, len(plain), 0) == plain
    with pytest.raises(NoHostKey):  # MemEncryptionModeEn is clear: the C-bit is an address bit
        controller.read(0x3000, len(plain), HOST_KEY)
    controller.write(0x3000, plain, 1)
    assert dram.read(0x3000, 64) == block_by_block(plain[:64], 0x3000, KEY)


def test_memory_cleared_through_a_key_reads_as_zeros_there_and_costs_nothing_until_someone_looks() -> None:
    dram, controller = machine()
    controller.install_host_key(HOST, transparent=True)
    controller.clear(0, GIB, 0)
    assert controller.read(GIB - 0x1004, 0x1004, 0) == bytes(0x1004)
    assert dram.resident_bytes == 0
    assert list(dram.resident_runs(0, GIB)) == []
    assert dram.read(0x7000, 32) == block_by_block(bytes(32), 0x7000, HOST)
    controller.write(0x9004, b"in part", 0)
    assert controller.read(0x9000, 16, 0) == b"\0\0\0\0in part\0\0\0\0\0"
    assert controller.read(0xB000, 16, 1) != bytes(16)
    controller.write(0xB000, b"anew", 0)
    controller.clear(0xB000, 0x800, 0)
    assert controller.read(0xB000, 0x800, 0) == bytes(0x800)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_tsme_changes_nothing_that_software_sees(data: st.DataObject) -> None:
    """Beside a host without encryption, the same accesses give the same answers; only garbage differs."""
    (_, plain), (_, tsme) = machine(), machine()
    tsme.install_host_key(HOST, transparent=True)
    tsme.clear(0, GIB, 0)
    source = np.random.default_rng(5).bytes(24 * 4096)
    base = CHUNK_BYTES - 8 * 4096
    owners = [0] * 24
    for _ in range(data.draw(st.integers(1, 12))):
        page, way = data.draw(st.integers(0, 23)), data.draw(st.integers(0, 5))
        count = min(data.draw(st.integers(1, 6)), 24 - page)
        spa, length = base + page * 4096, count * 4096
        for controller in (plain, tsme):
            if way == 0:
                controller.lay(spa, source[:length], 0)
            elif way == 1:
                controller.write(spa, source[-length:], 1)
            elif way == 2 and not any(owners[page : page + count]):
                controller.encrypt_in_place(spa, length, 1)
            elif way == 3:
                controller.clear(spa, length, 0)
            elif way == 4 and not owners[page]:
                controller.write(spa + 77, b"a few bytes", 0)
        if way in (1, 2) and not (way == 2 and any(owners[page : page + count])):
            owners[page : page + count] = [1] * count
        elif way in (0, 3):
            owners[page : page + count] = [0] * count
        for number, owner in enumerate(owners):
            at = base + number * 4096
            assert tsme.read(at, 4096, owner) == plain.read(at, 4096, owner)


def test_bytes_through_the_cipher_are_counted() -> None:
    _, controller = machine()
    controller.write(0, bytes(4096), 1)
    controller.read(0, 100, 1)
    controller.write(0, bytes(4096), 0)
    assert (controller.bytes_encrypted, controller.bytes_decrypted) == (4096, 112)


MEASURE = """
import sys
from node.dram import Dram
from node.memory_controller import MemoryController
from node.cipher_modes import CIPHER_DESIGNS
from node.memory_cipher import CipherMode
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
dram = Dram(16 << 30)
controller = MemoryController(dram, CIPHER_DESIGNS[CipherMode.AES_128_XEX].for_boot(bytes))
controller.install_key(1, bytes(16))
controller.read(0, 4096, 1)
controller.write(15 << 30, bytes(4096), 1)
before = resident()
step = {step}
for page in range(256):
    controller.write(page * step, bytes(4096), 1)
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
@pytest.mark.parametrize("step", [4096, (15 << 30) // 256 // 4096 * 4096], ids=["together", "scattered"])
def test_a_guest_of_16_gib_that_touched_1_mib_costs_at_most_2_mib(step: int) -> None:
    program = MEASURE.format(step=step)
    answer = subprocess.run((sys.executable, "-c", program), capture_output=True, text=True, check=True, env=os.environ)
    assert int(answer.stdout) <= 2 << 20
