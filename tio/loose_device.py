"""A device in no slot: registers that keep what is stored, and no way to memory."""

from __future__ import annotations


class LooseDevice:
    """What lies behind a card that is asked who it is and does no work."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], int] = {}

    def load(self, bar: int, offset: int, width: int) -> int:
        """Load from a BAR."""
        return self._kept.get((bar, offset), 0) & (1 << 8 * width) - 1

    def store(self, bar: int, offset: int, value: int, width: int) -> None:
        """Store to a BAR."""
        self._kept[bar, offset] = value & (1 << 8 * width) - 1

    def reset(self) -> None:
        """Forget it."""
        self._kept.clear()

    def scrub(self) -> None:
        """Forget it."""
        self._kept.clear()
