"""What can be wrong with a key server, for clients to be tested with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Lie(StrEnum):
    """One way in which answers are not what was asked for. A verifier has to find each by itself."""

    OTHER_CHIP = "other-chip"
    """Certificates of a chip that nobody asked about, well signed."""
    OTHER_TCB = "other-tcb"
    """The chip's certificate for the lowest TCB version there is."""
    OTHER_ROOT = "other-root"
    """Everything right, but signed by keys that are not the line's; the chain is theirs too."""
    EXPIRED = "expired"
    """Certificates and lists that were good ten years ago."""
    REVOKED = "revoked"
    """Nothing but the truth, and a list that revokes the intermediates and every VCEK."""
    GARBAGE = "garbage"
    """Bytes of no meaning."""


@dataclass(frozen=True, slots=True)
class Failures:
    """What goes wrong. ``delay_ns`` comes before each answer; before ``down_until_ns`` there is none."""

    delay_ns: int = 0
    down_until_ns: int = 0
    lie: Lie | None = None


FOR_EVER_NS = 1 << 63
NO_FAILURES = Failures()
