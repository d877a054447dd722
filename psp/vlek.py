"""A cloud provider's endorsement key (VLEK): made by AMD's key service, brought to a chip as a wrapped hashstick.

A hashstick has 48 bytes for each component of a TCB version, hashed once for
each security version below the highest, so that a chip can go down with it and
not up, as with its VCEKs. That it has 384 bytes, how it is sealed (AES-256-GCM) and where
its parts lie is AMD's (SEV-SNP firmware ABI, VLEK_HASHSTICK); what its bytes are, what the
tag covers besides, and how a chip's wrapping key is made is the laboratory's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import ClassVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from psp import elliptic
from psp.byte_layout import ByteLayout, at
from psp.key_derivation import derive
from psp.tcb_version import MOST_SVN, TCB_BYTES
from psp.vcek import CHAIN_SEED_BYTES, hashed

HASHSTICK_BYTES = TCB_BYTES * CHAIN_SEED_BYTES
_TAG_BYTES = 16


class WrongHashstickError(ValueError):
    """Another chip's, or damaged."""


@dataclass(frozen=True, slots=True)
class WrappedHashstick(ByteLayout):
    """A hashstick on its way from the key service to one chip."""

    SIZE: ClassVar[int] = 0x1B0
    iv: bytes = at(0x000, 12, bytes(12))
    wrapped: bytes = at(0x010, HASHSTICK_BYTES, bytes(HASHSTICK_BYTES))
    tcb: int = at(0x190, TCB_BYTES)
    tag: bytes = at(0x1A0, _TAG_BYTES, bytes(_TAG_BYTES))


@dataclass(frozen=True, slots=True)
class Hashstick:
    """A provider's secret as far as one TCB version reaches (384 bytes)."""

    octets: bytes = field(repr=False)
    tcb: int

    def lowered(self, tcb: int) -> Hashstick:
        """The same for a TCB version that is nowhere above. Raises ValueError for another."""
        steps = [have - want for have, want in zip(_bytes(self.tcb), _bytes(tcb), strict=True)]
        if min(steps) < 0:
            raise ValueError(f"TCB: expected none above {self.tcb:#x}, got {tcb:#x}")
        size = CHAIN_SEED_BYTES
        parts = (hashed(self.octets[at * size :][:size], times) for at, times in enumerate(steps))
        return Hashstick(b"".join(parts), tcb)

    def key(self) -> elliptic.PrivateKey:
        """The VLEK of its TCB version."""
        secret = hashlib.sha384(self.octets).digest()
        label = "sev-versioned-loaded-endorsement-key"
        return elliptic.private_key(derive(secret, label, b"", elliptic.SEED_BYTES))

    def wrapped(self, chip_key: bytes, iv: bytes) -> bytes:
        """Sealed for a chip (432 bytes)."""
        sealed = AESGCM(chip_key).encrypt(iv, self.octets, _bytes(self.tcb))
        return WrappedHashstick(iv, sealed[:-_TAG_BYTES], self.tcb, sealed[-_TAG_BYTES:]).pack()


def provider_hashstick(secret: bytes, tcb: int) -> Hashstick:
    """A provider's, of the secret that the key service keeps for it."""
    highest = Hashstick(hashlib.shake_256(secret).digest(HASHSTICK_BYTES), (MOST_SVN + 1) ** TCB_BYTES - 1)
    return highest.lowered(tcb)


def unwrapped(data: bytes, chip_key: bytes) -> Hashstick:
    """What was sealed for a chip. Raises WrongHashstickError."""
    blob = WrappedHashstick.parse(data)
    try:
        octets = AESGCM(chip_key).decrypt(blob.iv, blob.wrapped + blob.tag, _bytes(blob.tcb))
    except InvalidTag:
        raise WrongHashstickError("hashstick: expected one sealed for this chip") from None
    return Hashstick(octets, blob.tcb)


def _bytes(tcb: int) -> bytes:
    return tcb.to_bytes(TCB_BYTES, "little")
