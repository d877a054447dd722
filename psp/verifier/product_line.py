"""AMD's product lines as a verifier knows them: who they are, how they write a TCB, and AMD's root key of each.

Roots: SHA-256 of the ARK's SubjectPublicKeyInfo. Milan's was taken from AMD's certificate; all
three are those that public verifiers pin, and those of the ARKs they carry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from psp.verifier.tcb_version import MILAN_LAYOUT, TURIN_LAYOUT, TcbLayout


@dataclass(frozen=True, slots=True)
class ProductLine:
    """Products that share roots. ``models`` maps a product to its family and its first and last model."""

    name: str
    models: Mapping[str, tuple[int, int, int]]
    layout: TcbLayout
    chip_id_bytes: int
    """What is not zero of a report's 64 bytes."""
    structure_version: int
    """Extension structVersion of its certificates."""
    amd_root: str

    def holds(self, product: str, family: int, model: int) -> bool:
        """Whether that processor may be the product."""
        known, first, last = self.models[product]
        return family == known and first <= model <= last


LINES: Mapping[str, ProductLine] = {
    line.name: line
    for line in (
        ProductLine(
            "Milan", {"Milan": (0x19, 0x00, 0x0F)}, MILAN_LAYOUT, 64, 0,
            "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9"),
        ProductLine(
            "Genoa", {"Genoa": (0x19, 0x10, 0x1F), "Bergamo": (0x19, 0xA0, 0xAF), "Siena": (0x19, 0xA0, 0xAF)},
            MILAN_LAYOUT, 64, 0, "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831"),
        ProductLine(
            "Turin", {"Turin": (0x1A, 0x00, 0x1F)}, TURIN_LAYOUT, 8, 1,
            "4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08"),
    )
}  # fmt: skip

PRODUCT_LINES: Mapping[str, ProductLine] = {product: line for line in LINES.values() for product in line.models}
"""The line of each product."""

AMD_ROOTS: Mapping[str, frozenset[str]] = {line.name: frozenset({line.amd_root}) for line in LINES.values()}
"""What a verifier of real hosts trusts: AMD's roots, by line."""


def line_of_processor(family: int, model: int) -> ProductLine | None:
    """The line of a processor, None for one that nobody here knows."""
    for line in LINES.values():
        if any(line.holds(product, family, model) for product in line.models):
            return line
    return None
