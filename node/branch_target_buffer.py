"""The branch target buffer of each hardware thread, as far as an attack needs it: what predicts an indirect branch.

An indirect branch that was executed leaves its target; the next one at that address, whoever executes it, is
predicted by it, and where the prediction is wrong, code at the predicted address runs until the processor notices.
With BTB_ISOLATION a guest's branches are predicted by its own alone, and IBPB_ON_ENTRY empties the buffer at VMRUN
(APM volume 2, 15.36.17, as published of the two bits: the manual was not at hand).

No history and no hashing of addresses: real predictors are reverse engineered, and alias in ways of their own.
"""

from __future__ import annotations

from collections import OrderedDict

HOST = 0
"""Whose branches: the host's, or those of the guest with an ASID."""
ENTRIES = 8192
"""Of each thread; the oldest goes. The order of what is said of Zen 3 and 4."""


class BranchTargetBuffer:
    """Targets by thread and address, each with whose branch left it."""

    def __init__(self) -> None:
        self._threads: dict[int, OrderedDict[int, tuple[int, int]]] = {}

    def predict(self, thread: int, site: int, whose: int, *, isolated: bool = False) -> int | None:
        """Where a branch is predicted to go; ``isolated`` believes nothing that others left. None for no prediction."""
        held = self._threads.get(thread)
        found = None if held is None else held.get(site)
        if found is None or (isolated and found[0] != whose):
            return None
        return found[1]

    def train(self, thread: int, site: int, whose: int, target: int) -> None:
        """A branch was executed."""
        held = self._threads.setdefault(thread, OrderedDict())
        held.pop(site, None)
        if len(held) >= ENTRIES:
            held.popitem(last=False)
        held[site] = whose, target

    def barrier(self, thread: int) -> None:
        """IBPB: a thread's predictions are forgotten."""
        self._threads.pop(thread, None)
