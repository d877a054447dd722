"""A monotonic counter outside of every host, which a victim asks whether it is still the newest (row 60)."""

from __future__ import annotations

from dataclasses import dataclass

from workloads.attacks.counted import CounterKey


@dataclass(slots=True)
class ExternalCounter:
    """Of one victim. It never goes back."""

    key: CounterKey
    count: int = 0

    def answer(self, question: bytes) -> bytes:
        """What goes back to whoever carried the question; nothing for one that is not the victim's."""
        rounds = self.key.rounds(question)
        if rounds is None:
            return b""
        newest = rounds > self.count
        self.count = max(self.count, rounds)
        return self.key.answer(question, newest=newest)
