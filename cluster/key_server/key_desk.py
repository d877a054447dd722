"""The key service in a scenario: who may have its certificates when, in virtual time.

What a host may have it makes itself when a guest first wants it: a certificate
is a function of chip, TCB version and service, and a signature of 4,096 bits is dear.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.key_server.failures import Failures
from cluster.key_server.gate import Gate
from cluster.key_server.rate_limit import RateLimit
from cluster.scenario_keys import KeyServiceSettings

Reply = tuple[int, int | None]
"""How long the answer takes, and when to ask again; None for who may have the certificates."""


@dataclass(slots=True)
class KeyDesk:
    """Takes the requests of a fleet's hosts, in the order in which they come."""

    gate: Gate
    retry_ns: int
    alike: bool = True
    """All hosts count as one client."""

    @classmethod
    def of(cls, settings: KeyServiceSettings, fetch_ns: float = 0.0) -> KeyDesk:
        """As a scenario says, where it says nothing with answers that take ``fetch_ns``."""
        limit = RateLimit(settings.requests_per_s, settings.burst) if settings.requests_per_s else None
        delay_ns = round(fetch_ns) if settings.delay is None else settings.delay
        failures = Failures(delay_ns, settings.down_until)
        return cls(Gate(limit, failures), settings.retry, settings.per == "fleet")

    def ask(self, host: str, now_ns: int) -> Reply:
        """A host's request at a time."""
        refusal = self.gate.refusal("" if self.alike else host, now_ns)
        if refusal is None:
            return self.gate.failures.delay_ns, None
        return refusal.after_ns, refusal.retry_ns or self.retry_ns
