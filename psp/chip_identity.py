"""Who a chip is: its fused secret, and everything that follows from it alone.

Nothing is drawn or computed until somebody asks: a fleet that never attests
has no keys. Sources: published research on Zen 2 and 3; real chip ids up to
Genoa, all of which are points on secp256k1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec

from psp import elliptic
from psp.key_derivation import derive
from psp.product_line import SHORT_ID_BYTES, ProductLine
from psp.vcek import CHAIN_SEED_BYTES, vcek_seed

FUSE_BYTES = 32
FUSES = "chip fuses"
"""What fuses are drawn for, with the line's name: chips of two lines have nothing in common."""
VLEK_WRAPPING = "sev-vlek-wrapping"
"""Label of the key that hashsticks for a chip are sealed with."""
_MOST_KEYS_KEPT = 4
_SECP256K1_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@dataclass(slots=True)
class ChipIdentity:
    """One chip. ``draw`` gives its 32 fused bytes, the same each time."""

    line: ProductLine
    draw: Callable[[], bytes] = field(repr=False)
    _fuses: bytes = field(default=b"", init=False, repr=False)
    _chip_id: bytes = field(default=b"", init=False)
    _vceks: dict[int, elliptic.PrivateKey] = field(default_factory=dict, init=False, repr=False)

    @property
    def fuses(self) -> bytes:
        """The chip's secret."""
        self._fuses = self._fuses or self.draw()
        return self._fuses

    @property
    def untouched(self) -> bool:
        """Whether nothing of it was drawn or made yet."""
        return not (self._fuses or self._chip_id or self._vceks)

    @property
    def chip_id(self) -> bytes:
        """The secret's point on secp256k1, X then Y, big-endian (64 bytes); on Turin 8 bytes.

        How Turin's come to be is not published: here they are of a hash of the secret.
        """
        self._chip_id = self._chip_id or self._made_id()
        return self._chip_id

    def cek_key(self) -> elliptic.PrivateKey:
        """The chip endorsement key of the SEV interface."""
        secret = hashlib.sha256(self.fuses).digest()
        return elliptic.private_key(derive(secret, "sev-chip-endorsement-key", b"", elliptic.SEED_BYTES))

    def vcek_key(self, tcb: int) -> elliptic.PrivateKey:
        """The versioned chip endorsement key for a TCB version. ValueError where the line has none.

        How the chain's first seed follows from the fuses is not published: that step is the laboratory's.
        """
        key = self._vceks.get(tcb)
        if key is None:
            first = derive(hashlib.sha256(self.fuses).digest(), "sev-vcek-chain", b"", CHAIN_SEED_BYTES)
            key = elliptic.made_key(vcek_seed(first, self.line, tcb))
            if len(self._vceks) == _MOST_KEYS_KEPT:
                del self._vceks[next(iter(self._vceks))]
            self._vceks[tcb] = key
        return key

    def symmetric_key(self, label: str) -> bytes:
        """A key of the chip's own for AES-256; how real ones are made is not published."""
        return derive(hashlib.sha256(self.fuses).digest(), label, b"", 32)

    def _made_id(self) -> bytes:
        if self.line.chip_id_bytes == SHORT_ID_BYTES:
            return derive(hashlib.sha256(self.fuses).digest(), "chip-id", b"", SHORT_ID_BYTES)
        secret = int.from_bytes(self.fuses, "big") % (_SECP256K1_ORDER - 1) + 1
        point = ec.derive_private_key(secret, ec.SECP256K1()).public_key().public_numbers()
        return point.x.to_bytes(32, "big") + point.y.to_bytes(32, "big")
