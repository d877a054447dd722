"""Costs that remember which of their figures somebody asked for: no other can have mattered."""

from __future__ import annotations

from collections.abc import Mapping


class NotedCosts(dict[str, float]):
    """Figures that remember which of them somebody asked for."""

    def __init__(self, costs: Mapping[str, float]) -> None:
        super().__init__(costs)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> float:
        self.read.add(name)
        return super().__getitem__(name)
