"""What a relying party does with an answer to its nonce: believe the report, or give nothing away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from psp.verifier import Evidence, Expectations, Reason, Rejected, verify
from workloads.secret_channel import ChannelError, seal_for


@dataclass(frozen=True, slots=True)
class Release:
    """A secret, whom it is for, and whose root is trusted. ``now`` is seconds since 1970.

    ``fresh`` off is a party that looks at no nonce and at no channel.
    """

    secret: bytes = field(repr=False)
    expected: Expectations
    roots: Mapping[str, frozenset[str]]
    fresh: bool = True

    def answer(self, evidence: Evidence, nonce: bytes, channel_key: bytes, now: int, ephemeral: bytes) -> bytes:
        """The secret, sealed for the channel's key. Raises Rejected, and nothing else whatever the bytes are."""
        expected = self.expected
        if self.fresh:
            expected = replace(expected, nonce=nonce, channel_key=channel_key)
        verify(evidence, expected, now, self.roots)
        try:
            return seal_for(channel_key, self.secret, ephemeral)
        except ChannelError:
            raise Rejected(Reason.CHANNEL_UNEXPECTED, "no key of X25519") from None
