"""The certificates of a host's chip: fetched from a key service when its first SEV-SNP guest comes, kept for guests.

A service that cannot answer yet says when to come again. Guests that ask for a
report before the certificates are there get it without, and may ask again.
"""

from __future__ import annotations

from collections.abc import Callable

from node.clock import Clock
from node.contention import NEVER_NS

_MOST_DOUBLINGS = 10


class CertificateStore:
    """One host's. ``ask`` sends a request now; ``make`` gives the table, once, when a guest first wants it.

    ``share`` is a random part of 1 for the number of each refusal: a host comes again later than it was told, by up
    to twice as much each time, lest all that were refused come again together.

    To have the table made then is as good as having had it sent: it is a function of the chip, its TCB version and the
    service.
    """

    def __init__(
        self, clock: Clock, ask: Callable[[], None], make: Callable[[], bytes], share: Callable[[int], float]
    ) -> None:
        self.asked = 0
        self.refused = 0
        self.wanted_ns: int | None = None
        """When the first guest came."""
        self.held_ns: int | None = None
        """When they were there."""
        self._clock = clock
        self._ask = ask
        self._make = make
        self._share = share
        self._next_ns = NEVER_NS
        self._table = b""

    @property
    def earliest_output_ns(self) -> int:
        """When it asks next; NEVER_NS while it has nothing to ask or waits for an answer."""
        return self._next_ns

    def want(self) -> None:
        """A guest has come that may attest."""
        if self.wanted_ns is None:
            self.wanted_ns = self._clock.now_ns
            self._ask_after(0)

    def answered(self, retry_ns: int | None) -> None:
        """The service has them; or has not yet, and may be asked again after ``retry_ns``."""
        if retry_ns is None:
            self.held_ns = self._clock.now_ns
        else:
            self.refused += 1
            spread = retry_ns * ((1 << min(self.refused, _MOST_DOUBLINGS)) - 1)
            self._ask_after(retry_ns + int(self._share(self.refused) * spread))

    def fetch(self) -> bytes:
        """The table; nothing while it is not there."""
        if self.held_ns is not None:
            self._table = self._table or self._make()
        return self._table

    def _ask_after(self, delay_ns: int) -> None:
        self._next_ns = self._clock.now_ns + delay_ns
        self._clock.after(delay_ns, self._ask_now)

    def _ask_now(self) -> None:
        self._next_ns = NEVER_NS
        self.asked += 1
        self._ask()
