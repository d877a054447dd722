"""What a core stored and memory does not know yet is dropped (row 33, CacheWarp)."""

from __future__ import annotations

from node.operations import Invd
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Target


def drop_dirty_lines(_: Target) -> Attack:
    """Row 33: write back what is old, let the victim store anew, and empty the caches without writing back."""
    yield LET_IT_RUN
    yield WRITE_BACK
    yield LET_IT_RUN
    yield (Invd(),)
