"""Which chip a host has: what the security processor on its board draws, known without the board.

As AMD knows the chips that it made, whatever became of them.
"""

from __future__ import annotations

from node.counter_random import CounterRandom
from node.product import Product
from psp.chip_identity import FUSE_BYTES, FUSES, ChipIdentity


def chip_of_host(product: Product, name: str, random: CounterRandom) -> ChipIdentity:
    """The chip of a host of that name in the scenario of a seed; nothing of it is computed yet."""
    purpose = f"psp {FUSES} {product.line.name}"
    return ChipIdentity(product.line, lambda: random.octets(name, purpose, 0, FUSE_BYTES))
