"""What prices depend on, of a host: hosts that are equal in this share them."""

from __future__ import annotations

from dataclasses import dataclass

from node.generation import Generation
from node.memory_cipher import CipherMode
from node.platform import HostMode, Platform
from node.product import Product


@dataclass(frozen=True, slots=True)
class HostKind:
    """A host's clock, its mode, its cipher, and whether its RMP is in use."""

    hz: float
    """Of its cores, in cycles a second."""
    mode: HostMode = HostMode.NONE
    cipher: CipherMode = CipherMode.AES_128_XEX
    rmp: bool = False
    """SNP is on: stores of everybody are checked against the RMP, whoever makes them."""

    @classmethod
    def of(cls, product: Product, platform: Platform) -> HostKind:
        """The kind of a host of a product, set up in some way."""
        return cls(
            float(product.base_hz), platform.mode, platform.cipher_of(product),
            Generation.SEV_SNP in product.generations,
        )  # fmt: skip
