"""RDRAND in guests: numbers of the processor's own, which no hypervisor intercepts, chooses, or gives twice.

Source: APM volume 3, RDRAND. Here they follow from the host's seed, so that a run can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from node import operations as op
from node.counter_random import CounterRandom
from node.vmcb import Vmcb


class RandomNumbers:
    """Executes it, on one host."""

    def __init__(self, random: CounterRandom, host: str) -> None:
        self._random, self._host = random, host
        self._drawn: dict[str, int] = {}
        """How many numbers each VM has drawn."""
        self.table: Mapping[type, Callable[..., op.Answer]] = {op.ReadRandom: self._draw}

    def _draw(self, vmcb: Vmcb, _: op.ReadRandom) -> op.Answer:
        drawn = self._drawn[vmcb.vm] = self._drawn.get(vmcb.vm, 0) + 1
        return self._random.integer(self._host, f"rdrand {vmcb.vm}", drawn)
