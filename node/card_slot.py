"""Cards of a host as it is ordered with them, and where their memory lies in its address space.

Each card has a root port of its own, and that a window of 64-bit MMIO above memory and a bus number, as boot
firmware would hand them out. The windows follow each other in the order of the slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from node.generation import Generation
from node.product import Product
from tio.device_identity import CardKind

MOST_PORTS = 31
"""Root ports are the devices 1 to 31 of bus 0; the card behind one is on the bus after the port's number."""
MOST_VIRTUAL = 64
_LEAST_BAR_BYTES = 4096
_MMIO_ALIGNMENT = 1 << 36
"""So that the segments of an RMP that cover MMIO cover nothing else."""
_LEAST_WINDOW_BYTES = 16 << 20
_REGISTERS_BYTES = 1 << 20
"""More than a function's BARs take besides the card's own memory."""


@dataclass(frozen=True, slots=True)
class CardSlot:
    """One slot with a card in it. Raises ValueError for what cannot be, naming the field.

    ``memory_bytes`` is what a card of this kind has of its own: a GPU's memory, a disk's medium.
    """

    port: int
    kind: CardKind
    serial: str = "0001"
    memory_bytes: int = 1 << 20
    virtual_functions: int = 0
    maker: int = 1
    """Who made it: seed of the keys under which it is certified. Tenants trust the first."""
    scrubs: bool = True
    """Whether it clears what trusted work left in it when that ends."""
    tee_io: bool = True
    """Whether it has TEE-IO: nobody can be made to trust one that has not."""
    disk: str = ""
    """The file below an NVMe card's medium, which then has its size; only read. None for a medium of zeros."""
    encrypts: bool = True
    """Whether its SPDM sessions can encrypt; one that only authenticates has nowhere to be given keys."""

    def __post_init__(self) -> None:
        if not 1 <= self.port <= MOST_PORTS:
            raise ValueError(f"port: expected 1 to {MOST_PORTS}, got {self.port}")
        if self.kind is CardKind.GPU and self.memory_bytes != max(_LEAST_BAR_BYTES, _power_of_two(self.memory_bytes)):
            raise ValueError(f"memory_bytes of a GPU: expected a power of two from {_LEAST_BAR_BYTES} on")
        if self.disk and self.kind is not CardKind.NVME:
            raise ValueError(f"disk: expected none of a {self.kind.value} card, got {self.disk}")
        if not 0 <= self.virtual_functions <= MOST_VIRTUAL:
            raise ValueError(f"virtual_functions: expected 0 to {MOST_VIRTUAL}, got {self.virtual_functions}")

    @property
    def bus(self) -> int:
        """The bus behind the port."""
        return self.port + 1

    @property
    def root_port(self) -> int:
        """Requester id of the port."""
        return self.port << 3

    @property
    def requester(self) -> int:
        """Of the card's first function."""
        return self.bus << 8

    @property
    def assignable(self) -> int:
        """How many VMs can have a function of it: each virtual one, or the card itself where it has none."""
        return self.virtual_functions or 1

    @property
    def window_bytes(self) -> int:
        """How much MMIO the port is given: a power of two with room for every BAR at its own alignment."""
        functions = 1 + self.virtual_functions
        return max(_LEAST_WINDOW_BYTES, _power_of_two(2 * functions * (_REGISTERS_BYTES + self.memory_bytes)))


@dataclass(frozen=True, slots=True)
class MmioWindow:
    """What of the address space leads to one root port."""

    slot: CardSlot
    base: int
    length: int

    @property
    def end(self) -> int:
        """Address after the last."""
        return self.base + self.length


def windows(memory_bytes: int, cards: tuple[CardSlot, ...]) -> Iterator[MmioWindow]:
    """Each slot's window, each at its own alignment. Raises ValueError for a port that is named twice."""
    if len({one.port for one in cards}) < len(cards):
        raise ValueError("cards: expected one card a port")
    at = -(-memory_bytes // _MMIO_ALIGNMENT) * _MMIO_ALIGNMENT
    for one in cards:
        size = one.window_bytes
        at = -(-at // size) * size
        yield MmioWindow(one, at, size)
        at += size


def with_cards(product: Product, memory_bytes: int, cards: tuple[CardSlot, ...]) -> Product:
    """A product on a board with these cards: where it has SEV-TIO, its RMP covers their MMIO."""
    if not cards or Generation.SEV_TIO not in product.generations or product.rmp.mmio[1]:
        return product
    return _covering(product, memory_bytes, cards)


@lru_cache(maxsize=64)
def _covering(product: Product, memory_bytes: int, cards: tuple[CardSlot, ...]) -> Product:
    """Made once for the many equal hosts of a fleet."""
    places = list(windows(memory_bytes, cards))
    covered = places[0].base, places[-1].end - places[0].base
    return replace(product, rmp=replace(product.rmp, mmio=covered))


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
