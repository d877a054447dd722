"""A page that was swapped out comes back as it was before (row 59)."""

from __future__ import annotations

from workloads.attacks.swapped_page import SwappedPage
from workloads.attacks.target import LET_IT_RUN, Attack, Target
from workloads.attacks.write_memory import replay

_FIRST, _SECOND = 0, 1
"""Entries of the Metadata page."""


def _return_older(target: Target) -> Attack:
    swapped = SwappedPage.of(target, target.victim.value)
    yield LET_IT_RUN
    yield from swapped.begin()
    older = yield from swapped.out(_FIRST)
    yield from swapped.back(_FIRST, older)
    yield LET_IT_RUN
    newest = yield from swapped.out(_SECOND)
    yield from swapped.back(_FIRST, older)
    # Where that was refused the guest has its page again, and goes on.
    yield from swapped.back(_SECOND, newest)


def return_older(target: Target) -> Attack:
    """Row 59: have the older of two swapped pages return; who has no firmware for that keeps its own copies."""
    return _return_older(target) if target.victim.gctx else replay(target)
