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

    ``outbox`` and ``inbox`` are where the device finds what goes to it, and puts what comes; ``idle`` is a page that it
    reaches and nobody uses. ``other`` is a card of the attacker's, in another slot.
    """

    tio: TioHost
    given: Given
    gctx: int
    outbox: Page
    inbox: Page
    idle: Page
    other: Function
    tenant: Placement | None = None
    """What the attacker's own guest may call its own, where that has the other card."""

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
