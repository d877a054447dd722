"""A second host of the same attacker's, on which a guest once was: its context was left behind (A-05).

How a migration agent leaves one is not the attack; the laboratory puts it there.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """The guest behind a Context page of this host was on the other one before. Answer: its Context page there."""

    context: int


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Have the other host's firmware answer a request page of a guest (SNP_GUEST_REQUEST). Answer: the response page."""

    context: int
    request: bytes


OtherHostOperation = LeftBehind | Elsewhere
