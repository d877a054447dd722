"""A host's virtual time: the only file of the floor that knows an event loop.

After every action the host settles: whatever the action changed in what runs is
shared out anew once, not once for each change.
"""

from __future__ import annotations

from collections.abc import Callable

import simpy


class Clock:
    """Integer nanoseconds over a SimPy environment of the host's own."""

    def __init__(self) -> None:
        self.env = simpy.Environment(initial_time=0)
        self.settle: Callable[[], None] = lambda: None
        """Called after each action."""

    @property
    def now_ns(self) -> int:
        """The present time."""
        # SimPy's own property says the same at the price of one more call. Every delay is a whole number.
        return self.env._now  # type: ignore[return-value]  # noqa: SLF001

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Call ``action`` when ``delay_ns`` have passed, and settle."""

        def fire(_: simpy.Event) -> None:
            action()
            self.settle()

        simpy.Timeout(self.env, delay_ns).callbacks.append(fire)

    def wake(self, delay_ns: int, action: Callable[[simpy.Event], None]) -> None:
        """Call ``action``, which settles itself, when ``delay_ns`` have passed."""
        simpy.Timeout(self.env, delay_ns).callbacks.append(action)
