"""The chips that were made, by the id that each bears."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from node.chip_of_host import chip_of_host
from node.counter_random import CounterRandom
from node.product import Product
from psp.chip_identity import ChipIdentity

SINGLE_HOSTS = ("host", "platform")
"""What ``sevfleet attest`` and ``sevfleet owner`` call the one host of theirs."""


@dataclass(frozen=True, slots=True)
class KnownChip:
    """A chip and what it was sold as."""

    identity: ChipIdentity
    product: Product


@dataclass(slots=True)
class ChipRegister:
    """Chips of hosts, by name and product, in the scenario of a seed. Ids are computed when the first is asked for."""

    hosts: Iterable[tuple[str, Product]]
    seed: int
    _chips: dict[bytes, KnownChip] | None = field(default=None, init=False, repr=False)

    def find(self, chip_id: bytes) -> KnownChip | None:
        """The chip of an id."""
        if self._chips is None:
            random = CounterRandom(self.seed)
            known = (KnownChip(chip_of_host(product, name, random), product) for name, product in self.hosts)
            self._chips = {chip.identity.chip_id: chip for chip in known}
        return self._chips.get(chip_id)
