"""The root complex: root ports on bus 0, one card behind each, and what of the address space leads to which.

Configuration requests are routed by requester id, loads and stores by address. A port and its card are made when
somebody first reaches for them, so slots that nobody touches cost nothing. Where a port is but nothing answers,
loads read ones and stores are lost. Source: PCI Express base specification, 2.3.1 and 7.2.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from node.card_slot import MmioWindow
from psp.tsm.trusted_io import RootPortKeys

WIDTHS = (1, 2, 4, 8)
"""Bytes of one load or store."""
_FUNCTION = 0b111


class Port(RootPortKeys, Protocol):
    """A root port with what is behind it (``tio.root_port``)."""

    def load(self, address: int, width: int, *, tee: bool) -> int:
        """A load that goes down; ones where nobody answers."""

    def store(self, address: int, value: int, width: int, *, tee: bool) -> None:
        """A store that goes down."""

    def configuration_read(self, requester: int, offset: int, width: int) -> int:
        """Of the port itself, or a request that goes down."""

    def configuration_write(self, requester: int, offset: int, value: int, width: int) -> None:
        """Likewise."""


@dataclass(slots=True)
class _Place:
    window: MmioWindow
    port: Port | None = None


class RootComplex:
    """``make`` builds the port of a window, with its card."""

    def __init__(self, windows: Iterable[MmioWindow], make: Callable[[MmioWindow], Port]) -> None:
        self._places = {one.slot.port: _Place(one) for one in windows}
        self._by_base = [one.window for one in self._places.values()]
        self._bases = [one.base for one in self._by_base]
        self._make = make
        self._among_peers = False

    @property
    def made(self) -> tuple[int, ...]:
        """Numbers of the ports that somebody has reached for."""
        return tuple([number for number, one in self._places.items() if one.port is not None])

    def port(self, number: int) -> Port | None:
        """A root port by its number."""
        place = self._places.get(number)
        if place is None:
            return None
        if place.port is None:
            place.port = self._make(place.window)
        return place.port

    def leads(self, spa: int, length: int) -> int | None:
        """The number of the port to which a whole range leads; None where it leads to none, or is not whole."""
        at = bisect_right(self._bases, spa) - 1
        if at < 0 or spa + length > self._by_base[at].end:
            return None
        return self._by_base[at].slot.port

    # Loads and stores, of widths in ``WIDTHS`` at their own alignment.

    def load(self, spa: int, width: int, *, tee: bool = False) -> int | None:
        """Load from a function's memory; None where no port is."""
        port = self._at(spa, width)
        return None if port is None else port.load(spa, width, tee=tee)

    def store(self, spa: int, value: int, width: int, *, tee: bool = False) -> bool:
        """Store to a function's memory; False where no port is."""
        port = self._at(spa, width)
        if port is None:
            return False
        port.store(spa, value, width, tee=tee)
        return True

    # What one card asks of another's memory, past the IOMMU.

    def takes_peers(self, spa: int, length: int) -> bool:
        """Whether a whole range is behind one port, and no such request is under way, of which this one came."""
        return not self._among_peers and self.leads(spa, length) is not None

    def load_bytes(self, spa: int, length: int, *, tee: bool) -> bytes:
        """Load a range, in the widest loads that fit."""
        self._among_peers = True
        try:
            loaded = [(self.load(at, width, tee=tee) or 0, width) for at, width in _pieces(spa, length)]
        finally:
            self._among_peers = False
        return b"".join([value.to_bytes(width, "little") for value, width in loaded])

    def store_bytes(self, spa: int, data: bytes, *, tee: bool) -> None:
        """Store a range, in the widest stores that fit."""
        self._among_peers = True
        try:
            for at, width in _pieces(spa, len(data)):
                self.store(at, int.from_bytes(data[at - spa : at - spa + width], "little"), width, tee=tee)
        finally:
            self._among_peers = False

    def _at(self, spa: int, width: int) -> Port | None:
        number = self.leads(spa, width)
        return None if number is None else self.port(number)

    # Configuration.

    def configuration_read(self, requester: int, offset: int, width: int) -> int:
        """Load from a configuration space; ones where there is none."""
        port = self._of(requester)
        return (1 << 8 * width) - 1 if port is None else port.configuration_read(requester, offset, width)

    def configuration_write(self, requester: int, offset: int, value: int, width: int) -> None:
        """Store to a configuration space."""
        port = self._of(requester)
        if port is not None:
            port.configuration_write(requester, offset, value, width)

    def _of(self, requester: int) -> Port | None:
        """The port that has a requester id, or has it behind it."""
        bus = requester >> 8
        if bus:
            return self.port(bus - 1)
        return None if requester & _FUNCTION else self.port(requester >> 3)


def _pieces(spa: int, length: int) -> Iterator[tuple[int, int]]:
    """A range as accesses at their own alignment, as (SPA, width)."""
    at, end = spa, spa + length
    while at < end:
        width = next(one for one in reversed(WIDTHS) if not at % one and at + one <= end)
        yield at, width
        at += width
