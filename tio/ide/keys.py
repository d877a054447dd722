"""Keys of IDE sub-streams, and the GCM invocations that are made with them.

AES-256-GCM with a MAC of 96 bits. The initialisation vector is 32 bits of zero and 64 bits that count invocations,
from 1: under one key no number comes twice, so a key whose numbers are used up is no key any more. Source: PCI
Express base specification, 6.33.5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
MAC_BYTES = 12
TAG_BYTES = 16
FIRST_INVOCATION = 1
"""What an initial value must be, as IDE_KM programs it."""
_FIXED_FIELD = bytes(4)
_INVOCATIONS = 1 << 64
KEY_SETS = 2


class Direction(IntEnum):
    """As the port sees it that holds the key."""

    RX = 0
    TX = 1


class KeyUsedUp(Exception):
    """A key has no invocation left."""


@dataclass(slots=True)
class SubStreamKey:
    """A key of one sub-stream and direction; ``running`` from K_SET_GO to K_SET_STOP."""

    aead: AESGCM = field(repr=False)
    running: bool = False
    next_invocation: int = FIRST_INVOCATION

    @property
    def was_used(self) -> bool:
        """Whether any invocation went."""
        return self.next_invocation > FIRST_INVOCATION

    def take(self, count: int) -> int:
        """Use so many invocations: the first of them. Raises KeyUsedUp, and then uses none."""
        first = self.next_invocation
        if first + count > _INVOCATIONS:
            raise KeyUsedUp
        self.next_invocation = first + count
        return first


def vector(invocation: int) -> bytes:
    """The initialisation vector of an invocation."""
    return _FIXED_FIELD + invocation.to_bytes(8, "big")


def seal(aead: AESGCM, invocation: int, text: bytes, additional: bytes) -> tuple[bytes, bytes]:
    """Encrypt: the text, and the MAC over it and what is additional."""
    sealed = aead.encrypt(vector(invocation), text, additional)
    return sealed[: len(text)], sealed[len(text) : len(text) + MAC_BYTES]


def unseal(aead: AESGCM, invocation: int, text: bytes, additional: bytes, mac: bytes) -> bytes | None:
    """Decrypt; None where the MAC is another.

    Counter mode undoes itself, and what comes of it sealed again has the same MAC: the library opens no tag
    that was cut short.
    """
    iv, size = vector(invocation), len(text)
    plain = aead.encrypt(iv, text, additional)[:size]
    return plain if aead.encrypt(iv, plain, additional)[size : size + MAC_BYTES] == mac else None
