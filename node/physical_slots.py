"""What somebody does who has a host's slots in his hands: on a link, or with the card that stands behind it.

No chip is asked. Whoever sits on a link sees each packet as it is there and says what goes on in its place
(``tio.ide.Link``).
"""

from __future__ import annotations

from collections.abc import Iterable

from node.card_slot import CardSlot
from node.filled_slots import FilledSlot, FilledSlots
from node.root_complex import RootComplex
from tio.card import CardFault
from tio.ide import Packet, Way
from tio.ide.link import Tap


class PhysicalSlots:
    """Access to the slots of a board from outside. Ports are named by number; KeyError where none is."""

    def __init__(self, root_complex: RootComplex, slots: FilledSlots) -> None:
        self._root_complex = root_complex
        self._slots = slots

    def tap(self, port: int, tap: Tap | None) -> None:
        """Sit on a link, or leave it."""
        self._filled(port).link.tap = tap

    def inject(self, port: int, way: Way, packets: Iterable[Packet]) -> None:
        """Put packets on a link; they go before what is carried next that way."""
        self._filled(port).link.injected[way] += packets

    def swap(self, port: int, other: CardSlot) -> None:
        """Put another card into a slot."""
        self._filled(port)
        self._slots.swap(port, other)

    def pull(self, port: int) -> None:
        """Take the card out."""
        self._filled(port).root_port.unplug()

    def fault(self, port: int, fault: CardFault) -> None:
        """Have something be wrong with a card."""
        self._filled(port).card.inject(fault)

    def _filled(self, port: int) -> FilledSlot:
        self._root_complex.port(port)
        return self._slots.by_port[port]
