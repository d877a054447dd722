"""What lies in DRAM in each mode is what the published cipher gives, computed block by block with plain integers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from node.board import Board
from node.cipher_modes import CIPHER_DESIGNS
from node.counter_random import CounterRandom
from node.memory_cipher import CipherMode, MemoryCipher, XtsSector
from node.operations import NestedFrames, NestedMap, Read, VmcbWrite, Write
from node.platform import Platform, Protection
from node.product import PRODUCTS
from node.xts_tweaks import XtsTweaks

MIB = 1 << 20
KEY = bytes(range(64))
DATA = np.random.default_rng(2).bytes(3 * MIB)
PRODUCT_OF = {
    CipherMode.AES_128_XE: "Naples",
    CipherMode.AES_128_XEX_ZEN1: "Naples",
    CipherMode.AES_128_XEX: "Milan",
    CipherMode.AES_256_XTS: "Genoa",
}
WAYS = [(mode, sector) for mode in CipherMode for sector in XtsSector if mode is CipherMode.AES_256_XTS or sector == 64]

BOOT = CounterRandom(5)
"""What a board called "b" draws its tweak constants from."""


def aes(key: bytes, block: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)


def xored(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def constant(mode: CipherMode, bit: int, boot: CounterRandom = BOOT) -> bytes:
    """The constant of an address bit from what was drawn at boot alone."""
    if mode is CipherMode.AES_128_XEX:
        return boot.octets("b", "memory tweaks", 0, 48 * 16)[(bit - 4) * 16 : (bit - 3) * 16]
    published = {4: "82253838", 5: "ec09079c", 6: "40000018"}
    if bit in published:
        return bytes.fromhex(published[bit]) * 4
    return boot.octets("b", "memory tweaks", 0, 48 * 4)[(bit - 4) * 4 : (bit - 3) * 4] * 4


def expected(mode: CipherMode, sector: int, spa: int, block: bytes) -> bytes:
    """One block as DRAM must hold it."""
    if mode is CipherMode.AES_256_XTS:
        # The library's own XTS, of the whole sector that the block is in.
        before = spa % sector
        whole = Cipher(algorithms.AES(KEY), modes.XTS((spa // sector).to_bytes(16, "little"))).encryptor()
        return whole.update(bytes(before) + block + bytes(sector - before - 16))[before : before + 16]
    tweak = bytes(16)
    for bit in range(4, 52):
        if spa >> bit & 1:
            tweak = xored(tweak, constant(mode, bit))
    inner = aes(KEY[:16], xored(block, tweak))
    return inner if mode is CipherMode.AES_128_XE else xored(inner, tweak)


def guest(mode: CipherMode, sector: XtsSector = XtsSector.LINE, disabled: frozenset[Protection] = frozenset()) -> Board:
    """A board with one SEV guest, whose memory begins at 2 MiB and whose key is known."""
    platform = Platform(memory_cipher=mode, xts_sector=sector, disabled=disabled)
    board = Board("b", PRODUCTS[PRODUCT_OF[mode]], 1 << 30, 9, CounterRandom(5), platform)
    board.controller.install_key(9, KEY[: CIPHER_DESIGNS[mode].key_bytes])
    frames, pages = NestedFrames("vm", 512 * MIB, 64 << 10), NestedMap("vm", 0, 2 * MIB, 128 * MIB)
    assert board.execute_host((frames, pages, VmcbWrite("vm", 0, 9, "SEV", 0))) == (None,) * 3
    return board


@pytest.mark.parametrize(("mode", "sector"), WAYS)
@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (0, 16),
        (0x1230, 64),
        (0x3FF0, 4096),
        (0x5000, 4096),
        (0x8010, 0x3000),
        (62 * MIB - 48, 300_000),
        (2 * MIB, 3 * MIB),
    ],
)
def test_dram_holds_what_an_independent_computation_gives(
    mode: CipherMode, sector: XtsSector, gpa: int, length: int
) -> None:
    board = guest(mode, sector)
    data = DATA[:length]
    vmcb = board.vmcb("vm", 0)
    assert board.execute_guest(vmcb, (Write(gpa, data), Read(gpa, length))) == (None, data)
    raw, spa = board.dram.read(gpa + 2 * MIB, length), gpa + 2 * MIB
    last = length // 16 * 16 - 16
    probes = {0, 16, 32, 48, 4080, 4096, 8192, 65_520, 131_072, 999_984, last - 16, last}
    for at in sorted(one for one in probes if 0 <= one <= last):
        assert raw[at : at + 16] == expected(mode, sector, spa + at, data[at : at + 16]), hex(spa + at)


@pytest.mark.parametrize(("mode", "sector"), WAYS)
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 400_000), st.binary(min_size=1, max_size=9000)), min_size=1, max_size=5),
    st.data(),
)
def test_any_writes_at_any_alignment_read_back_as_a_byte_array_would(
    mode: CipherMode, sector: XtsSector, writes: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    board, shadow = guest(mode, sector), bytearray(410_000)
    vmcb = board.vmcb("vm", 0)
    board.execute_guest(vmcb, (Write(0, bytes(shadow)),))
    for gpa, content in writes:
        board.execute_guest(vmcb, (Write(gpa, content),))
        shadow[gpa : gpa + len(content)] = content
    gpa = data.draw(st.integers(0, 405_000))
    length = data.draw(st.integers(1, 410_000 - gpa))
    assert board.execute_guest(vmcb, (Read(gpa, length),)) == (bytes(shadow[gpa : gpa + length]),)


def cipher(mode: CipherMode, sector: XtsSector = XtsSector.LINE) -> MemoryCipher:
    random = np.random.default_rng(3).bytes
    return CIPHER_DESIGNS[mode].for_boot(random, sector).cipher(KEY[: CIPHER_DESIGNS[mode].key_bytes])


def encrypted(one: MemoryCipher, plain: bytes, spa: int) -> bytes:
    out = np.zeros(len(plain) // 8, np.uint64)
    one.encrypt(np.frombuffer(plain, np.uint64), spa, out)
    return out.tobytes()


def test_xts_gives_the_known_answer_of_ieee_1619() -> None:
    """Annex B, vector 10: XTS-AES-256, data unit 255."""
    key = bytes.fromhex(
        "27182818284590452353602874713526624977572470936999595749669676273141592653589793238462643383279502884197169399375105820974944592"
    )
    plain = bytes(range(256)) * 2
    answer = bytes.fromhex(
        "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b"
        "5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd"
    )
    for sector in XtsSector:
        one = CIPHER_DESIGNS[CipherMode.AES_256_XTS].for_boot(bytes, sector).cipher(key)
        assert encrypted(one, plain[: min(sector, 512)], 255 * sector)[:64] == answer


@pytest.mark.parametrize("sector", XtsSector)
def test_xts_tweaks_are_the_sectors_times_alpha(sector: XtsSector) -> None:
    """Multiplication by alpha, bit by bit on one integer (IEEE 1619, 5.2)."""
    tweaks = XtsTweaks(KEY[32:], sector).in_page(sector, sector // 8).tobytes()
    value = int.from_bytes(aes(KEY[32:], (1).to_bytes(16, "little")), "little")
    for at in range(0, sector, 16):
        assert int.from_bytes(tweaks[at : at + 16], "little") == value
        value <<= 1
        if value >> 128:
            value ^= (1 << 128) | 0x87


def test_blocks_moved_under_xe_decrypt_to_what_the_constants_foretell_and_under_xex_to_garbage() -> None:
    plain, source, target = b"sixteen of bytes", 0x1234_5670, 0x0ABC_DE40
    for mode in (CipherMode.AES_128_XE, CipherMode.AES_128_XEX_ZEN1):
        board = guest(mode)
        vmcb = board.vmcb("vm", 0)
        gpas = [spa % (64 * MIB) & ~0xF for spa in (source, target)]
        spas = [gpa + 2 * MIB for gpa in gpas]
        board.execute_guest(vmcb, (Write(gpas[0], plain),))
        board.dram.write(spas[1], board.dram.read(spas[0], 16))
        difference = bytes(16)
        for bit in range(4, 52):
            if (spas[0] ^ spas[1]) >> bit & 1:
                difference = xored(difference, constant(mode, bit))
        foretold = board.execute_guest(vmcb, (Read(gpas[1], 16),)) == (xored(plain, difference),)
        assert foretold is (mode is CipherMode.AES_128_XE)


def test_zen_1_constants_repeat_so_two_addresses_share_a_tweak_which_random_ones_do_not() -> None:
    """48 constants of 32 bits of entropy depend on each other: some set of address bits has T = 0."""
    plain = bytes(range(16))
    for mode in (CipherMode.AES_128_XE, CipherMode.AES_128_XEX_ZEN1):
        one = cipher(mode)
        words = np.random.default_rng(3).bytes(48 * 4)
        known = bytes.fromhex("82253838ec09079c40000018")
        words = known + words[12:]
        basis: list[tuple[int, int]] = []
        distance = 0
        for number in range(48):
            value, bits = int.from_bytes(words[4 * number : 4 * number + 4], "little"), 1 << number + 4
            for other, some in basis:
                if value ^ other < value:
                    value, bits = value ^ other, bits ^ some
            if value:
                basis = sorted([*basis, (value, bits)], reverse=True)
            else:
                distance = bits
                break
        assert distance
        assert encrypted(one, plain, 0x40) == encrypted(one, plain, 0x40 ^ distance)
    assert len({encrypted(cipher(CipherMode.AES_128_XEX), plain, 0x40 ^ bits) for bits in (0, distance)}) == 2


@pytest.mark.parametrize(("mode", "sector"), WAYS)
def test_without_the_tweak_equal_blocks_are_equal_everywhere_and_with_it_nowhere(
    mode: CipherMode, sector: XtsSector
) -> None:
    for disabled, kinds in ((frozenset({Protection.TWEAK}), 1), (frozenset[Protection](), 256 * 3)):
        board = guest(mode, sector, disabled)
        for gpa in (0, 0x5000, 0x4_0000):
            board.execute_guest(board.vmcb("vm", 0), (Write(gpa, b"the same sixteen" * 256),))
        raw = b"".join(board.dram.read(gpa + 2 * MIB, 4096) for gpa in (0, 0x5000, 0x4_0000))
        assert len({raw[at : at + 16] for at in range(0, len(raw), 16)}) == kinds


@pytest.mark.parametrize("mode", CipherMode)
def test_each_boot_draws_its_own_constants_and_no_guest_sees_anothers(mode: CipherMode) -> None:
    length = CIPHER_DESIGNS[mode].key_bytes
    boots = [CIPHER_DESIGNS[mode].for_boot(np.random.default_rng(seed).bytes) for seed in (1, 2)]
    plain = bytes(4096)
    seen = [encrypted(boot.cipher(key), plain, 0x1000) for boot in boots for key in (KEY[:length], KEY[::-1][:length])]
    alike = [a == b for a, b in pairwise(seen)]
    assert not any(alike)
    # Of XTS a boot settles nothing: all its secrets are in the key.
    assert (seen[0] == seen[2]) is (mode is CipherMode.AES_256_XTS)


@pytest.mark.parametrize("mode", CipherMode)
def test_a_key_of_another_length_is_refused(mode: CipherMode) -> None:
    with pytest.raises(ValueError, match="key: expected"):
        CIPHER_DESIGNS[mode].for_boot(bytes).cipher(bytes(17))


def test_a_product_encrypts_only_as_it_can_and_its_default_is_the_first() -> None:
    assert {product.name: product.ciphers for product in PRODUCTS.values()} == {
        "Naples": (CipherMode.AES_128_XEX_ZEN1, CipherMode.AES_128_XE),
        "Rome": (CipherMode.AES_128_XEX,),
        "Milan": (CipherMode.AES_128_XEX,),
        **dict.fromkeys(("Genoa", "Bergamo", "Siena", "Turin"), (CipherMode.AES_128_XEX, CipherMode.AES_256_XTS)),
    }
    for product in PRODUCTS.values():
        assert Platform().cipher_of(product) is product.ciphers[0]
        for mode in CipherMode:
            if mode not in product.ciphers:
                with pytest.raises(ValueError, match=f"expected one of .* on {product.name}, got {mode}"):
                    Board("b", product, 1 << 30, 9, CounterRandom(1), Platform(memory_cipher=mode))
