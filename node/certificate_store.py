"""The certificates of a host's chip: fetched from a key service when its first SEV-SNP guest comes, kept for guests.

A service that cannot answer yet says when to come again. Guests that ask for a
report before the certificates are there get it without, and may ask again. When the host reports another TCB version,
what it has is of a key that signs nothing any more: it is thrown away, and fetched anew.
"""

from __future__ import annotations

from collections.abc import Callable

from node.clock import Clock
from node.contention import NEVER_NS

_MOST_DOUBLINGS = 10


class CertificateStore:
    """One host's. ``ask`` sends a request now; ``make`` gives the table, once for each time that it was fetched.

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
        self.renewed = 0
        """How often what it had was of another TCB version than is reported."""
        self.wanted_ns: int | None = None
        """When the first guest came."""
        self.held_ns: int | None = None
        """When they were there for the first time."""
        self._clock = clock
        self._ask = ask
        self._make = make
        self._share = share
        self._next_ns = NEVER_NS
        self._holds = False
        self._table = b""
        self._waits = False
        self._outdated = False
        """Whether what it waits for was asked for another TCB version."""
        self._refused_in_a_row = 0
        self._changing = 0
        """Orders to the firmware that are being carried out."""

    def earliest_output_ns(self, next_event_ns: int) -> int:
        """When it asks next; NEVER_NS while it has nothing to ask or waits for an answer.

        An order to the firmware may be carried out at the host's next event.
        """
        return min(next_event_ns, self._next_ns) if self._changing and self.wanted_ns is not None else self._next_ns

    def want(self) -> None:
        """A guest has come that may attest."""
        if self.wanted_ns is None:
            self.wanted_ns = self._clock.now_ns
            self._ask_after(0)

    def ordered(self) -> None:
        """The firmware is told something after which the host may report another TCB version."""
        self._changing += 1

    def carried_out(self, *, other_tcb: bool) -> None:
        """It has done so; whether the host does."""
        self._changing -= 1
        if other_tcb and self.wanted_ns is not None:
            self.renewed += 1
            self._holds, self._table, self._outdated = False, b"", self._waits
            if not self._waits and self._next_ns == NEVER_NS:
                self._refused_in_a_row = 0
                self._ask_after(0)

    def answered(self, retry_ns: int | None) -> None:
        """The service has them; or has not yet, and may be asked again after ``retry_ns``."""
        outdated, self._outdated, self._waits = self._outdated, False, False
        if retry_ns is not None:
            self.refused += 1
            self._refused_in_a_row += 1
            spread = retry_ns * ((1 << min(self._refused_in_a_row, _MOST_DOUBLINGS)) - 1)
            self._ask_after(retry_ns + int(self._share(self.refused) * spread))
        elif outdated:
            self._ask_after(0)
        else:
            self._refused_in_a_row = 0
            self._holds = True
            self.held_ns = self._clock.now_ns if self.held_ns is None else self.held_ns

    def fetch(self) -> bytes:
        """The table; nothing while it is not there."""
        if self._holds:
            self._table = self._table or self._make()
        return self._table

    def _ask_after(self, delay_ns: int) -> None:
        self._next_ns = self._clock.now_ns + delay_ns
        self._clock.after(delay_ns, self._ask_now)

    def _ask_now(self) -> None:
        self._next_ns = NEVER_NS
        self._waits = True
        self.asked += 1
        self._ask()
