"""What to say of a name that nobody has: those that are near it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

_SHOWN = 3
_FEW = 8


def expected_name(name: str, known: Sequence[str]) -> str:
    """What was expected in the place of ``name``: the nearest names, or all where they are few."""
    near = difflib.get_close_matches(name, known, n=_SHOWN)
    if near:
        return f"a host or VM of the run, such as {', '.join(near)}"
    if len(known) <= _FEW:
        return f"a host or VM of the run: {', '.join(known)}"
    return f"one of the run's {len(known)} hosts and VMs"


def nearest(name: str, known: Sequence[str]) -> str:
    """What was expected in the place of ``name``: the nearest of the names, or all."""
    near = difflib.get_close_matches(name, known, n=1)
    return f'"{near[0]}"' if near else f"one of {', '.join(known)}"
