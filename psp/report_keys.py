"""What signs reports and is the root of derived keys, as guest messages need it of a chip."""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

from psp.elliptic import PrivateKey


class SigningKey(IntEnum):
    """SIGNING_KEY of a report's key information (SEV-SNP firmware ABI, table 23)."""

    VCEK = 0
    VLEK = 1
    NONE = 7


class KeySelection(IntEnum):
    """KEY_SEL of a request for a report or a key; 3 is reserved."""

    VLEK_IF_LOADED = 0
    VCEK = 1
    VLEK = 2


class ReportKeys(Protocol):
    """A chip as far as reports tell of it. Nothing is made before somebody asks."""

    @property
    def chip_id(self) -> bytes:
        """CHIP_ID, followed by zeros where it is shorter than 64 bytes."""

    def vcek_key(self, tcb: int) -> PrivateKey:
        """The chip's endorsement key at a TCB version, as reports carry that."""

    def vlek_key(self, hashstick: bytes, tcb: int) -> PrivateKey:
        """The key that a loaded VLEK hashstick gives at a TCB version."""
