"""A card that the victim was given, as its hypervisor knows it: in its books, and by what it carried."""

from __future__ import annotations

from dataclasses import dataclass

from node.pci_driver import Function
from node.program import Placement
from node.tio_host import Given, TioHost
from workloads.attacks.target_page import Page


@dataclass(frozen=True, slots=True)
class GivenCard:
    """``tio`` is the hypervisor's own driver; what it does are the hypervisor's operations.

    ``other`` is a card of the attacker's, in another slot.
    """

    tio: TioHost
    given: Given
    gctx: int
    other: Function
    tenant: Placement | None = None
    """What the attacker's own guest may call its own, where that has the other card."""
    places: tuple[Page, ...] = ()
    """``outbox``, ``inbox`` and ``idle``; none where the victim does not work on it."""

    @property
    def outbox(self) -> Page:
        """Where the device finds what goes to it."""
        return self.places[0]

    @property
    def inbox(self) -> Page:
        """Where it puts what comes."""
        return self.places[1]

    @property
    def idle(self) -> Page:
        """A page that it reaches and nobody uses."""
        return self.places[2]

    @property
    def function(self) -> Function:
        """What it is on the bus."""
        return self.given.function

    @property
    def port(self) -> int:
        """The number of its root port."""
        return self.function.port.port

    def bar(self, index: int, function: Function | None = None) -> int:
        """SPA of a BAR, of the victim's card or another."""
        return next(spa for number, spa, _ in (function or self.function).bars if number == index)
