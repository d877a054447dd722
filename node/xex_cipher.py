"""The memory cipher: AES-128 in XEX mode with a tweak from the physical address.

Each 16-byte block m at address p becomes ``AES_K(m ^ T(p)) ^ T(p)``. ``T(p)`` is
the XOR of one 128-bit constant for every set bit of p from bit 4 on, so it is
linear: ``T(a ^ b) = T(a) ^ T(b)`` (SEVurity, IEEE S&P 2020). From Zen 2 on the
constants are random at each boot; their exact function is not public.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from psp.system_bus import PAGE_BYTES

Octets = NDArray[np.uint8]
Words = NDArray[np.uint64]

BLOCK_BYTES = 16
LOWEST_BIT, HIGHEST_BIT = 4, 51
_PAGE_SHIFT = 12
_STRIDE_PAGES = 32
"""Pages handled at once: data, tweaks and scratch stay in the L2 cache."""


_PAGES_KEPT = 128


def aligned(size: int) -> Octets:
    """Room for ``size`` bytes at a cache line's border: vector instructions run at half speed across two lines."""
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size]


class TweakTable:
    """The constants t_4 to t_51 of one boot, and the tweaks made from them."""

    RANDOM_BYTES = (HIGHEST_BIT - LOWEST_BIT + 1) * BLOCK_BYTES

    def __init__(self, constants: Words) -> None:
        self.constants = constants
        """Shape (48, 2): the constant of address bit 4 + i as two little-endian words."""
        integers = [int.from_bytes(row.astype("<u8").tobytes(), "little") for row in constants]
        self._by_octet = tuple(_octet_table(integers[bit : bit + 8]) for bit in range(0, len(integers), 8))
        offsets = np.arange(PAGE_BYTES // BLOCK_BYTES, dtype=np.uint64)
        in_page = self._linear(offsets, 0, _PAGE_SHIFT - LOWEST_BIT)
        self._in_page: Words = in_page.reshape(-1)
        pages = np.arange(_STRIDE_PAGES, dtype=np.uint64)
        strided = self._linear(pages, _PAGE_SHIFT - LOWEST_BIT, _STRIDE_PAGES.bit_length() - 1)
        # Rows of a page: broadcasting along whole pages keeps numpy's inner loop long.
        shape = (_STRIDE_PAGES, PAGE_BYTES // 8)
        self._in_stride: Words = aligned(_STRIDE_PAGES * PAGE_BYTES).view(np.uint64).reshape(shape)
        self._in_stride[:] = (strided[:, None, :] ^ in_page[None, :, :]).reshape(shape)
        self._stride: Words = aligned(_STRIDE_PAGES * PAGE_BYTES).view(np.uint64).reshape(shape)
        self._base: Octets = aligned(PAGE_BYTES)
        self._pages: dict[int, Words] = {}

    @classmethod
    def from_random(cls, random: bytes) -> TweakTable:
        """A table from ``RANDOM_BYTES`` random bytes."""
        return cls(np.frombuffer(random, "<u8").astype(np.uint64).reshape(-1, 2))

    def _linear(self, numbers: Words, first: int, bits: int) -> Words:
        out = np.zeros((len(numbers), 2), np.uint64)
        for bit in range(bits):
            chosen = (numbers >> np.uint64(bit)) & np.uint64(1)
            out ^= chosen[:, None] * self.constants[first + bit]
        return out

    def base(self, spa: int) -> bytes:
        """T of one block address."""
        out = 0
        bits = spa >> LOWEST_BIT
        for table in self._by_octet:
            if not bits:
                break
            out ^= table[bits & 0xFF]
            bits >>= 8
        return out.to_bytes(BLOCK_BYTES, "little")

    def stride(self, spa: int) -> Words:
        """Tweaks of the aligned stride from ``spa``, flat; the array is used again by the next call."""
        self._base[:] = np.frombuffer(self.base(spa) * (PAGE_BYTES // BLOCK_BYTES), np.uint8)
        np.bitwise_xor(self._in_stride, self._base.view(np.uint64), out=self._stride)
        return self._stride.reshape(-1)

    def page(self, spa: int) -> Words:
        """Tweaks of the page at ``spa``, flat; some are kept, because pages are touched again."""
        found = self._pages.get(spa)
        if found is None:
            if len(self._pages) >= _PAGES_KEPT:
                self._pages.clear()
            base = np.frombuffer(self.base(spa) * (PAGE_BYTES // BLOCK_BYTES), np.uint64)
            found = self._pages[spa] = self._in_page ^ base
        return found

    def blocks(self, spa: int, count: int) -> Words:
        """Tweaks of ``count`` blocks from ``spa`` (a multiple of 16), flat."""
        page = spa // PAGE_BYTES * PAGE_BYTES
        first = (spa - page) // 8
        if first + 2 * count <= PAGE_BYTES // 8:
            return self.page(page)[first : first + 2 * count]
        last = (spa + count * BLOCK_BYTES - 1) // PAGE_BYTES * PAGE_BYTES
        rows = [self.page(at) for at in range(page, last + 1, PAGE_BYTES)]
        return np.concatenate(rows)[first : first + 2 * count]


def _octet_table(constants: list[int]) -> tuple[int, ...]:
    """T of every value of eight address bits."""
    table = [0]
    for constant in constants:
        table += [value ^ constant for value in table]
    return tuple(table)


class XexCipher:
    """One key's cipher. ECB keeps no state between whole blocks, so one context serves for good."""

    def __init__(self, key: bytes, tweaks: TweakTable) -> None:
        cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305 - XEX is built on single blocks
        self._encrypt = cipher.encryptor().update_into
        self._decrypt = cipher.decryptor().update_into
        self._tweaks = tweaks

    def encrypt(self, plain: Octets, spa: int, out: Octets) -> None:
        """Encrypt whole blocks that lie at ``spa``; ``out`` may be DRAM itself."""
        self._apply(self._encrypt, plain, spa, out)

    def decrypt(self, cipher: Octets, spa: int, out: Octets) -> None:
        """Decrypt whole blocks that lie at ``spa``."""
        self._apply(self._decrypt, cipher, spa, out)

    def _apply(self, aes: object, source: Octets, spa: int, out: Octets) -> None:
        length = len(source)
        if length <= PAGE_BYTES:
            tweak = self._tweaks.blocks(spa, length // BLOCK_BYTES)
            _xex(aes, source, tweak, out, length)
            return
        done = 0
        while done < length:
            at = spa + done
            stop = min(length, done + _STRIDE_BYTES - at % _STRIDE_BYTES)
            base = at // _STRIDE_BYTES * _STRIDE_BYTES
            first = (at - base) // 8
            words = self._tweaks.stride(base)[first : first + (stop - done) // 8]
            _xex(aes, source[done:stop], words, out[done:stop], stop - done)
            done = stop


_STRIDE_BYTES = _STRIDE_PAGES * PAGE_BYTES
_SCRATCH_IN: Words = aligned(_STRIDE_BYTES).view(np.uint64)
_SCRATCH_OUT = aligned(_STRIDE_BYTES + BLOCK_BYTES)


def _xex(aes: object, source: Octets, tweak: Words, out: Octets, length: int) -> None:
    masked = _SCRATCH_IN[: length // 8]
    np.bitwise_xor(source.view(np.uint64), tweak, out=masked)
    aes(masked.view(np.uint8), _SCRATCH_OUT)  # type: ignore[operator]
    np.bitwise_xor(_SCRATCH_OUT[:length].view(np.uint64), tweak, out=out.view(np.uint64))
