"""What a memory controller's cipher is: blocks of 16 bytes, each by itself, and the address in it."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Protocol

from node.dimm_cells import Octets, Words

BLOCK_BYTES = 16
FEW_BYTES = 64
"""A line. So little goes through plain integers, of which a cipher takes a quarter of what arrays cost."""


class CipherMode(StrEnum):
    """How a memory controller encrypts, by key, block m and the tweak T of the block's system-physical address."""

    AES_128_XE = "aes-128-xe"
    """AES(m ^ T): early steppings of Zen 1 (EPYC 7251, Ryzen 1700X)."""
    AES_128_XEX_ZEN1 = "aes-128-xex-zen1"
    """AES(m ^ T) ^ T with the periodic constants of Zen 1."""
    AES_128_XEX = "aes-128-xex"
    """The same with constants that are random at each boot: from Zen 2 on."""
    AES_256_XTS = "aes-256-xts"
    """The tweak of IEEE 1619: a second key's cipher of the sector's number, times alpha for each block."""


class XtsSector(IntEnum):
    """Bytes that share one sector number of XTS, which is their address divided by this.

    AMD has not published what it takes. A line is what a memory controller moves at once.
    """

    LINE = 64
    PAGE = 4096


class MemoryCipher(Protocol):
    """One key's cipher. Ranges are whole blocks; ``out`` may be DRAM itself."""

    def encrypt(self, plain: Words, spa: int, out: Words) -> None:
        """Encrypt what belongs at ``spa``."""

    def decrypt(self, cipher: Words, spa: int, out: Words) -> None:
        """Decrypt what lies at ``spa``; ``out`` may be ``cipher``."""

    def encrypt_in_page(self, plain: Words, spa: int, out: Words) -> None:
        """Encrypt blocks of one page."""

    def decrypt_in_page(self, cipher: Words, spa: int) -> Octets:
        """Decrypt blocks of one page; the next call overwrites the array."""

    def encrypt_few(self, plain: bytes, spa: int) -> bytes:
        """What belongs at ``spa``, at most ``FEW_BYTES`` in one page, encrypted."""

    def decrypt_few(self, cipher: bytes, spa: int) -> bytes:
        """What lies at ``spa``, at most ``FEW_BYTES`` in one page, decrypted."""


class Tweaks(Protocol):
    """The tweaks of addresses. Each call overwrites what the one before gave."""

    def in_page(self, spa: int, words: int) -> Words:
        """Tweaks of the blocks from ``spa`` on, inside one page."""

    def of_few(self, spa: int, length: int) -> int:
        """The same of at most ``FEW_BYTES`` as one number, that of the first block lowest."""

    def in_stride(self, spa: int, words: int) -> Words:
        """The same inside one of the strides that bulk work goes in."""

    def masks(self, spa: int) -> Words:
        """Of all blocks of the stride that starts at ``spa``, each XOR the X of ``node.xts_engine``."""


class Ciphers(Protocol):
    """What one boot makes ciphers of."""

    @property
    def key_bytes(self) -> int:
        """Bytes of a key."""

    def cipher(self, key: bytes) -> MemoryCipher:
        """The cipher of a key. Raises ValueError for one of another length."""
