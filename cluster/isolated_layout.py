"""Layout ``isolated``: each host, each hypervisor and each VM's software has a process of its own.

A host's worker starts the others itself and speaks with them in batches, so to
the coordinator the layout is ``host`` with another way to build one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.actor_layout import ACTOR_BYTES, ActorLayout, WorkerRule
from cluster.entity import Message
from cluster.host_entity import build_host
from cluster.isolated_host import PROCESSES, build_isolated_host
from cluster.layout import LayoutError, Rows
from cluster.machine import free_bytes
from cluster.progress import ShouldStop
from cluster.shard import EntityFactory, ShardReport
from cluster.units import SIZE

_ISOLATED: Mapping[EntityFactory, EntityFactory] = {build_host: build_isolated_host}
"""What builds a host here in place of what would build it elsewhere; other entities have nothing to isolate."""


def _check_room(wanted: int, more: int) -> None:
    """Raise LayoutError where so many ``more`` processes would not fit into memory."""
    free = free_bytes()
    if free is not None and more * ACTOR_BYTES > free:
        raise LayoutError(
            f"layout: expected room for {wanted:,} processes, one for each host, hypervisor and VM, at about "
            f"{SIZE.about(ACTOR_BYTES)} each, got {SIZE.about(free)} of free memory (layout packed needs far less)"
        )


def one_each(workers: int | None) -> WorkerRule:
    """A worker for each host, however many there are."""
    if workers is not None:
        raise LayoutError(
            f"workers: expected none with layout isolated, which has one for each host, hypervisor and VM, "
            f"got {workers}"
        )
    return lambda hosts, _: max(1, hosts)


class IsolatedLayout:
    """``ActorLayout`` over hosts with processes of their own."""

    def __init__(self, workers: int | None, address: str | None = None) -> None:
        self._hosts = ActorLayout(one_each(workers), address)
        self._address = address
        self._expected_vms = 0
        self._room_for = 0
        """Processes that there was room for when they were to be started; they stay."""
        self._processes: list[dict[str, Any]] = []

    @property
    def startup_s(self) -> float:
        """What starting Ray took."""
        return self._hosts.startup_s

    @property
    def workers(self) -> int:
        """Hosts."""
        return self._hosts.workers

    @property
    def notes(self) -> list[str]:
        """As of ``ActorLayout``."""
        return self._hosts.notes

    @property
    def advice(self) -> str:
        """None: who isolates processes does not do so for speed."""
        return ""

    def expect(self, vms: int) -> None:
        """Room is needed for the processes of so many VMs."""
        self._expected_vms = vms

    def start(
        self, factory: EntityFactory, specs: Sequence[tuple[str, bytes]], should_stop: ShouldStop | None = None
    ) -> None:
        """As of ``ActorLayout``; raises LayoutError where hosts, hypervisors and VMs would not fit into memory."""
        self._processes = []
        isolated = _ISOLATED.get(factory, factory)
        wanted = len(specs) if isolated is factory else 2 * len(specs) + self._expected_vms
        if self._address is None:
            _check_room(wanted, wanted - self._room_for)
        self._hosts.start(isolated, specs, should_stop)
        self._room_for = max(wanted, self._room_for)

    def report(self) -> ShardReport:
        """As after the last call."""
        return self._hosts.report()

    def together(self, lookahead_ns: int, end_ns: int) -> None:
        """Nobody is here."""

    def advance(self, horizon_ns: int, mail: Mapping[str, tuple[Message, ...]], event_budget: int) -> ShardReport:
        """As of ``ActorLayout``: a host whose hypervisor or VM lost its process is built again, and told again."""
        return self._hosts.advance(horizon_ns, mail, event_budget)

    def collect(self, end_ns: int) -> Rows:
        """Rows of all hosts; what they say of their processes is kept for ``facts``."""
        rows = self._hosts.collect(end_ns)
        self._processes = rows.pop(PROCESSES, [])
        return rows

    def salvage(self, end_ns: int) -> Rows:
        """As of ``ActorLayout``."""
        rows = self._hosts.salvage(end_ns)
        self._processes = rows.pop(PROCESSES, [])
        return rows

    def gauges(self) -> dict[str, dict[str, float]]:
        """Live figures of all hosts."""
        return self._hosts.gauges()

    def facts(self) -> dict[str, object]:
        """Memory by kind of process, and what each process did."""
        return {
            **{name: fact for name, fact in self._hosts.facts().items() if name != "advice"},
            **{f"{kind}_memory_bytes": held for kind in ("hypervisor", "tenant") if (held := self._held(kind))},
            **({"operations_by_process": self._by_host()} if self._processes else {}),
        }

    def _held(self, kind: str) -> dict[str, int]:
        rows = (row for row in self._processes if row["kind"] == kind and row["memory_bytes"] is not None)
        return {row["name"]: row["memory_bytes"] for row in rows}

    def _by_host(self) -> Mapping[str, object]:
        """For each host: its process, its hypervisor's, and those of the VMs that ran there."""
        told: dict[str, dict[str, object]] = {}
        for row in self._processes:
            did = {name: row[name] for name in ("pid", "operations", "calls")}
            host = told.setdefault(row["host"], {})
            if row["kind"] == "tenant":
                tenants = host.setdefault("tenants", {})
                assert isinstance(tenants, dict)
                tenants.setdefault(row["name"], []).append(did)
            else:
                host[row["kind"]] = did
        return told

    def close(self) -> None:
        """End all processes and their Ray."""
        self._hosts.close()
