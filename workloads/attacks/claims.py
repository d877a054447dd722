"""What an attacker says that it has learnt, where no bytes were told to it: the laboratory takes it down."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """The victim's decisions, from that of its first round on, one bit for each. Answer: None."""

    bits: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WorkedOut:
    """Bytes that the victim keeps to itself, as the attacker concludes them from what it was told. Answer: None."""

    octets: bytes
