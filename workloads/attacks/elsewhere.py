"""A second host of the same attacker's, on which a guest was launched: its context was left behind (A-05).

How a migration agent leaves one is not the attack; the laboratory puts it there.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """The guest behind a Context page of this host was launched on the other one. Answer: its Context page there."""

    context: int


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Have the other host's firmware answer a guest's request page (SNP_GUEST_REQUEST). Answer: the response page."""

    context: int
    request: bytes


OtherHostOperation = LeftBehind | Elsewhere
