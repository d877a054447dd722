"""VMSA register protection: saved registers masked with a nonce, so that the same value is not the same ciphertext.

A guest asks for it with bit 14 of SEV_FEATURES. Its save area holds a nonce (REG_PROT_NONCE, offset 300), and certain
quadwords lie there XORed with it. Hardware takes another nonce whenever it stores registers; firmware masks the page
of a launch after it was measured, and tells the guest in its secrets page which quadwords are masked: a bit for
each of the first 512. Which those are AMD has not published: here the general registers, RIP and RSP.
"""

from __future__ import annotations

import struct

NONCE_BYTES = 8
_WORD = struct.Struct("<Q")
_NONCE, _FEATURES, _ASKED = 0x300, 0x3B0, 1 << 14
TWEAKED = (0x178, 0x1D8, 0x1F8, 0x308, 0x310, 0x318, 0x328, 0x330, 0x338, *range(0x340, 0x380, 8))
"""Offsets of the masked quadwords: RIP, RSP, RAX, RCX, RDX, RBX, RBP, RSI, RDI, R8 to R15."""
TWEAK_BITMAP: bytes = sum(1 << offset // 8 for offset in TWEAKED).to_bytes(64, "little")
"""As it stands in the secrets page."""


def is_asked_for(page: bytes | bytearray) -> bool:
    """Whether a save area's guest wants its registers masked."""
    return bool(_WORD.unpack_from(page, _FEATURES)[0] & _ASKED)


def masked(page: bytes | bytearray) -> bytes:
    """A page with its registers masked by its own nonce, or one that was masked in the clear."""
    (nonce,) = _WORD.unpack_from(page, _NONCE)
    other = bytearray(page)
    for offset in TWEAKED if nonce else ():
        _WORD.pack_into(other, offset, _WORD.unpack_from(page, offset)[0] ^ nonce)
    return bytes(other)


def with_nonce(page: bytes | bytearray, nonce: bytes) -> bytes:
    """A page in the clear, masked with a new nonce."""
    return masked(page[:_NONCE] + nonce + page[_NONCE + NONCE_BYTES :])
