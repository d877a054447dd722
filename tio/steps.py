"""Carrying a requester's steps: what one side yields goes to whoever answers, and the answer back."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

A = TypeVar("A")
Q = TypeVar("Q")
T = TypeVar("T")


def carry(steps: Generator[Q, A, T], answer: Callable[[Q], A]) -> T:
    """Bring each question to ``answer`` until the steps end; what they return. Raises what either raises."""
    try:
        asked = next(steps)
        while True:
            asked = steps.send(answer(asked))
    except StopIteration as end:
        returned: T = end.value
        return returned
