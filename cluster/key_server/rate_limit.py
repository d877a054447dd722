"""How often a client may ask: a rate and a burst, in whole nanoseconds of whatever clock is handed in.

The generic cell rate algorithm: of each client one number is kept, when its
next request would be on time. Same requests at same times, same answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_NS_PER_S = 1_000_000_000
_MOST_CLIENTS = 4096
"""Beyond that, those who asked nothing lately are forgotten; whoever is not, counts as one."""


@dataclass(slots=True)
class RateLimit:
    """``per_s`` requests a second of each client, ``burst`` of them at once."""

    per_s: float
    burst: int = 1
    _due_ns: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.per_s <= 0 or self.burst < 1:
            raise ValueError(f"rate: expected more than 0 a second and a burst of 1 or more, got {self}")

    def wait_ns(self, client: str, now_ns: int) -> int:
        """0 if the client may ask now, which then counts; else how long until it may."""
        if client not in self._due_ns and len(self._due_ns) >= _MOST_CLIENTS:
            self._due_ns = {one: due for one, due in self._due_ns.items() if due > now_ns}
            if len(self._due_ns) >= _MOST_CLIENTS:
                client = ""
        interval = max(1, round(_NS_PER_S / self.per_s))
        due = max(self._due_ns.get(client, 0), now_ns)
        early = due - now_ns - (self.burst - 1) * interval
        if early > 0:
            return early
        self._due_ns[client] = due + interval
        return 0
