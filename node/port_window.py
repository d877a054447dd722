"""Root ports as boot firmware hands them to a hypervisor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PortWindow:
    """A root port: its number, and the addresses that lead to what is behind it."""

    port: int
    base: int
    length: int

    @property
    def requester(self) -> int:
        """Of the port itself, which is device ``port`` of bus 0."""
        return self.port << 3

    @property
    def card(self) -> int:
        """Requester id of the first function behind it: the card is on the bus after the port's number."""
        return self.port + 1 << 8
