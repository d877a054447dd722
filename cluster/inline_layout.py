"""Layout ``inline``: all entities in this process, without Ray."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from cluster.entity import Message
from cluster.fleet_garbage import collect_fleet, growing_fleet
from cluster.fleet_pages import enlarge_pages
from cluster.layout import Rows, merged_rows
from cluster.machine import cores
from cluster.progress import ShouldStop
from cluster.shard import EntityFactory, Shard, ShardReport
from cluster.together import Together
from cluster.worker_advice import WorkerAdvice


class InlineLayout:
    """One shard, here."""

    startup_s = 0.0
    workers = 1

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._advice: WorkerAdvice | None = None
        self._shard: Shard | None = None
        self._report: ShardReport | None = None
        self._together: Together | None = None

    def expect(self, vms: int) -> None:
        """VMs need no processes here."""

    def start(
        self, factory: EntityFactory, specs: Sequence[tuple[str, bytes]], should_stop: ShouldStop | None = None
    ) -> None:
        """Build the entities; the ones before are gone first, so that both never need memory at once."""
        self._let_go()
        with growing_fleet():
            self._shard = Shard(factory, specs)
        self._advice = WorkerAdvice(0, len(specs), cores(), self._shard.loads)
        enlarge_pages(len(specs))
        self._report = self._shard.report()

    def report(self) -> ShardReport:
        """As after ``start`` or the last ``advance``."""
        assert self._report is not None
        return self._report

    def together(self, lookahead_ns: int, end_ns: int) -> Together | None:
        """All entities. Who wants to see calls of ``advance`` answers None in its place."""
        assert self._shard is not None
        self._together = self._shard.together(lookahead_ns, end_ns)
        return self._together

    def advance(self, horizon_ns: int, mail: Mapping[str, tuple[Message, ...]], event_budget: int) -> ShardReport:
        """Advance the shard."""
        assert self._shard is not None
        if self._advice is None or self._advice.text:
            report = self._shard.advance(horizon_ns, mail, event_budget)
        else:
            began_s = time.perf_counter()
            report = self._shard.advance(horizon_ns, mail, event_budget)
            took_s = time.perf_counter() - began_s
            self._advice.note(took_s, (took_s,))
        self._report = report
        return report

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

    @property
    def advice(self) -> str:
        """Whether workers would pay; without windows, how many there would have been is an estimate."""
        if self._advice is None:
            return ""
        if self._together is not None:
            self._advice.hear(self._together.busy_s, self._together.windows)
        return self._advice.text

    def facts(self) -> dict[str, object]:
        """Nothing but the advice: there are no workers."""
        return {"advice": self.advice} if self.advice else {}

    def close(self) -> None:
        """Forget the entities."""
        self._let_go()

    def _let_go(self) -> None:
        """Hosts hold one another, and their DRAM, in circles: only the collector can free them, if it may look."""
        self._shard = self._report = self._together = None
        collect_fleet()
