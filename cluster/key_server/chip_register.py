"""The chips that were made, by the id that each bears."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    """Chips of hosts, by name and product, in the scenario of a seed.

    Ids are computed, at half a millisecond each, as far down the list as somebody asks.
    """

    hosts: Iterable[tuple[str, Product]]
    seed: int
    _seen: dict[bytes, KnownChip] = field(default_factory=dict, init=False, repr=False)
    _rest: Iterator[KnownChip] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        random = CounterRandom(self.seed)
        self._rest = (KnownChip(chip_of_host(product, name, random), product) for name, product in self.hosts)

    def find(self, chip_id: bytes) -> KnownChip | None:
        """The chip of an id."""
        while chip_id not in self._seen:
            chip = next(self._rest, None)
            if chip is None:
                return None
            self._seen.setdefault(chip.identity.chip_id, chip)
        return self._seen[chip_id]
