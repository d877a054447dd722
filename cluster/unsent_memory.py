"""Where memory lies that a round did not send, since it was broken off or did not begin, or that was written since.

Of a pool of W bytes u have not been sent, and d distinct bytes all over it were written: those were unsent already for
a share of u/W, so that u + d (1 - u/W) are left. What lies in no pool is written by nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from node.dirty_rates import Pool


class Unsent(NamedTuple):
    """Bytes that are still to be sent."""

    of_pools: tuple[float, ...]
    """Of each pool."""
    of_rest: float = 0.0
    """Of memory that nobody writes."""

    @property
    def total(self) -> float:
        """Of all memory."""
        return sum(self.of_pools, self.of_rest)

    def part(self, share: float) -> Unsent:
        """A share of all of it, evenly."""
        return Unsent(tuple([share * size for size in self.of_pools]), share * self.of_rest)

    def with_written(self, pools: Sequence[Pool], written: Sequence[float]) -> Unsent:
        """What is left when so many bytes of each pool were written besides."""
        return Unsent(
            tuple([
                unsent + more * max(0.0, 1.0 - unsent / pool.working_set_bytes)
                for pool, unsent, more in zip(pools, self.of_pools, written, strict=True)
            ]),
            self.of_rest,
        )  # fmt: skip


def all_unsent(memory_bytes: int, pools: Sequence[Pool]) -> Unsent:
    """Of a guest of which nothing has been sent."""
    whole = sum([pool.working_set_bytes for pool in pools])
    fits = min(1.0, memory_bytes / whole) if whole else 1.0
    return Unsent(tuple([pool.working_set_bytes * fits for pool in pools]), max(0.0, float(memory_bytes - whole)))
