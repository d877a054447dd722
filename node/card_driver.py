"""How a hypervisor keeps its connected cards: fresh keys for their links, and an end for those that nobody uses.

Source: ``spec/tio/tio-overview.md``, sections 3 and 6 (TIO_ROLL_KEY, TIO_DEV_DISCONNECT, TIO_DEV_RECLAIM).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.hypervisor_port import Reply

if TYPE_CHECKING:
    from node.hypervisor import Hypervisor


def roll_card_keys(self: Hypervisor) -> Reply:
    """Fresh keys for the link of each card of which a function is bound: how many cards got them.

    One whose link still has the keys of before in use keeps what it has, for its guests' sake, as does one that does
    not answer: it is asked again the next time.
    """
    rolled = 0
    for card in self.tio.cards:
        if self.tio.is_bound(card):
            rolled += yield from self.tio.roll_keys(card)
    return rolled


def release_cards(self: Hypervisor) -> Reply:
    """End the session with each card that no VM has anything of, and take back what it took: how many there were."""
    released = 0
    for card in self.tio.cards:
        if card.context and not self.tio.is_given(card):
            yield from self.tio.let_go(card)
            released += 1
    return released
