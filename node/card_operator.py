"""Upkeep of a host's trusted cards, as its operator orders it or as its platform is set, and what came of it.

What is ordered takes effect at once, as under the lock that a driver holds over a card while it speaks with it; the
security processor is busy as long as its part takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from node.hypervisor_port import Answers, Reply

if TYPE_CHECKING:
    from node.host import Host


class CardAction(StrEnum):
    """What the operator asks for."""

    ROLL_KEYS = "roll keys"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class CardEntry:
    """One order, and how many cards it came to."""

    action: CardAction
    asked_ns: int
    cards: int


class CardOperator:
    """Carries orders out on one host; ``entries`` are in their order.

    With a period keys are rolled again and again: long before their 2^64 invocations are used up.
    """

    def __init__(self, host: Host, refresh_ns: int) -> None:
        self.entries: list[CardEntry] = []
        self._host = host
        self._refresh_ns = refresh_ns
        if refresh_ns:
            host.clock.after(refresh_ns, self._refresh)

    def roll_keys(self) -> int:
        """Give links of cards in use fresh keys: how many got them."""
        return self._carry_out(CardAction.ROLL_KEYS, self._host.hypervisor.roll_card_keys())

    def release(self) -> int:
        """Disconnect cards that nobody uses, as before they are taken out or the host is switched off: how many."""
        return self._carry_out(CardAction.RELEASE, self._host.hypervisor.release_cards())

    def _refresh(self) -> None:
        self.roll_keys()
        self._host.clock.after(self._refresh_ns, self._refresh)

    def _carry_out(self, action: CardAction, task: Reply) -> int:
        host, ready_ns = self._host, self._host.now_ns
        answers: Answers | None = None
        try:
            while True:
                batch = task.send(answers)  # type: ignore[arg-type]  # None begins it
                ready_ns = host.tasks.served(batch, ready_ns, None)
                answers = host.board.execute_host(batch)
        except StopIteration as end:
            cards: int = end.value
        self.entries.append(CardEntry(action, host.now_ns, cards))
        return cards
