"""What went through the network cards of one VM."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class NetworkBooks:
    """Frames and bytes of all its cards; of those that came, how long they were under way."""

    frames_sent: int = 0
    bytes_sent: int = 0
    frames_received: int = 0
    bytes_received: int = 0
    refused: int = 0
    """Frames that it sent and the host's switch dropped: another's address as their sender, or no way to go."""
    missed: int = 0
    """Frames that came while it had no buffer for them, or did not run."""
    malformed: int = 0
    """Frames of its own that its cards dropped."""
    errors: int = 0
    """How often a card could not go on with its queues."""
    delay_ns: int = 0
    longest_ns: int = 0
