"""Who gets no answer from the key service, whatever they ask: it is down, or they ask too often."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from cluster.key_server.answer import Answer, said
from cluster.key_server.failures import NO_FAILURES, Failures
from cluster.key_server.rate_limit import RateLimit

_NS_PER_S = 1_000_000_000


@dataclass(slots=True)
class Gate:
    """In front of a service; without a limit everybody may ask."""

    limit: RateLimit | None = None
    failures: Failures = NO_FAILURES

    def refusal(self, client: str, now_ns: int) -> Answer | None:
        """What a client at a time gets instead of an answer; None if it may ask, which then counts."""
        failures = self.failures
        if now_ns < failures.down_until_ns:
            return said(HTTPStatus.SERVICE_UNAVAILABLE, "the service is down", failures.delay_ns)
        wait = self.limit.wait_ns(client, now_ns) if self.limit else 0
        if not wait:
            return None
        text = f"ask again in {-(-wait // _NS_PER_S)} s"
        return said(HTTPStatus.TOO_MANY_REQUESTS, text, failures.delay_ns, wait)
