"""What somebody can do who holds a slot: sit on the link to its card, or have made what is in it."""

from __future__ import annotations

from dataclasses import dataclass

from node.card_slot import CardSlot
from tio.ide.link import Tap, Way


@dataclass(frozen=True, slots=True)
class LinkTap:
    """Sit on the link of a root port: each packet that comes goes by way of ``tap``, and is seen. Answer: None.

    One that ``tells`` nothing of payloads acts by itself: what it holds is seen by nobody.
    """

    port: int
    tap: Tap
    tells: bool = True


@dataclass(frozen=True, slots=True)
class LinkLeave:
    """Let packets go by again. Answer: None."""

    port: int


@dataclass(frozen=True, slots=True)
class LinkPacket:
    """A packet came by. Nobody asks for it: what was seen is the answer, bytes."""

    port: int
    way: Way


@dataclass(frozen=True, slots=True)
class CardConfide:
    """Have the card in a slot remember what it is given from now on.

    A card does so that is of the attacker's make, or runs the attacker's firmware. Answer: None.
    """

    port: int


@dataclass(frozen=True, slots=True)
class CardRecall:
    """What such a card has been given. Answer: bytes, or None of a card that tells nothing."""

    port: int


@dataclass(frozen=True, slots=True)
class CardRead:
    """Have such a card load from its host's memory. Answer: bytes, or None where it gets nothing."""

    port: int
    address: int
    length: int


@dataclass(frozen=True, slots=True)
class CardWrite:
    """Have such a card store to its host's memory. Answer: None."""

    port: int
    address: int
    data: bytes


@dataclass(frozen=True, slots=True)
class CardSwap:
    """Pull the card in a slot, and put another one there. Answer: None."""

    port: int
    other: CardSlot


SlotOperation = LinkTap | LinkLeave | LinkPacket | CardConfide | CardRecall | CardRead | CardWrite | CardSwap
