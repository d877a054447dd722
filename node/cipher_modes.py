"""What each mode of memory encryption is made of, as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from node.memory_cipher import CipherMode, MemoryCipher, Tweaks, XtsSector
from node.tweak_table import HIGHEST_BIT, LOWEST_BIT, TweakTable
from node.xe_cipher import XeCipher
from node.xex_cipher import XexCipher
from node.xts_tweaks import XtsTweaks

_DATA_KEY_BYTES = 32
"""Of a key that holds two, those of the first."""


@dataclass(frozen=True, slots=True)
class CipherDesign:
    """A mode's parts: the bytes of a key, the cipher, and the table that a boot makes of random bytes, if any."""

    key_bytes: int
    cipher: Callable[[bytes, Tweaks], MemoryCipher]
    table: Callable[[bytes], TweakTable] | None = None
    table_bytes: int = 0

    def for_boot(
        self, random: Callable[[int], bytes], sector: XtsSector = XtsSector.LINE, *, tweaked: bool = True
    ) -> BootCiphers:
        """Ciphers of one boot; ``random`` gives so many bytes. Without tweaks, every address has that of zeros."""
        if not tweaked:
            return BootCiphers(self, sector, _UNTWEAKED)
        make = None if self.table is None else partial(_made, self.table, random, self.table_bytes)
        return BootCiphers(self, sector, None, make)


@dataclass(slots=True)
class BootCiphers:
    """Ciphers that share the tweaks of one boot; in XTS each has its own, from the second half of its key.

    The table is made with the first cipher: most hosts of a fleet wait long for a guest.
    """

    design: CipherDesign
    sector: XtsSector
    _table: TweakTable | None = None
    _make_table: Callable[[], TweakTable] | None = field(default=None, repr=False)

    @property
    def key_bytes(self) -> int:
        """Bytes of a key."""
        return self.design.key_bytes

    def cipher(self, key: bytes) -> MemoryCipher:
        """The cipher of a key. Raises ValueError for one of another length."""
        if len(key) != self.key_bytes:
            raise ValueError(f"key: expected {self.key_bytes} bytes, got {len(key)}")
        if self._table is None and self._make_table is not None:
            self._table = self._make_table()
        tweaks = self._table or XtsTweaks(key[_DATA_KEY_BYTES:], self.sector)
        return self.design.cipher(key[:_DATA_KEY_BYTES], tweaks)


def _made(table: Callable[[bytes], TweakTable], random: Callable[[int], bytes], length: int) -> TweakTable:
    return table(random(length))


_UNTWEAKED = TweakTable((0,) * (HIGHEST_BIT - LOWEST_BIT + 1))

CIPHER_DESIGNS: Mapping[CipherMode, CipherDesign] = {
    CipherMode.AES_128_XE: CipherDesign(16, XeCipher, TweakTable.of_zen1, TweakTable.ZEN1_RANDOM_BYTES),
    CipherMode.AES_128_XEX_ZEN1: CipherDesign(16, XexCipher, TweakTable.of_zen1, TweakTable.ZEN1_RANDOM_BYTES),
    CipherMode.AES_128_XEX: CipherDesign(16, XexCipher, TweakTable.from_random, TweakTable.RANDOM_BYTES),
    CipherMode.AES_256_XTS: CipherDesign(64, XexCipher),
}
