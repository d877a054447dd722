"""Layout ``inline``: all entities in this process, without Ray."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence

from cluster.entity import Message
from cluster.layout import Rows, merged_rows
from cluster.shard import EntityFactory, Shard, ShardReport


class InlineLayout:
    """One shard, here."""

    startup_s = 0.0
    workers = 1

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._shard: Shard | None = None
        self._report: ShardReport | None = None

    def expect(self, vms: int) -> None:
        """VMs need no processes here."""

    def start(self, factory: EntityFactory, specs: Sequence[tuple[str, bytes]]) -> None:
        """Build the entities."""
        self._shard = Shard(factory, specs)
        # They live to the end: the collector need not look through a whole fleet for garbage again and again.
        gc.freeze()
        self._report = self._shard.report()

    def report(self) -> ShardReport:
        """As after the last call."""
        assert self._report is not None
        return self._report

    def advance(self, horizon_ns: int, mail: Mapping[str, tuple[Message, ...]], event_budget: int) -> ShardReport:
        """Advance the shard."""
        assert self._shard is not None
        self._report = self._shard.advance(horizon_ns, mail, event_budget)
        return self._report

    def collect(self, end_ns: int) -> Rows:
        """Close the books."""
        assert self._shard is not None
        return merged_rows(self._shard.collect(end_ns))

    def salvage(self, end_ns: int) -> Rows:
        """The same: nothing can be lost alone."""
        return self.collect(end_ns)

    def gauges(self) -> dict[str, dict[str, float]]:
        """Live figures."""
        return {} if self._shard is None else self._shard.gauges()

    def facts(self) -> dict[str, object]:
        """Nothing to tell: there are no workers."""
        return {}

    def close(self) -> None:
        """Forget the entities."""
        self._shard = None
        gc.unfreeze()
