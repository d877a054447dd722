"""How a program's block ends when an answer is not what it must be."""

from __future__ import annotations

from node.operations import Answer, Fault, Shutdown

WRONG_ANSWER = Shutdown(1)
"""Memory or a device returned something else than was stored."""

FAULTED = Shutdown(2)
"""An operation faulted, or the disk reported an error."""


def faulted(answers: tuple[Answer, ...]) -> bool:
    """Whether any operation of a batch faulted."""
    return any(type(answer) is Fault for answer in answers)


def loaded(answers: tuple[Answer, ...]) -> list[bytes] | None:
    """The answers of a batch of loads; None if one is not bytes."""
    data = [answer for answer in answers if isinstance(answer, bytes)]
    return data if len(data) == len(answers) else None
